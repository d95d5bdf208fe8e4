//! This module as nginx knows it, and what modules keep in nginx's configurations.

use std::ffi::c_void;

use nginx_sys::{ngx_http_upstream_srv_conf_t, ngx_module_t};

unsafe extern "C" {
    // Defined in lib.rs, on top of everything; nginx's own modules name each other so too.
    static mut ngx_http_consul_module: ngx_module_t;
}

/// The module itself, as nginx has it.
#[inline]
pub(crate) fn module() -> *mut ngx_module_t {
    &raw mut ngx_http_consul_module
}

/// A module's configuration in one of the three lists of an http context.
///
/// # Safety
///
/// `list` is `main_conf`, `srv_conf` or `loc_conf` of a context of the running configuration and
/// `T` is what the module keeps there.
#[inline(always)]
pub(crate) unsafe fn conf_of<T>(list: *mut *mut c_void, module: *const ngx_module_t) -> *mut T {
    // SAFETY: nginx has set ctx_index of every http module before a context exists, and each of its
    // lists has an element for every http module.
    unsafe { (*list.add((*module).ctx_index)).cast() }
}

/// What this module keeps in `main_conf`.
///
/// # Safety
///
/// Its `create_main_conf` makes an initialized `Self`.
pub(crate) unsafe trait HttpMainConf {}

/// What this module keeps in the `srv_conf` of an `upstream`.
///
/// # Safety
///
/// Its `create_srv_conf` makes a struct that begins with an initialized `Self`.
pub(crate) unsafe trait HttpSrvConf {}

/// The module's configuration of an `upstream` block.
///
/// # Safety
///
/// `us` is an explicit block of a configuration that lives as long as `'a`. While that is read, by one
/// thread, nobody else holds a mutable reference to it.
#[inline(always)]
pub(crate) unsafe fn srv_conf<'a, T: HttpSrvConf>(us: *mut ngx_http_upstream_srv_conf_t) -> &'a T {
    // SAFETY: the caller's promise, and that of HttpSrvConf.
    unsafe { &*conf_of((*us).srv_conf, module()) }
}

/// What this module keeps in `loc_conf`.
///
/// # Safety
///
/// Its `create_loc_conf` makes an initialized `Self`.
pub(crate) unsafe trait HttpLocConf {}
