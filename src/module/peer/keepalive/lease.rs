//! A request's dealings with the idle connections: it takes one to the peer that was picked, and leaves
//! its own when it has done.

use std::ptr::NonNull;
use std::rc::Rc;

use nginx_consul_core::idle::Key;
use nginx_consul_core::table::Slot;
use nginx_sys::{
    NGX_DONE, NGX_PEER_FAILED, ngx_current_msec, ngx_exiting, ngx_handle_read_event,
    ngx_http_request_t, ngx_http_upstream_t, ngx_int_t, ngx_peer_connection_t, ngx_terminate,
    ngx_uint_t,
};

use super::connection::{self, Connection};
use super::params::{Wanted, is_tls};
use super::{Keepalive, UpstreamPeer};
use crate::ffi::OK;

/// What a request keeps of connections. It holds nothing that has to be given back.
pub(in super::super) struct Kept {
    /// In the configuration, or in the block that the attempt beside this keeps.
    keepalive: *const Rc<Keepalive>,
    /// Whom the request is with; `None` if its connection is not to be kept.
    key: Option<Key>,
    /// The connection it was given, if one was idle.
    given: Option<NonNull<Connection>>,
}

impl Kept {
    /// Of a request that has no peer yet. `keepalive` stays where it is until the request's end.
    #[inline]
    pub(in super::super) fn new(keepalive: *const Rc<Keepalive>) -> Kept {
        Kept { keepalive, key: None, given: None }
    }

    fn keepalive(&self) -> &'static Rc<Keepalive> {
        // SAFETY: the configuration outlives the request, and the attempt this.
        unsafe { &*self.keepalive }
    }

    /// Counters of the instance that the request is with.
    #[inline]
    fn counters(&self, key: &Key) -> Option<Slot<'static>> {
        let (worker, place) = self.keepalive().worker.get().zip(key.place)?;
        Some(worker.share().table.slot(place))
    }

    /// Another peer is to be picked.
    #[inline]
    pub(in super::super) fn forget(&mut self) {
        (self.key, self.given) = (None, None);
    }

    /// Whether the request was given an idle connection.
    pub(in super::super) fn was_given(&self) -> bool {
        self.given.is_some()
    }

    /// Takes an idle connection to the peer that was picked, if there is one; says to nginx whether
    /// that is so.
    ///
    /// # Safety
    ///
    /// `pc` is the connection of a request, and points at `peer`; `wanted` is what the request wants.
    #[inline(always)]
    pub(in super::super) unsafe fn take(
        &mut self,
        pc: &mut ngx_peer_connection_t,
        peer: &UpstreamPeer<'_>,
        wanted: &Wanted,
    ) -> ngx_int_t {
        let key = match peer {
            UpstreamPeer::Instance(instance) => instance.key(),
            // SAFETY: the caller's promise.
            UpstreamPeer::Server => unsafe { connection::key_of_server(pc) },
        };
        let found = self.keepalive().take(&key, wanted);
        (self.key, self.given) = (Some(key), found);
        let Some(found) = found else { return OK };
        // SAFETY: it was taken out, so it is nobody else's.
        unsafe { connection::hand_out(found, pc) };
        if let Some(counters) = self.counters(&key) {
            counters.note_reused(key.identity);
        }
        NGX_DONE as ngx_int_t
    }

    /// Keeps the request's connection, if it is fit for another request. A new one is what was
    /// `wanted`.
    ///
    /// # Safety
    ///
    /// `pc` is the connection of the request; it leads to `peer`, as when that was taken.
    #[inline(always)]
    pub(in super::super) unsafe fn put(
        &mut self,
        (pc, state): (&mut ngx_peer_connection_t, ngx_uint_t),
        request: *mut ngx_http_request_t,
        peer: &UpstreamPeer<'_>,
        wanted: Option<Wanted>,
    ) {
        let Some(key) = self.key.take() else { return };
        let given = self.given.take();
        // SAFETY: the request's upstream; its connection is fit for others.
        unsafe {
            let u = &*(*request).upstream;
            if given.is_none() {
                self.note_opened(u, &key);
            }
            if !self.is_fit(pc, u, state) || !peer.is_there() {
                return;
            }
            let Some(kept) = given.or_else(|| Connection::new(pc, wanted?)) else { return };
            connection::keep(self.keepalive(), key, kept, pc);
        }
    }

    #[cold]
    fn note_opened(&self, u: &ngx_http_upstream_t, key: &Key) {
        // SAFETY: null, or the state of this attempt.
        let state = unsafe { u.state.as_ref() };
        // nginx's value of a time that never came.
        if state.is_some_and(|state| state.connect_time != usize::MAX) {
            if let Some(counters) = self.counters(key) {
                counters.note_opened(key.identity);
            }
        }
    }

    /// Whether a connection can serve another request: nginx's conditions.
    ///
    /// # Safety
    ///
    /// `pc` and `u` are the request's.
    unsafe fn is_fit(
        &self,
        pc: &ngx_peer_connection_t,
        u: &ngx_http_upstream_t,
        state: ngx_uint_t,
    ) -> bool {
        // SAFETY: the caller's promise; an open connection has its events.
        unsafe {
            let Some(c) = pc.connection.as_ref() else { return false };
            let (read, write) = (&*c.read, &*c.write);
            let keepalive = self.keepalive();
            let is_broken = state & NGX_PEER_FAILED as ngx_uint_t != 0
                || read.eof() != 0
                || read.error() != 0
                || read.timedout() != 0
                || write.error() != 0
                || write.timedout() != 0;
            let is_worn_out = c.requests >= keepalive.requests
                || ngx_current_msec.wrapping_sub(c.start_time) > keepalive.time;
            let is_done = u.keepalive() != 0 && u.request_body_sent() != 0 && u.upgrade() == 0;
            !is_broken
                && !is_worn_out
                && is_done
                && ngx_terminate == 0
                && ngx_exiting == 0
                && has_tls(c) == is_tls(u)
                && !c.pool.is_null()
                && ngx_handle_read_event(c.read, 0) == OK
        }
    }
}

#[cfg(nginx_ssl)]
fn has_tls(c: &nginx_sys::ngx_connection_t) -> bool {
    !c.ssl.is_null()
}

#[cfg(not(nginx_ssl))]
fn has_tls(_: &nginx_sys::ngx_connection_t) -> bool {
    false
}
