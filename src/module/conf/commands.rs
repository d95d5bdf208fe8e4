//! The table of directives.

use std::ffi::{CStr, c_char, c_void};

use nginx_sys::{
    NGX_CONF_1MORE, NGX_CONF_ANY, NGX_CONF_NOARGS, NGX_CONF_TAKE1, NGX_CONF_TAKE2, NGX_CONF_TAKE3,
    NGX_CONF_TAKE12, NGX_HTTP_LOC_CONF, NGX_HTTP_LOC_CONF_OFFSET, NGX_HTTP_MAIN_CONF,
    NGX_HTTP_MAIN_CONF_OFFSET, NGX_HTTP_SRV_CONF_OFFSET, NGX_HTTP_UPS_CONF, NGX_LOG_EMERG,
    ngx_command_t, ngx_conf_t, ngx_str_t, ngx_uint_t,
};

use super::args::{self, Parsed, text};
use super::settings::once;
use super::{HttpConf, KeepaliveConf, SrvConf, dynamic};
use crate::ffi::{self, CONF_ERROR, CONF_OK, fence};
use crate::state::StateFile;

type Handler = extern "C" fn(*mut ngx_conf_t, *mut ngx_command_t, *mut c_void) -> *mut c_char;

/// The directives, ended by an empty one.
#[repr(transparent)]
pub(crate) struct Commands([ngx_command_t; 35]);

// SAFETY: nginx reads the table, in the master's main thread; nothing writes it.
unsafe impl Sync for Commands {}

pub(crate) static COMMANDS: Commands = Commands([
    upstream_only(c"consul_dynamic", NGX_CONF_1MORE, consul_dynamic),
    upstream_only(c"consul_keepalive", NGX_CONF_1MORE, consul_keepalive),
    default_or_override(c"consul_server", NGX_CONF_1MORE),
    default_or_override(c"consul_token", NGX_CONF_TAKE1),
    default_or_override(c"consul_token_file", NGX_CONF_TAKE1),
    default_or_override(c"consul_ssl_trusted_certificate", NGX_CONF_TAKE1),
    default_or_override(c"consul_ssl_certificate", NGX_CONF_TAKE1),
    default_or_override(c"consul_ssl_certificate_key", NGX_CONF_TAKE1),
    default_or_override(c"consul_ssl_verify", NGX_CONF_TAKE1),
    default_or_override(c"consul_ssl_name", NGX_CONF_TAKE1),
    default_or_override(c"consul_wait", NGX_CONF_TAKE1),
    default_or_override(c"consul_connect_timeout", NGX_CONF_TAKE1),
    default_or_override(c"consul_retry", NGX_CONF_TAKE2),
    default_or_override(c"consul_poll", NGX_CONF_TAKE1),
    default_or_override(c"consul_resolve", NGX_CONF_TAKE1),
    default_or_override(c"consul_max_body_size", NGX_CONF_TAKE1),
    default_or_override(c"consul_max_stale", NGX_CONF_TAKE1),
    default_or_override(c"consul_empty", NGX_CONF_TAKE1 | NGX_CONF_TAKE2),
    default_or_override(c"consul_max_removal", NGX_CONF_TAKE1),
    default_or_override(c"consul_allow", NGX_CONF_1MORE),
    default_or_override(c"consul_deny", NGX_CONF_1MORE),
    default_or_override(c"consul_balance", NGX_CONF_TAKE1 | NGX_CONF_TAKE2 | NGX_CONF_TAKE3),
    default_or_override(c"consul_panic", NGX_CONF_TAKE1),
    default_or_override(c"consul_allow_service", NGX_CONF_1MORE),
    default_or_override(c"consul_first_wait", NGX_CONF_TAKE1),
    default_or_override(c"consul_idle", NGX_CONF_TAKE1),
    default_or_override(c"consul_unknown_service", NGX_CONF_TAKE12),
    http_only(c"consul_zone", NGX_CONF_TAKE2),
    http_only(c"consul_init_timeout", NGX_CONF_TAKE1),
    http_only(c"consul_connections", NGX_CONF_TAKE1),
    http_only(c"consul_max_services", NGX_CONF_TAKE1),
    http_only(c"consul_state", NGX_CONF_TAKE12),
    command(
        c"consul_status",
        NGX_HTTP_LOC_CONF | NGX_CONF_ANY,
        NGX_HTTP_LOC_CONF_OFFSET,
        crate::status::ngx_http_consul_status,
    ),
    command(
        c"consul_api",
        NGX_HTTP_LOC_CONF | NGX_CONF_NOARGS,
        NGX_HTTP_MAIN_CONF_OFFSET,
        crate::api::ngx_http_consul_api,
    ),
    ngx_command_t::empty(),
]);

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

