//! A request's connection to a peer: one from the pool, if there is one, and left in the pool when the
//! request has done with it.

use std::cell::Cell;
use std::ptr::NonNull;
use std::rc::Rc;

use nginx_consul_core::idle::PeerKey;
use nginx_consul_core::table::{PeerCounters, PeerRecord};
use nginx_sys::{
    NGX_DONE, NGX_PEER_FAILED, ngx_handle_read_event, ngx_http_request_t, ngx_http_upstream_t,
    ngx_int_t, ngx_peer_connection_t, ngx_terminate, ngx_uint_t,
};

use super::super::set::{PeerSets, PeerView};
use super::super::worker::Worker;
use super::connection::{self, Connection};
use super::params::{ConnParams, is_tls};
use super::pool::{self, Keepalive, SERVERS};
use super::sweeper;
use crate::ffi::bits::{event, upstream};
use crate::ffi::{OK, process};

/// The peer that a request is with.
pub(crate) enum UpstreamPeer<'a> {
    Instance(InstanceRef<'a>),
    /// One of the upstream's `server` lines.
    Server,
}

/// The instance that a request is with.
pub(crate) struct InstanceRef<'a> {
    pub(crate) sets: &'a PeerSets,
    pub(crate) view: &'a PeerView,
    pub(crate) record: &'a PeerRecord,
}

/// What a request has of connections. It holds nothing that has to be given back.
#[derive(Default)]
pub(crate) struct Lease(Cell<Option<Leased>>);

/// A connection that is to be left in the pool.
#[derive(Clone, Copy)]
struct Leased {
    /// The peer that it leads to.
    key: PeerKey,
    /// The idle connection that the request was given; `None` if it has opened its own.
    given: Option<NonNull<Connection>>,
}

impl Lease {
    /// Another peer is to be picked.
    #[inline]
    pub(crate) fn forget(&self) {
        self.0.set(None);
    }

    /// Whether the request was given an idle connection.
    pub(crate) fn was_given(&self) -> bool {
        self.0.get().is_some_and(|leased| leased.given.is_some())
    }

    /// Takes an idle connection to the peer that was picked, if there is one; says to nginx whether
    /// that is so.
    ///
    /// # Safety
    ///
    /// `pc` is the connection of a request, and points at `peer`; it needs one with `params`.
    #[inline(always)]
    pub(crate) unsafe fn take(
        &self,
        keepalive: &Keepalive,
        pc: &mut ngx_peer_connection_t,
        peer: &UpstreamPeer<'_>,
        params: &ConnParams,
    ) -> ngx_int_t {
        let key = match peer {
            UpstreamPeer::Instance(instance) => instance.key(),
            UpstreamPeer::Server => {
                // SAFETY: the caller's promise.
                let identity = unsafe { connection::hash_of_server(pc) };
                PeerKey { owner: SERVERS, slot: None, identity, address: 0 }
            }
        };
        let found = keepalive.take(&key, params);
        self.0.set(Some(Leased { key, given: found }));
        let Some(found) = found else { return OK };
        // SAFETY: it was taken out, so it is nobody else's.
        unsafe { found.as_ref().attach(pc) };
        if let Some(counters) = counters(keepalive, &key) {
            counters.note_reused(key.identity);
        }
        NGX_DONE as ngx_int_t
    }

    /// Leaves the request's connection in the pool, if it is fit for another request. `params` are
    /// those of a new one.
    ///
    /// # Safety
    ///
    /// `pc` is the connection of the request; it leads to `peer`, as when that was taken.
    #[inline(always)]
    pub(crate) unsafe fn put(
        &self,
        (keepalive, worker): (&Rc<Keepalive>, Option<Worker>),
        (pc, state): (&mut ngx_peer_connection_t, ngx_uint_t),
        request: *mut ngx_http_request_t,
        (peer, params): (&UpstreamPeer<'_>, Option<ConnParams>),
    ) {
        let Some(Leased { key, given }) = self.0.take() else { return };
        // SAFETY: the request's upstream.
        let u = unsafe { &*(*request).upstream };
        if given.is_none() {
            note_opened(keepalive, u, &key);
        }
        // SAFETY: the caller's promise.
        if !unsafe { is_fit(keepalive, pc, u, state) } || !peer.is_present(worker) {
            return;
        }
        // SAFETY: the request has done with its connection.
        let new = || params.and_then(|params| unsafe { Connection::new(pc, params) });
        let Some(idle) = given.or_else(new) else { return };
        // SAFETY: as above.
        unsafe { keepalive.put(key, idle, pc) };
        if !keepalive.is_watched.get() {
            sweeper::watch(keepalive);
        }
    }
}

/// Counters of the instance that a request is with.
#[inline]
fn counters(keepalive: &Keepalive, key: &PeerKey) -> Option<PeerCounters<'static>> {
    let (worker, slot) = keepalive.worker.get().zip(key.slot)?;
    Some(worker.table().peer_counters(slot))
}

