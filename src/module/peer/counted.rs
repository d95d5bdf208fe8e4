//! What the shared counters learn of a request's attempts.

use nginx_consul_core::table::{Lane, Record};
use nginx_sys::{NGX_PEER_FAILED, ngx_uint_t};

use super::block::{Worker, now};
use super::view::PeerView;

/// The attempt of a request that is under way, if one is.
#[derive(Default)]
pub(super) struct Counted {
    /// The peer that has the request.
    peer: Option<usize>,
    /// Where it counts as in flight.
    lane: Option<(usize, Lane)>,
}

impl Counted {
    pub(super) fn peer(&self) -> Option<usize> {
        self.peer
    }

    pub(super) fn begin(&mut self, worker: Worker, view: &PeerView, peer: usize) {
        let Record { slot, identity, .. } = view.peers().records()[peer];
        let slot = slot as usize;
        let counted = worker.table.enter(slot, identity, worker.lane);
        self.peer = Some(peer);
        self.lane = worker.lane.filter(|_| counted).map(|lane| (slot, lane));
        let rules = view.peers().rules(peer);
        if rules.max_fails != 0 {
            let timeout = u64::from(rules.fail_timeout);
            worker.table.note_checked(slot, identity, timeout, now().seconds);
        }
    }

    /// Counts the outcome, as `ngx_http_upstream_free_round_robin_peer()` does. `true` if failures
    /// keep the peer out by now; those of a peer that is the only one never count.
    pub(super) fn judge(
        &self,
        worker: Worker,
        view: &PeerView,
        state: ngx_uint_t,
        single: bool,
    ) -> bool {
        let Some(peer) = self.peer else { return false };
        let Record { slot, identity, .. } = view.peers().records()[peer];
        let slot = slot as usize;
        let max_fails = u64::from(view.peers().rules(peer).max_fails);
        if state & NGX_PEER_FAILED as ngx_uint_t == 0 {
            worker.table.note_passed(slot, identity, max_fails, now().millis);
            return false;
        }
        let fails = worker.table.note_failed(slot, identity, now().seconds);
        if single {
            worker.table.forget_fails(slot, identity);
        }
        !single && max_fails != 0 && fails >= max_fails
    }

    pub(super) fn end(&mut self, worker: Option<Worker>) {
        self.peer = None;
        if let (Some(worker), Some((slot, lane))) = (worker, self.lane.take()) {
            worker.table.leave(slot, lane);
        }
    }
}