const fn upstream_only(name: &'static CStr, args: u32, set: Handler) -> ngx_command_t {
    command(name, NGX_HTTP_UPS_CONF | args, NGX_HTTP_SRV_CONF_OFFSET, set)
}

const fn default_or_override(name: &'static CStr, args: u32) -> ngx_command_t {
    let kind = NGX_HTTP_MAIN_CONF | NGX_HTTP_UPS_CONF | args;
    command(name, kind, NGX_HTTP_SRV_CONF_OFFSET, consul_setting)
}

const fn http_only(name: &'static CStr, args: u32) -> ngx_command_t {
    command(name, NGX_HTTP_MAIN_CONF | args, NGX_HTTP_MAIN_CONF_OFFSET, consul_http_setting)
}

/// Reports what a handler found wrong, with file and line.
pub(crate) fn finish(cf: *mut ngx_conf_t, result: Parsed) -> *mut c_char {
    match result {
        Ok(()) => CONF_OK,
        Err(error) => {
            ngx::ngx_conf_log_error!(NGX_LOG_EMERG, cf, "{error}");
            CONF_ERROR
        }
    }
}

extern "C" fn consul_dynamic(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    fence(CONF_ERROR, || {
        // SAFETY: `conf` is the SrvConf of this block; nothing else refers to it now.
        let (conf, words) = unsafe { (&mut *conf.cast::<SrvConf>(), ffi::args(cf)) };
        let result = dynamic::set(cf, conf, &words);
        finish(cf, result.map_err(|e| format!("\"consul_dynamic\" directive {e}")))
    })
}

extern "C" fn consul_keepalive(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    fence(CONF_ERROR, || {
        // SAFETY: as in consul_dynamic().
        let (conf, words) = unsafe { (&mut *conf.cast::<SrvConf>(), ffi::args(cf)) };
        let (file, line) = dynamic::position(cf);
        let parsed = KeepaliveConf::parse(&words, format!("{file}:{line}"));
        finish(cf, parsed.and_then(|p| once("consul_keepalive", &mut conf.keepalive_conf, p)))
    })
}

extern "C" fn consul_setting(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    fence(CONF_ERROR, || {
        // SAFETY: as in consul_dynamic().
        let (conf, words) = unsafe { (&mut *conf.cast::<SrvConf>(), ffi::args(cf)) };
        finish(cf, conf.settings.set(cf, &words))
    })
}

extern "C" fn consul_http_setting(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    fence(CONF_ERROR, || {
        // SAFETY: `conf` is the HttpConf; nothing else refers to it now.
        let (conf, words) = unsafe { (&mut *conf.cast::<HttpConf>(), ffi::args(cf)) };
        finish(cf, set_http(cf, conf, &words))
    })
}

/// Least size of a zone: eight pages hold a handful of instances.
const MIN_ZONE: usize = 128 * 1024;

fn set_http(cf: *mut ngx_conf_t, conf: &mut HttpConf, words: &[&[u8]]) -> Parsed {
    let name = text(words[0])?;
    match name {
        "consul_zone" => {
            if words[1].is_empty() {
                return Err(format!("empty zone name in \"{name}\" directive"));
            }
            let size = args::size(name, words[2])?;
            if size < MIN_ZONE {
                return Err(format!(
                    "zone \"{}\" in \"{name}\" directive is too small, it must be at least 128k",
                    text(words[1])?
                ));
            }
            once(name, &mut conf.zone, (ffi::str_over(words[1]), size))
        }
        "consul_init_timeout" => once(name, &mut conf.init_timeout, args::time(name, words[1])?),
        "consul_connections" => {
            let n = args::number(name, words[1], 1)?;
            once(name, &mut conf.connections, n as usize)
        }
        "consul_max_services" => {
            let n = args::number(name, words[1], 1)?;
            once(name, &mut conf.max_services, n as usize)
        }
        "consul_state" => once(name, &mut conf.state, StateFile::parse(cf, words)?),
        _ => Err(format!("unknown directive \"{name}\"")),
    }
}
