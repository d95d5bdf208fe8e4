//! Another balancer that does the picking for a request, behind callbacks of ours.

use std::ffi::c_void;
use std::ptr;

use nginx_sys::{
    ngx_event_free_peer_pt, ngx_event_get_peer_pt, ngx_event_notify_peer_pt,
    ngx_event_save_peer_session_pt, ngx_event_set_peer_session_pt, ngx_http_request_t, ngx_int_t,
    ngx_peer_connection_t, ngx_uint_t,
};

use crate::ffi::{ERROR, OK};

/// What a balancer's `peer.init` sets for a request.
pub(super) struct Delegate {
    callbacks: Callbacks,
}

/// What a `peer.init` sets of a connection. Not all of that, since requests have one in their pool.
struct Callbacks {
    data: *mut c_void,
    get: ngx_event_get_peer_pt,
    free: ngx_event_free_peer_pt,
    notify: ngx_event_notify_peer_pt,
    set_session: ngx_event_set_peer_session_pt,
    save_session: ngx_event_save_peer_session_pt,
    tries: ngx_uint_t,
}

impl Callbacks {
    fn of(pc: &ngx_peer_connection_t) -> Callbacks {
        Callbacks {
            data: pc.data,
            get: pc.get,
            free: pc.free,
            notify: pc.notify,
            set_session: pc.set_session,
            save_session: pc.save_session,
            tries: pc.tries,
        }
    }

    fn put(self, pc: &mut ngx_peer_connection_t) {
        pc.data = self.data;
        pc.get = self.get;
        pc.free = self.free;
        pc.notify = self.notify;
        pc.set_session = self.set_session;
        pc.save_session = self.save_session;
        pc.tries = self.tries;
    }
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
            let before = Callbacks::of(&*peer);
            // Round robin would take what it finds for its own.
            (*peer).data = ptr::null_mut();
            let done = init() == OK;
            let callbacks = Callbacks::of(&*peer);
            before.put(&mut *peer);
            done.then_some(Delegate { callbacks })
        }
    }

    /// Number of tries that the balancer gives the request.
    pub(super) fn tries(&self) -> ngx_uint_t {
        self.callbacks.tries
    }

    /// What the balancer knows of the request.
    pub(super) fn data(&self) -> *mut c_void {
        self.callbacks.data
    }

    /// Whether the balancer wants to be told how the request goes on.
    pub(super) fn wants_notes(&self) -> bool {
        self.callbacks.notify.is_some()
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

    pub(super) fn notify(&self, pc: *mut ngx_peer_connection_t, kind: ngx_uint_t) {
        if let Some(notify) = self.callbacks.notify {
            // SAFETY: as in get().
            unsafe { notify(pc, self.callbacks.data, kind) };
        }
    }
}
