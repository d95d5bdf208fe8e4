//! A request's picks by a method of nginx.

use std::rc::Rc;

use nginx_consul_core::balance::{Admission, Admitted, PickContext, Shared};
use nginx_sys::{NGX_PEER_NEXT, ngx_http_request_t, ngx_peer_connection_t, ngx_uint_t};

use super::super::delegate::Delegate;
use super::snapshot::Snapshot;
use super::snapshots::Snapshots;
use crate::ffi::OK;

/// How many peers of the method a request may find unusable.
const REFUSALS: usize = 4;

/// A request whose peers a method picks.
pub(crate) struct MethodAttempt {
    snapshot: Rc<Snapshot>,
    method: Delegate,
}

impl MethodAttempt {
    /// Has the method prepare a request; `None` if it fails. It may evaluate variables.
    ///
    /// # Safety
    ///
    /// `r` is a request with an upstream, whose callbacks are not set yet; it holds the value until
    /// its pool is destroyed.
    pub(crate) unsafe fn begin(
        snapshots: &Snapshots,
        snapshot: Rc<Snapshot>,
        r: *mut ngx_http_request_t,
    ) -> Option<MethodAttempt> {
        // SAFETY: the caller's promise.
        let method = unsafe { Delegate::take(r, || snapshot.init(r)) }?;
        if snapshot.is_first_use() {
            snapshots.note_first_use(&snapshot);
        }
        Some(MethodAttempt { snapshot, method })
    }

    /// Whether the method wants to be told how the request goes on.
    pub(crate) fn wants_notes(&self) -> bool {
        self.method.wants_notes()
    }

    /// Whether the method can pick once more: methods that keep their tables in the block have those
    /// of the newest snapshot.
    pub(crate) fn is_newest(&self, snapshots: &Snapshots) -> bool {
        snapshots.is_current(&self.snapshot)
    }

    /// The peer that the method picks of those that the shared counters let the request try; `None`
    /// if it finds none. `context` is of the snapshot's view.
    pub(crate) fn pick<'a>(
        &self,
        pc: *mut ngx_peer_connection_t,
        context: &PickContext<'a, 'static>,
        shared: impl Fn() -> Shared<'static>,
    ) -> Option<Admitted<'a, 'static>> {
        self.snapshot.readmit(context);
        for _ in 0..=REFUSALS {
            let picked = self.method.get(pc);
            // SAFETY: nginx passes the request's connection.
            let address = unsafe { (*pc).sockaddr };
            let number = self.snapshot.view().number_at(address).filter(|_| picked == OK)?;
            let picked = context.peer(number);
            match context.admit_picked(picked, &shared) {
                Admission::Free => return Some(Admitted { picked, permit: None }),
                Admission::With(permit) => return Some(Admitted { picked, permit: Some(permit) }),
                Admission::Refused => self.refuse(pc, number, context.now),
            }
        }
        None
    }

    /// The method is to pick another peer, for this request and the next ones.
    #[cold]
    fn refuse(&self, pc: *mut ngx_peer_connection_t, number: usize, now: u64) {
        self.snapshot.exclude(number, now);
        // SAFETY: nginx passes the request's connection.
        let tries = unsafe { (*pc).tries };
        self.method.free(pc, NGX_PEER_NEXT as ngx_uint_t);
        // SAFETY: as above. It was no try.
        unsafe { (*pc).tries = tries };
    }

    /// An attempt with `peer` is over.
    pub(crate) fn free(
        &self,
        snapshots: &Snapshots,
        (pc, state): (*mut ngx_peer_connection_t, ngx_uint_t),
        peer: Option<usize>,
    ) {
        self.method.free(pc, state);
        // Newer snapshots count the request too.
        if let Some(peer) = peer.filter(|_| !self.is_newest(snapshots)) {
            snapshots.note_end(&self.snapshot, peer);
        }
    }

    pub(crate) fn notify(&self, pc: *mut ngx_peer_connection_t, kind: ngx_uint_t) {
        self.method.notify(pc, kind);
    }
}
