//! What the configuration says of the picks of an upstream.

use std::ptr::NonNull;

use nginx_consul_core::balance::{Method, ServerParams};
use nginx_sys::ngx_http_complex_value_t;

/// What the configuration says of the picks of an upstream.
#[derive(Clone, Copy, Default)]
pub(crate) struct Options {
    pub(crate) balance: Balance,
    /// Parameters of peers that have none of their own.
    pub(crate) rules: ServerParams,
    /// `consul_panic`, percent.
    pub(crate) panic: Option<u8>,
    /// The upstream has `server` lines to fall back on.
    pub(crate) has_fallback: bool,
}

/// `consul_balance`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Balance {
    pub(crate) method: Method,
    /// Of `hash`: in the pool of the configuration.
    pub(crate) key: Option<NonNull<ngx_http_complex_value_t>>,
}
