//! What the shared counters learn of a request's attempts.

use nginx_consul_core::balance::{Known, Picked};
use nginx_consul_core::table::{InFlight, Slot};
use nginx_sys::{NGX_PEER_FAILED, ngx_uint_t};

use super::clock::now;
use super::view::PeerView;
use super::worker::Worker;

/// The attempt of a request that is under way, if one is.
#[derive(Default)]
pub(super) struct Counted {
    /// The peer that has the request, and its counters.
    at: Option<(Slot<'static>, u32)>,
    in_flight: Option<InFlight<'static>>,
    /// The peer that was picked last, also when the attempt is over.
    last: Option<u32>,
}

impl Counted {
    #[inline]
    pub(super) fn peer(&self) -> Option<usize> {
        self.at.map(|(_, peer)| peer as usize)
    }

    /// The peer that has, or had, the request last.
    pub(super) fn last(&self) -> Option<usize> {
        self.last.map(|peer| peer as usize)
    }

    /// Nobody of the peers has the request.
    #[inline]
    pub(super) fn forget_last(&mut self) {
        self.last = None;
    }

    /// The peer that has the request, its counters and what else is known of it.
    #[inline]
    pub(super) fn known<'a>(&self, view: &'a PeerView) -> Option<(Slot<'static>, &'a Known)> {
        self.at.map(|(slot, peer)| (slot, view.peers().known(peer as usize)))
    }

    #[inline(always)]
    pub(super) fn begin(&mut self, worker: Worker, picked: Picked<'_, 'static>, seconds: u64) {
        let Picked { known, counters } = picked;
        let Known { identity, place, rules, .. } = known;
        if rules.max_fails != 0 {
            counters.note_checked(*identity, rules.fail_timeout.into(), seconds);
        }
        self.at = Some((counters, known.number));
        self.last = Some(known.number);
        self.in_flight = worker.table.enter_at(*place, counters, *identity, worker.lane);
    }

    /// Counts the outcome, as `ngx_http_upstream_free_round_robin_peer()` does. `true` if failures
    /// keep the peer out by now; those of a peer that is the only one never count.
    #[inline]
    pub(super) fn judge(&self, view: &PeerView, state: ngx_uint_t, single: bool) -> bool {
        let Some((slot, peer)) = self.at else { return false };
        let has_failed = state & NGX_PEER_FAILED as ngx_uint_t != 0;
        (has_failed || slot.has_fails())
            && note(slot, view.peers().known(peer as usize), has_failed, single)
    }

    /// Whether the peer that has the request has failed others.
    #[inline]
    pub(super) fn has_fails(&self) -> bool {
        self.at.is_some_and(|(slot, _)| slot.has_fails())
    }

    /// Whether the request counts as in flight.
    #[inline]
    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    #[inline]
    pub(super) fn end(&mut self) {
        self.at = None;
        if let Some(request) = self.in_flight.take() {
            request.end();
        }
    }
}

#[cold]
fn note(slot: Slot<'_>, known: &Known, has_failed: bool, single: bool) -> bool {
    let Known { identity, rules, .. } = *known;
    let max_fails = u64::from(rules.max_fails);
    if !has_failed {
        slot.note_passed(identity, max_fails, now().millis);
        return false;
    }
    let fails = slot.note_failed(identity, now().seconds);
    if single {
        slot.forget_fails(identity);
    }
    !single && max_fails != 0 && fails >= max_fails
}
