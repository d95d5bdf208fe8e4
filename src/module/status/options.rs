//! What a `location` says of its status.

use nginx_consul_core::status::ready::Demand;
use nginx_sys::ngx_http_request_t;

use crate::ffi;

/// The module's configuration of a `location`.
#[derive(Default)]
pub(crate) struct LocationOptions {
    /// `consul_status`.
    pub(crate) status: Option<Metrics>,
    /// `consul_status ready`.
    pub(crate) ready: Option<Demand>,
}

/// `metrics=`: what Prometheus gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Metrics {
    /// Nothing for each peer: as many series as the configuration has services.
    Service,
    /// Also some for each peer.
    #[default]
    Peer,
}

impl LocationOptions {
    /// Those of the location that serves a request.
    ///
    /// # Safety
    ///
    /// `r` is a valid request, which lives as long as `'a`.
    pub(crate) unsafe fn of<'a>(r: *mut ngx_http_request_t) -> &'a LocationOptions {
        // SAFETY: nginx keeps what create_loc_conf made; the configuration outlives its requests.
        unsafe { &*ffi::conf_of((*r).loc_conf, ffi::module()) }
    }
}
