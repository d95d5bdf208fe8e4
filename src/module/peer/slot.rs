//! What requests find through the `srv_conf` of their upstream.

use std::cell::{Cell, OnceCell};
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::AtomicPtr;

use nginx_sys::{
    ngx_http_request_t, ngx_http_upstream_rr_peers_t, ngx_http_upstream_srv_conf_t, ngx_int_t,
    ngx_peer_connection_t, sockaddr,
};

use super::on_demand::OnDemandUpstream;
use super::upstream::Upstream;
use super::worker::Interval;
use crate::ffi::{HttpSrvConf, srv_conf};

/// The beginning of the module's configuration of an `upstream`; that of one without
/// `consul_dynamic`, and of `http`, stays empty. nginx does likewise: the data of its round robin
/// must be the first member of what a balancer keeps.
pub(crate) struct Slot {
    /// With `consul_dynamic`, and a service that the configuration names.
    pub(crate) upstream: Option<Box<Upstream>>,
    /// With `consul_dynamic`, and a service that requests name.
    pub(crate) on_demand: Option<Box<OnDemandUpstream>>,
    /// What our `init_upstream` has made of the `server` lines; null if nginx has not called it,
    /// because another method has replaced it.
    pub(crate) servers: Cell<*mut ngx_http_upstream_rr_peers_t>,
    /// The directive that has put another module's callbacks around ours, for messages.
    pub(crate) wrapped_by: Option<String>,
    /// With another module's callbacks around ours.
    pub(super) guard: OnceCell<Guard>,
}

/// `peer.init`.
pub(super) type InitPeer =
    unsafe extern "C" fn(*mut ngx_http_request_t, *mut ngx_http_upstream_srv_conf_t) -> ngx_int_t;

/// `peer.get`.
pub(super) type GetPeer =
    unsafe extern "C" fn(*mut ngx_peer_connection_t, *mut c_void) -> ngx_int_t;

/// Another module's callbacks around ours.
pub(super) struct Guard {
    pub(super) init: InitPeer,
    /// What `init` sets for requests; known from the first one.
    pub(super) get: OnceCell<GetPeer>,
    /// The module and the upstream, for messages.
    pub(super) module: String,
    pub(super) upstream: String,
    /// When a refused request was last logged.
    pub(super) logged: Interval,
}

/// The request that has reached our `peer.init` last.
pub(super) static LAST_INIT: AtomicPtr<ngx_http_request_t> = AtomicPtr::new(ptr::null_mut());

/// The address that our `peer.get` has picked last.
pub(super) static LAST_PICK: AtomicPtr<sockaddr> = AtomicPtr::new(ptr::null_mut());

impl Default for Slot {
    fn default() -> Slot {
        Slot {
            upstream: None,
            on_demand: None,
            servers: Cell::new(ptr::null_mut()),
            wrapped_by: None,
            guard: OnceCell::new(),
        }
    }
}

// SAFETY: `conf` checks that what it keeps there begins with a slot.
unsafe impl HttpSrvConf for Slot {}

impl Slot {
    /// That of an upstream; `None` if nginx has made it for an address of `proxy_pass`: such a one has
    /// no configurations of modules.
    ///
    /// # Safety
    ///
    /// As of [`srv_conf`], but `us` may be any upstream.
    pub(crate) unsafe fn find<'a>(us: *mut ngx_http_upstream_srv_conf_t) -> Option<&'a Slot> {
        // SAFETY: the caller's promise.
        let has_conf = unsafe { !(*us).srv_conf.is_null() };
        // SAFETY: as above.
        has_conf.then(|| unsafe { srv_conf(us) })
    }
}
