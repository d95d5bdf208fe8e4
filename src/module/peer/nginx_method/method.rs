//! A load balancing method of nginx that stands before `consul_dynamic`.

use nginx_sys::{ngx_conf_t, ngx_http_upstream_srv_conf_t, ngx_int_t};

/// `peer.init_upstream` of a load balancing method.
pub(crate) type InitUpstream =
    unsafe extern "C" fn(*mut ngx_conf_t, *mut ngx_http_upstream_srv_conf_t) -> ngx_int_t;

/// The method that picks in place of `consul_balance`.
#[derive(Clone)]
pub(crate) struct NginxMethod {
    pub(crate) init: InitUpstream,
    /// Its lines in the configuration, for messages.
    pub(crate) name: String,
}
