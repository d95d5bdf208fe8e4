//! Whom a request went to, for variables.
//!
//! What a balancer keeps of a request is in `peer.data`, or behind what others put there
//! (`keepalive`), and an internal redirect clears the contexts of modules. So it is found by what
//! the request's pool has to drop: requests that use no variable pay nothing for them.

use std::ffi::c_void;
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use nginx_consul_core::table::Detail;
use nginx_sys::{ngx_http_request_t, ngx_http_upstream_srv_conf_t};

use super::block::Block;
use super::clock::now;
use super::stock::attempt_of;
use super::view::PeerView;
use super::{Attempt, StockAttempt};
use crate::ffi::drop_value;

/// Where the last attempt of a request went.
pub(crate) struct Served<'a> {
    pub(super) block: &'a Block,
    /// What the request picked from; `None` if there never was anything.
    pub(super) view: Option<&'a PeerView>,
    /// The peer, by its number in that view; `None` if there was none to pick.
    pub(super) peer: Option<(&'a PeerView, usize)>,
}

/// A request on its way to a block.
pub(super) struct Way {
    pub(super) request: *mut ngx_http_request_t,
    pub(super) upstream: *mut ngx_http_upstream_srv_conf_t,
}

/// Drops an [`Attempt`]. No other function does the same, so its address says what is dropped.
///
/// # Safety
///
/// `data` is where an attempt, or what begins with one, is; the pool calls this once.
pub(super) unsafe extern "C" fn drop_attempt(data: *mut c_void) {
    // SAFETY: registered with an attempt, and called once.
    unsafe { drop_value::<Attempt>(data) };
}

/// The request whose method of nginx's is picking.
static BUSY: AtomicPtr<ngx_http_request_t> = AtomicPtr::new(ptr::null_mut());

/// As long as this lives, variables tell nothing of the request: its attempt is being changed, and
/// the method may well use a variable.
pub(super) struct Busy;

impl Busy {
    #[inline]
    pub(super) fn new(r: *mut ngx_http_request_t) -> Busy {
        BUSY.store(r, Relaxed);
        Busy
    }
}

impl std::ops::Drop for Busy {
    #[inline]
    fn drop(&mut self) {
        BUSY.store(ptr::null_mut(), Relaxed);
    }
}

/// What the pool of a request keeps of one of its ways.
enum Kept<'a> {
    Own(&'a mut Attempt),
    Stock(&'a mut StockAttempt),
}

/// Looks at what the pool has of the request, the newest first, until `take` takes one.
///
/// # Safety
///
/// `r` is a valid request, and no callback of a balancer is running for it.
unsafe fn find<'a, T>(
    r: *mut ngx_http_request_t,
    mut take: impl FnMut(Kept<'a>, Way) -> Option<T>,
) -> Option<T> {
    // SAFETY: the pool's list of what it has to clean up; `data` is what the handler was registered
    // with. Subrequests share the pool.
    unsafe {
        let mut cleanup = (*(*r).pool).cleanup;
        while let Some(entry) = cleanup.as_ref() {
            cleanup = entry.next;
            let Some(handler) = entry.handler else { continue };
            let (kept, way) = if ptr::fn_addr_eq(handler, DROP_ATTEMPT) {
                let attempt = &mut *entry.data.cast::<Attempt>();
                let way = Way { request: attempt.request, upstream: attempt.upstream };
                (Kept::Own(attempt), way)
            } else if let Some(attempt) = attempt_of(entry) {
                let way = attempt.way();
                (Kept::Stock(attempt), way)
            } else {
                continue;
            };
            if way.request == r {
                if let Some(taken) = take(kept, way) {
                    return Some(taken);
                }
            }
        }
    }
    None
}

type DropFn = unsafe extern "C" fn(*mut c_void);
const DROP_ATTEMPT: DropFn = drop_attempt;

/// The request goes to a `server` line from here on, and nothing of it is kept.
///
/// # Safety
///
/// `r` is a valid request.
#[cold]
pub(super) unsafe fn forget(r: *mut ngx_http_request_t) {
    let disown = |kept: Kept<'_>, _: Way| {
        match kept {
            Kept::Own(attempt) => attempt.request = ptr::null_mut(),
            Kept::Stock(attempt) => attempt.disown(),
        }
        None::<()>
    };
    // SAFETY: the caller's promise; peer.init is no callback of an attempt.
    unsafe { find(r, disown) };
}

/// nginx has accepted the response header of a request to a block.
///
/// # Safety
///
/// `r` is a valid request, and no callback of a balancer is running for it.
pub(super) unsafe fn note_header(r: *mut ngx_http_request_t) {
    let newest = |kept: Kept<'_>, _: Way| {
        match kept {
            Kept::Own(attempt) => attempt.note_header(),
            Kept::Stock(attempt) => attempt.note_header(),
        }
        Some(())
    };
    // SAFETY: the caller's promise.
    unsafe { find(r, newest) };
}

impl Attempt {
    /// Whom the request went to last; `None` if that was a `server` line.
    fn served(&self) -> Option<Served<'_>> {
        if self.servers.is_some() {
            return None;
        }
        let peer = self.counted.last().map(|peer| (&*self.view, peer));
        Some(Served { block: self.block(), view: Some(&*self.view), peer })
    }
}

impl<'a> Served<'a> {
    /// `None` if the request was sent to no service, or was last sent elsewhere.
    ///
    /// # Safety
    ///
    /// `r` is a valid request; what is found lives as long as its pool.
    pub(crate) unsafe fn of(r: *mut ngx_http_request_t) -> Option<Served<'a>> {
        // SAFETY: the caller's promise. nginx keeps the request's last upstream, and in it the block
        // that it was sent to.
        unsafe {
            if BUSY.load(Relaxed) == r {
                return None;
            }
            let upstream = (*r).upstream.as_ref()?.upstream;
            let newest = |kept: Kept<'a>, way: Way| {
                let served = match kept {
                    Kept::Own(attempt) => attempt.served(),
                    Kept::Stock(attempt) => attempt.served(),
                };
                Some(served.filter(|_| way.upstream == upstream))
            };
            find(r, newest)?
        }
    }

    /// The service that the request was sent to; empty if it named none.
    pub(crate) fn service(&self) -> &'a str {
        &self.block.service
    }

    /// The set that the peer is from, or the first one.
    fn set(&self) -> usize {
        let place = self.peer.and_then(|(view, peer)| view.peers().place_in_set(peer));
        place.map_or(0, |(set, _)| set)
    }

    /// The generation of the set that the peer was picked from.
    pub(crate) fn generation(&self) -> Option<u64> {
        let view = self.peer.map(|(view, _)| view).or(self.view)?;
        view.peers().generations().get(self.set()).copied()
    }

    /// How long ago Consul's last good answer for the peer's set came.
    pub(crate) fn age(&self) -> Option<Age> {
        let at_ms = self.block.last_good_ms(self.set())?;
        Some(Age(now().millis.saturating_sub(at_ms)))
    }

    /// What is told of the peer.
    pub(crate) fn labels(&self) -> Option<&'a Detail> {
        let (view, peer) = self.peer?;
        let (set, number) = view.peers().place_in_set(peer)?;
        self.block.labels(view, set)?.get(number)
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
