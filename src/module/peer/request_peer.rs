//! The peer that a request went to, for variables.

use std::fmt;

use nginx_consul_core::clock::age;
use nginx_consul_core::table::PeerMetadata;
use nginx_sys::ngx_http_request_t;

use super::attempt::Attempt;
use super::callbacks::find_attempt;
use super::worker::monotonic;

/// Where the last attempt of a request went.
pub(crate) struct RequestPeer<'a> {
    attempt: &'a Attempt,
    /// The peer, by its number in the view that it was picked from; `None` if there was none to pick.
    peer: Option<usize>,
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
        let us = unsafe { (*r).upstream.as_ref()?.upstream };
        // SAFETY: the caller's promise.
        let attempt = unsafe { find_attempt(r)? };
        let peer = attempt.last_instance()?;
        (attempt.us == us).then_some(RequestPeer { attempt, peer })
    }

    /// The service that the request was sent to; empty if it named none.
    pub(crate) fn service(&self) -> &'a str {
        self.attempt.upstream().service()
    }

    /// The set that the peer is from and its number there.
    fn place(&self) -> Option<(usize, usize)> {
        self.attempt.view().peers().position_in_set(self.peer?)
    }

    /// The set that the peer is from, or the first one.
    fn set(&self) -> usize {
        self.place().map_or(0, |(set, _)| set)
    }

    /// The generation of the set that the peer was picked from.
    pub(crate) fn generation(&self) -> Option<u64> {
        self.attempt.view().peers().generations().get(self.set()).copied()
    }

    /// How long ago Consul's last good answer for the peer's set came.
    pub(crate) fn age(&self) -> Option<Age> {
        let at = self.attempt.upstream().last_good(self.set())?;
        Some(Age(age(at, monotonic())))
    }

    /// The peer's names, tags and metadata.
    pub(crate) fn labels(&self) -> Option<&'a PeerMetadata> {
        let (set, number) = self.place()?;
        self.attempt.upstream().labels(self.attempt.view(), set)?.get(number)
    }

    /// The datacenter that the configuration names for the peer's set.
    pub(crate) fn datacenter(&self) -> Option<&'a str> {
        self.peer?;
        self.attempt.upstream().sets().get(self.set())?.datacenter.as_deref()
    }
}

/// A time in milliseconds, as nginx writes `$request_time`.
pub(crate) struct Age(u64);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}
