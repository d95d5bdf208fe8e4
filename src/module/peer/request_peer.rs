//! Whom a request went to, for variables.
//!
//! What a balancer keeps of a request is in `peer.data`, or behind what others put there
//! (`keepalive`), and an internal redirect clears the contexts of modules. So it is found by what
//! the request's pool has to drop: requests that use no variable pay nothing for them.

use std::fmt;

use nginx_consul_core::table::PeerMetadata;
use nginx_sys::ngx_http_request_t;

use super::attempt::{Attempt, cell};
use super::clock::now;
use super::upstream::Upstream;
use super::view::PeerView;

/// Where the last attempt of a request went.
pub(crate) struct RequestPeer<'a> {
    block: &'a Upstream,
    /// What the request picked from.
    view: &'a PeerView,
    /// The peer, by its number in that view; `None` if there was none to pick.
    peer: Option<usize>,
}

/// What the pool has of the request, the newest.
///
/// # Safety
///
/// `r` is a valid request.
unsafe fn find(r: *mut ngx_http_request_t) -> Option<*mut Attempt> {
    // SAFETY: the pool's list of what it has to clean up. Subrequests share the pool.
    unsafe {
        let mut cleanup = (*(*r).pool).cleanup;
        while let Some(entry) = cleanup.as_ref() {
            cleanup = entry.next;
            if let Some(attempt) = cell::attempt_of(entry).filter(|&found| (*found).request == r) {
                return Some(attempt);
            }
        }
    }
    None
}

/// nginx has accepted the response header of a request to a block.
///
/// # Safety
///
/// `r` is a valid request, and no callback of a balancer is running for it.
pub(super) unsafe fn note_header(r: *mut ngx_http_request_t) {
    // SAFETY: the caller's promise, so that nobody else uses the attempt.
    unsafe {
        if let Some(attempt) = find(r) {
            (*attempt).note_header();
        }
    }
}

impl<'a> RequestPeer<'a> {
    /// `None` if the request was sent to no service, or was last sent elsewhere.
    ///
    /// # Safety
    ///
    /// `r` is a valid request; what is found lives as long as its pool.
    pub(crate) unsafe fn of(r: *mut ngx_http_request_t) -> Option<RequestPeer<'a>> {
        // SAFETY: the caller's promise. nginx keeps the request's last upstream, and in it the block
        // that it was sent to.
        unsafe {
            let upstream = (*r).upstream.as_ref()?.upstream;
            let attempt = &*find(r)?;
            let (block, view, peer) = attempt.served()?;
            (attempt.upstream == upstream).then_some(RequestPeer { block, view, peer })
        }
    }

    /// The service that the request was sent to; empty if it named none.
    pub(crate) fn service(&self) -> &'a str {
        &self.block.service
    }

    /// The set that the peer is from, or the first one.
    fn set(&self) -> usize {
        let place = self.peer.and_then(|peer| self.view.peers().position_in_set(peer));
        place.map_or(0, |(set, _)| set)
    }

    /// The generation of the set that the peer was picked from.
    pub(crate) fn generation(&self) -> Option<u64> {
        self.view.peers().generations().get(self.set()).copied()
    }

    /// How long ago Consul's last good answer for the peer's set came.
    pub(crate) fn age(&self) -> Option<Age> {
        let at_ms = self.block.last_good_ms(self.set())?;
        Some(Age(now().millis.saturating_sub(at_ms)))
    }

    /// What is told of the peer.
    pub(crate) fn labels(&self) -> Option<&'a PeerMetadata> {
        let (set, number) = self.view.peers().position_in_set(self.peer?)?;
        self.block.labels(self.view, set)?.get(number)
    }

    /// The datacenter that the configuration names for the peer's set.
    pub(crate) fn datacenter(&self) -> Option<&'a str> {
        self.peer?;
        self.block.sources().get(self.set())?.datacenter.as_deref()
    }
}

/// A time in milliseconds, as nginx writes `$request_time`.
pub(crate) struct Age(u64);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}
