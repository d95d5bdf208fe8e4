//! Another balancer that picks for a request, behind our callbacks.

use std::ffi::c_void;
use std::ptr;

use nginx_sys::{
    ngx_event_free_peer_pt, ngx_event_get_peer_pt, ngx_event_notify_peer_pt,
    ngx_event_save_peer_session_pt, ngx_event_set_peer_session_pt, ngx_http_request_t, ngx_int_t,
    ngx_peer_connection_t, ngx_uint_t,
};

use crate::ffi::{ERROR, OK};

/// The callbacks that a balancer's `peer.init` sets for a request, and their data. Not a copy of the
/// whole connection: that is larger, and each request has one.
pub(super) struct Delegate {
    data: *mut c_void,
    get: ngx_event_get_peer_pt,
    free: ngx_event_free_peer_pt,
    notify: ngx_event_notify_peer_pt,
    set_session: ngx_event_set_peer_session_pt,
    save_session: ngx_event_save_peer_session_pt,
}

impl Delegate {
    #[inline]
    fn of(pc: &ngx_peer_connection_t) -> Delegate {
        Delegate {
            data: pc.data,
            get: pc.get,
            free: pc.free,
            notify: pc.notify,
            set_session: pc.set_session,
            save_session: pc.save_session,
        }
    }

    /// Runs a `peer.init` and takes what it sets; `None` if it fails. The caller sets the connection's
    /// callbacks again.
    ///
    /// # Safety
    ///
    /// `r` is a request with an upstream; what `init` sets lives as long as the request.
    #[inline]
    pub(super) unsafe fn take(
        r: *mut ngx_http_request_t,
        init: impl FnOnce() -> ngx_int_t,
    ) -> Option<Delegate> {
        // SAFETY: the caller's promise.
        let peer = unsafe { &raw mut (*(*r).upstream).peer };
        // Round robin would take what it finds for its own.
        // SAFETY: as above.
        unsafe { (*peer).data = ptr::null_mut() };
        // SAFETY: as above; `init` has returned, and nobody else writes the connection now.
        (init() == OK).then(|| Delegate::of(unsafe { &*peer }))
    }

    /// As [`Delegate::take`], but the connection's own callbacks stay.
    ///
    /// # Safety
    ///
    /// As there.
    pub(super) unsafe fn new(
        r: *mut ngx_http_request_t,
        init: impl FnOnce() -> ngx_int_t,
    ) -> Option<Delegate> {
        // SAFETY: the caller's promise.
        let peer = unsafe { &raw mut (*(*r).upstream).peer };
        // SAFETY: as above.
        let before = unsafe { *peer };
        // SAFETY: as above.
        let taken = unsafe { Delegate::take(r, init) };
        // SAFETY: as above.
        unsafe { *peer = before };
        taken
    }

    /// Whether the balancer wants to be told how the request goes on.
    pub(super) fn wants_notes(&self) -> bool {
        self.notify.is_some()
    }

    /// Each of these takes the connection that nginx passes to the callback of the same name.
    pub(super) fn get(&self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        // SAFETY: the callback and its data are of one balancer, for this request.
        self.get.map_or(ERROR, |get| unsafe { get(pc, self.data) })
    }

    pub(super) fn free(&self, pc: *mut ngx_peer_connection_t, state: ngx_uint_t) {
        if let Some(free) = self.free {
            // SAFETY: as in get().
            unsafe { free(pc, self.data, state) };
        }
    }

    pub(super) fn set_session(&self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        // SAFETY: as in get().
        self.set_session.map_or(OK, |set| unsafe { set(pc, self.data) })
    }

    pub(super) fn save_session(&self, pc: *mut ngx_peer_connection_t) {
        if let Some(save) = self.save_session {
            // SAFETY: as in get().
            unsafe { save(pc, self.data) };
        }
    }

    pub(super) fn notify(&self, pc: *mut ngx_peer_connection_t, kind: ngx_uint_t) {
        if let Some(notify) = self.notify {
            // SAFETY: as in get().
            unsafe { notify(pc, self.data, kind) };
        }
    }
}
