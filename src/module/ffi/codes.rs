//! nginx's return codes, as its functions have them.

use std::ffi::c_char;
use std::ptr;

use nginx_sys::ngx_int_t;

pub(crate) const OK: ngx_int_t = nginx_sys::NGX_OK as ngx_int_t;
pub(crate) const ERROR: ngx_int_t = nginx_sys::NGX_ERROR as ngx_int_t;
pub(crate) const AGAIN: ngx_int_t = nginx_sys::NGX_AGAIN as ngx_int_t;
pub(crate) const DECLINED: ngx_int_t = nginx_sys::NGX_DECLINED as ngx_int_t;
pub(crate) const DONE: ngx_int_t = nginx_sys::NGX_DONE as ngx_int_t;
pub(crate) const INTERNAL_SERVER_ERROR: ngx_int_t =
    nginx_sys::NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;

/// `NGX_CONF_OK`.
pub(crate) const CONF_OK: *mut c_char = ptr::null_mut();
/// `NGX_CONF_ERROR`.
pub(crate) const CONF_ERROR: *mut c_char = ptr::without_provenance_mut(usize::MAX);
