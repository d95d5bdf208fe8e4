//! Another balancer that does the picking for a request, behind callbacks of ours.

use std::ptr;

use nginx_sys::{ngx_http_request_t, ngx_int_t, ngx_peer_connection_t, ngx_uint_t};

use crate::ffi::{ERROR, OK};

/// What a balancer's `peer.init` sets for a request.
pub(super) struct Delegate {
    callbacks: ngx_peer_connection_t,
}

/// Copies what a `peer.init` sets from one connection to another.
fn copy_callbacks(from: &ngx_peer_connection_t, to: &mut ngx_peer_connection_t) {
    to.data = from.data;
    to.get = from.get;
    to.free = from.free;
    to.notify = from.notify;
    to.set_session = from.set_session;
    to.save_session = from.save_session;
    to.tries = from.tries;
}

impl Delegate {
    /// Runs a `peer.init` and takes what it sets; the connection's own callbacks stay.
    /// `None` if it fails.
    ///
    /// # Safety
    ///
    /// `r` is a request with an upstream; what `init` sets lives as long as the request.
    pub(super) unsafe fn new(
        r: *mut ngx_http_request_t,
        init: impl FnOnce() -> ngx_int_t,
    ) -> Option<Delegate> {
        // SAFETY: the caller's promise. No reference is held while `init` writes the connection.
        unsafe {
            let peer = &raw mut (*(*r).upstream).peer;
            let before = *peer;
            // Round robin would take what it finds for its own.
            (*peer).data = ptr::null_mut();
            let done = init() == OK;
            let callbacks = *peer;
            copy_callbacks(&before, &mut *peer);
            done.then_some(Delegate { callbacks })
        }
    }

    /// Each of these takes the connection that nginx passes to the callback of the same name.
    pub(super) fn get(&self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        // SAFETY: the callback and its data are of one balancer, for this request.
        self.callbacks.get.map_or(ERROR, |get| unsafe { get(pc, self.callbacks.data) })
    }

    pub(super) fn free(&self, pc: *mut ngx_peer_connection_t, state: ngx_uint_t) {
        if let Some(free) = self.callbacks.free {
            // SAFETY: as in get().
            unsafe { free(pc, self.callbacks.data, state) };
        }
    }

    pub(super) fn set_session(&self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        // SAFETY: as in get().
        self.callbacks.set_session.map_or(OK, |set| unsafe { set(pc, self.callbacks.data) })
    }

    pub(super) fn save_session(&self, pc: *mut ngx_peer_connection_t) {
        if let Some(save) = self.callbacks.save_session {
            // SAFETY: as in get().
            unsafe { save(pc, self.callbacks.data) };
        }
    }
}
