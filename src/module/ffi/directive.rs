//! What a directive's handler, and the hooks around the reading of the configuration, get of nginx.

use nginx_sys::{ngx_conf_t, ngx_http_conf_ctx_t, ngx_http_core_loc_conf_t, ngx_http_core_module};

use super::module::conf_of;
use super::text::{bytes, elements};

/// The words of a directive, its name first.
///
/// # Safety
///
/// `cf` is the one nginx passed to the running directive handler; the words live in its pool, as
/// long as the cycle.
pub(crate) unsafe fn args<'a>(cf: *mut ngx_conf_t) -> Vec<&'a [u8]> {
    // SAFETY: while a directive handler runs, `cf.args` is an array of its words.
    let words = unsafe { elements((*cf).args) };
    // SAFETY: the words live in the configuration's pool.
    words.iter().map(|w| unsafe { bytes(w) }).collect()
}

/// The http context a directive handler, or `init_main_conf`, runs in.
///
/// # Safety
///
/// `cf` is the one nginx passed to that function.
pub(crate) unsafe fn http_context<'a>(cf: *mut ngx_conf_t) -> &'a ngx_http_conf_ctx_t {
    // SAFETY: within http{}, `cf.ctx` is an ngx_http_conf_ctx_t that lives as long as the cycle.
    unsafe { &*(*cf).ctx.cast::<ngx_http_conf_ctx_t>() }
}

/// nginx's own configuration of the location that a directive stands in.
///
/// # Safety
///
/// `cf` is the one nginx passed to the handler of a directive that is allowed in `location` only.
pub(crate) unsafe fn location(cf: *mut ngx_conf_t) -> *mut ngx_http_core_loc_conf_t {
    // SAFETY: the caller's promise; each location has a configuration of the core module.
    unsafe { conf_of(http_context(cf).loc_conf, &raw const ngx_http_core_module) }
}
