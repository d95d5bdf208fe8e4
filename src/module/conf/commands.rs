//! The table of directives.

use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use nginx_consul_core::directives::words::{Words, text};
use nginx_sys::{
    NGX_CONF_1MORE as MORE, NGX_CONF_ANY, NGX_CONF_NOARGS, NGX_HTTP_LOC_CONF,
    NGX_HTTP_LOC_CONF_OFFSET, NGX_HTTP_MAIN_CONF_OFFSET, NGX_HTTP_SRV_CONF_OFFSET, ngx_command_t,
    ngx_conf_t, ngx_str_t, ngx_uint_t,
};

use super::args::{Args, finish, once};
use super::keepalive::KeepaliveConf;
use super::row::{Row, UPSTREAM};
use super::settings::{DIRECTIVES as SETTINGS, Settings};
use super::srv::SrvConf;
use super::{api, dynamic, status};
use crate::ffi::{CONF_ERROR, Cf, catch_panic};

type Handler = extern "C" fn(*mut ngx_conf_t, *mut ngx_command_t, *mut c_void) -> *mut c_char;

const UPSTREAMS: &[Row<SrvConf>] = &[
    Row { name: c"consul_dynamic", kind: UPSTREAM | MORE, set: dynamic::set },
    Row {
        name: c"consul_keepalive",
        kind: UPSTREAM | MORE,
        set: |args, conf| once(args, &mut conf.keepalive, KeepaliveConf::parse),
    },
];

const LOCATION: [ngx_command_t; 2] = [
    command(
        c"consul_status",
        NGX_HTTP_LOC_CONF | NGX_CONF_ANY,
        NGX_HTTP_LOC_CONF_OFFSET,
        status::ngx_http_consul_status,
    ),
    command(
        c"consul_api",
        NGX_HTTP_LOC_CONF | NGX_CONF_NOARGS,
        NGX_HTTP_MAIN_CONF_OFFSET,
        api::ngx_http_consul_api,
    ),
];

const COUNT: usize = UPSTREAMS.len() + SETTINGS.len() + LOCATION.len();

/// The part of a configuration that the handler of a row fills.
trait Part {
    fn of(conf: &mut SrvConf) -> &mut Self;
}

impl Part for SrvConf {
    fn of(conf: &mut SrvConf) -> &mut SrvConf {
        conf
    }
}

impl Part for Settings {
    fn of(conf: &mut SrvConf) -> &mut Settings {
        &mut conf.settings
    }
}

/// The directives, ended by an empty one.
#[repr(transparent)]
pub(crate) struct Commands([ngx_command_t; COUNT + 1]);

// SAFETY: nginx reads the table, in the master's main thread; nothing writes it.
unsafe impl Sync for Commands {}

pub(crate) static COMMANDS: Commands = {
    let mut commands = [const { ngx_command_t::empty() }; COUNT + 1];
    let rest = fill(&mut commands, UPSTREAMS);
    let rest = fill(rest, SETTINGS);
    assert!(rest.len() == LOCATION.len() + 1, "one command for each directive, and an empty one");
    if let [status, api, _end] = rest {
        [*status, *api] = LOCATION;
    }
    Commands(commands)
};

/// Fills commands from the rows; returns those that are left.
const fn fill<'c, C: Part>(
    mut commands: &'c mut [ngx_command_t],
    mut rows: &'static [Row<C>],
) -> &'c mut [ngx_command_t] {
    while let [row, more @ ..] = rows {
        let [first, rest @ ..] = commands else { return &mut [] };
        *first = command(row.name, row.kind, NGX_HTTP_SRV_CONF_OFFSET, set_row::<C>);
        first.post = ptr::from_ref(row).cast_mut().cast();
        (commands, rows) = (rest, more);
    }
    commands
}

/// nginx compares names up to their NUL.
const fn command(name: &'static CStr, kind: u32, conf: usize, set: Handler) -> ngx_command_t {
    ngx_command_t {
        name: ngx_str_t { len: name.count_bytes(), data: name.as_ptr().cast_mut().cast() },
        type_: kind as ngx_uint_t,
        set: Some(set),
        conf,
        offset: 0,
        post: ptr::null_mut(),
    }
}

/// The handler of the directives that have a [`Row`], which is the command's `post`.
extern "C" fn set_row<C: Part>(
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    catch_panic(CONF_ERROR, || {
        // SAFETY: a command of fill(), whose `post` is a row of a static table.
        let row = unsafe { &*(*command).post.cast::<Row<C>>() };
        // SAFETY: nginx passes the configuration of the block that the directive stands in; nothing
        // else refers to that while a directive handler runs.
        let conf = unsafe { &mut *conf.cast::<SrvConf>() };
        // SAFETY: nginx passes it to the directive's handler, within `http`.
        let cf = unsafe { Cf::new(cf) };
        let words = cf.words();
        let [name, words @ ..] = &*words else { return CONF_ERROR };
        let set = |name| (row.set)(&Args { cf, words: Words { name, words } }, C::of(conf));
        finish(cf, text(name).and_then(set))
    })
}
