//! The table of directives.

use std::ffi::{CStr, c_char, c_void};

use nginx_sys::{
    NGX_CONF_1MORE as MORE, NGX_CONF_ANY, NGX_CONF_NOARGS, NGX_CONF_TAKE1 as TAKE1,
    NGX_CONF_TAKE2 as TAKE2, NGX_CONF_TAKE12 as TAKE12, NGX_HTTP_LOC_CONF,
    NGX_HTTP_LOC_CONF_OFFSET, NGX_HTTP_MAIN_CONF, NGX_HTTP_MAIN_CONF_OFFSET,
    NGX_HTTP_SRV_CONF_OFFSET, NGX_HTTP_UPS_CONF, ngx_command_t, ngx_conf_t, ngx_str_t, ngx_uint_t,
};

use super::args::{self, Args, Parsed, finish, once, one, text};
use super::http::HttpConf;
use super::settings::DIRECTIVES as HTTP_AND_UPSTREAM;
use super::state_file::state_file;
use super::{KeepaliveConf, SrvConf, api, dynamic, status};
use crate::ffi::{self, CONF_ERROR, catch_panic};

type Handler = extern "C" fn(*mut ngx_conf_t, *mut ngx_command_t, *mut c_void) -> *mut c_char;
type Set<C> = fn(&Args<'_>, &mut C) -> Parsed;

/// A directive, and what takes its words into a configuration of `C`.
pub(super) struct Row<C> {
    name: &'static CStr,
    /// Where it may stand, and with how many words.
    kind: u32,
    set: Set<C>,
}

const UPSTREAM: &[Row<SrvConf>] = &[
    upstream(c"consul_dynamic", MORE, dynamic::set),
    upstream(c"consul_keepalive", MORE, |args, conf| {
        once(args, &mut conf.keepalive_conf, KeepaliveConf::parse)
    }),
];

const HTTP: &[Row<HttpConf>] = &[
    http(c"consul_zone", TAKE2, |args, conf| once(args, &mut conf.zone, zone)),
    http(c"consul_init_timeout", TAKE1, |args, conf| {
        once(args, &mut conf.init_timeout, one(args::time))
    }),
    http(c"consul_connections", TAKE1, |args, conf| once(args, &mut conf.connections, one(number))),
    http(c"consul_max_services", TAKE1, |args, conf| {
        once(args, &mut conf.max_services, one(number))
    }),
    http(c"consul_state", TAKE12, |args, conf| once(args, &mut conf.state, state_file)),
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

const COUNT: usize = UPSTREAM.len() + HTTP_AND_UPSTREAM.len() + HTTP.len() + LOCATION.len();

/// The directives, ended by an empty one.
#[repr(transparent)]
pub(crate) struct Commands([ngx_command_t; COUNT + 1]);

// SAFETY: nginx reads the table, in the master's main thread; nothing writes it.
unsafe impl Sync for Commands {}

pub(crate) static COMMANDS: Commands = {
    let mut commands = [const { ngx_command_t::empty() }; COUNT + 1];
    let at = fill(&mut commands, 0, UPSTREAM, NGX_HTTP_SRV_CONF_OFFSET);
    let at = fill(&mut commands, at, HTTP_AND_UPSTREAM, NGX_HTTP_SRV_CONF_OFFSET);
    let at = fill(&mut commands, at, HTTP, NGX_HTTP_MAIN_CONF_OFFSET);
    [commands[at], commands[at + 1]] = LOCATION;
    Commands(commands)
};

const fn upstream(name: &'static CStr, count: u32, set: Set<SrvConf>) -> Row<SrvConf> {
    Row { name, kind: NGX_HTTP_UPS_CONF | count, set }
}

const fn http(name: &'static CStr, count: u32, set: Set<HttpConf>) -> Row<HttpConf> {
    Row { name, kind: NGX_HTTP_MAIN_CONF | count, set }
}

pub(super) const fn http_and_upstream(
    name: &'static CStr,
    count: u32,
    set: Set<SrvConf>,
) -> Row<SrvConf> {
    Row { name, kind: NGX_HTTP_MAIN_CONF | NGX_HTTP_UPS_CONF | count, set }
}

/// Adds a command for each row, from number `at` on; gives the number after them.
const fn fill<C>(
    commands: &mut [ngx_command_t],
    mut at: usize,
    rows: &'static [Row<C>],
    conf: usize,
) -> usize {
    let mut row = 0;
    while row < rows.len() {
        commands[at] = command(rows[row].name, rows[row].kind, conf, set_row::<C>);
        commands[at].post = (&raw const rows[row]).cast_mut().cast();
        (at, row) = (at + 1, row + 1);
    }
    at
}

/// nginx compares names up to their NUL.
const fn command(name: &'static CStr, kind: u32, conf: usize, set: Handler) -> ngx_command_t {
    ngx_command_t {
        name: ngx_str_t { len: name.count_bytes(), data: name.as_ptr().cast_mut().cast() },
        type_: kind as ngx_uint_t,
        set: Some(set),
        conf,
        offset: 0,
        post: std::ptr::null_mut(),
    }
}

/// The handler of the directives that have a [`Row`], which is the command's `post`.
extern "C" fn set_row<C>(
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    catch_panic(CONF_ERROR, || {
        // SAFETY: a command of fill(), whose row's configuration `conf` is; nothing else refers to
        // that while a directive handler runs.
        let (row, conf) = unsafe { (&*(*command).post.cast::<Row<C>>(), &mut *conf.cast::<C>()) };
        // SAFETY: `cf` is that of this handler.
        let words = unsafe { ffi::args(cf) };
        let set = |name| (row.set)(&Args { cf, name, words: &words[1..] }, conf);
        finish(cf, text(words[0]).and_then(set))
    })
}

/// Least size of a zone: eight pages hold a handful of instances.
const MIN_ZONE: usize = 128 * 1024;

/// `consul_zone name size`.
fn zone(args: &Args<'_>) -> Parsed<(ngx_str_t, usize)> {
    let (zone, name) = (args.words[0], args.name);
    if zone.is_empty() {
        return Err(format!("empty zone name in \"{name}\" directive"));
    }
    let size = args::size(name, args.words[1])?;
    if size < MIN_ZONE {
        let zone = text(zone)?;
        return Err(format!(
            "zone \"{zone}\" in \"{name}\" directive is too small, it must be at least 128k"
        ));
    }
    Ok((ffi::str_over(zone), size))
}

fn number(name: &str, word: &[u8]) -> Parsed<usize> {
    args::number(name, word, 1).map(|n| n as usize)
}