#[cold]
fn note_opened(keepalive: &Keepalive, u: &ngx_http_upstream_t, key: &PeerKey) {
    // SAFETY: null, or the state of this attempt.
    let state = unsafe { u.state.as_ref() };
    // nginx's value of a time that never came.
    if state.is_some_and(|state| state.connect_time != usize::MAX) {
        if let Some(counters) = counters(keepalive, key) {
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
    keepalive: &Keepalive,
    pc: &ngx_peer_connection_t,
    u: &ngx_http_upstream_t,
    state: ngx_uint_t,
) -> bool {
    // SAFETY: null, or an open connection.
    let Some(c) = (unsafe { pc.connection.as_ref() }) else { return false };
    // SAFETY: an open connection has its two events.
    let is_broken = unsafe {
        event::EOF.get(c.read)
            || event::ERROR.get(c.read)
            || event::TIMEDOUT.get(c.read)
            || event::ERROR.get(c.write)
            || event::TIMEDOUT.get(c.write)
    };
    let has_failed = state & NGX_PEER_FAILED as ngx_uint_t != 0;
    // SAFETY: nginx's own flag, read in the event loop.
    let is_ending = unsafe { ngx_terminate != 0 } || process::is_exiting();
    let now = process::current_msec();
    let is_worn_out =
        c.requests >= keepalive.requests || now.wrapping_sub(c.start_time) > keepalive.time;
    // SAFETY: nginx has made the upstream, for a request of this worker.
    let is_done = unsafe {
        upstream::KEEPALIVE.get(u)
            && upstream::REQUEST_BODY_SENT.get(u)
            && !upstream::UPGRADE.get(u)
    };
    // SAFETY: the event of an open connection.
    let watch = || unsafe { ngx_handle_read_event(c.read, 0) == OK };
    !has_failed
        && !is_broken
        && !is_worn_out
        && is_done
        && !is_ending
        && has_tls(c) == is_tls(u)
        && !c.pool.is_null()
        && watch()
}

#[cfg(nginx_ssl)]
fn has_tls(c: &nginx_sys::ngx_connection_t) -> bool {
    !c.ssl.is_null()
}

#[cfg(not(nginx_ssl))]
fn has_tls(_: &nginx_sys::ngx_connection_t) -> bool {
    false
}

impl UpstreamPeer<'_> {
    /// Whether connections to the peer are still worth keeping.
    #[inline]
    fn is_present(&self, worker: Option<Worker>) -> bool {
        match (self, worker) {
            (UpstreamPeer::Instance(instance), Some(worker)) => instance.is_present(worker),
            (UpstreamPeer::Instance(_), None) => false,
            (UpstreamPeer::Server, _) => true,
        }
    }
}

impl InstanceRef<'_> {
    #[inline]
    fn key(&self) -> PeerKey {
        pool::key(pool::owner(self.sets), self.record)
    }

    /// Whether the instance is still in the set, with the same address.
    #[inline(always)]
    fn is_present(&self, worker: Worker) -> bool {
        if self.sets.is_present(worker, self.view) {
            return pool::is_wanted(self.record);
        }
        self.is_in_present_view(worker)
    }

    #[cold]
    fn is_in_present_view(&self, worker: Worker) -> bool {
        let Some(present) = self.sets.view(worker) else { return false };
        let own = self.record;
        let same = |record: &&PeerRecord| record.owner == own.owner && record.has_address_of(own);
        present.peers().records().iter().find(same).is_some_and(pool::is_wanted)
    }
}
