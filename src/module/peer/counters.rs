//! What the shared counters learn of a request's attempts.

use nginx_consul_core::balance::{PeerInfo, Picked};
use nginx_consul_core::table::{InFlight, PeerCounters, Permit};

use super::clock::now;
use super::outcome::{Attempted, Outcome};
use super::upstream::Upstream;
use super::view::PeerView;
use super::worker::Worker;

/// The attempt of a request that is under way, if one is.
#[derive(Default)]
pub(super) struct Counted {
    /// The peer that has the request, and its counters.
    at: Option<(PeerCounters<'static>, u32)>,
    in_flight: Option<InFlight<'static>>,
    /// What lets the request try a peer that has failed.
    permit: Option<Permit<'static>>,
    /// The peer that was picked last, also when the attempt is over.
    last: Option<u32>,
    /// nginx has accepted the response header.
    answered: bool,
}

/// To whom an attempt counts.
#[derive(Clone, Copy)]
pub(super) struct Account<'a> {
    pub(super) block: &'a Upstream,
    pub(super) view: &'a PeerView,
    /// The peer is the block's only one.
    pub(super) single: bool,
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
    pub(super) fn known<'a>(
        &self,
        view: &'a PeerView,
    ) -> Option<(PeerCounters<'static>, &'a PeerInfo)> {
        self.at.map(|(slot, peer)| (slot, view.peers().info(peer as usize)))
    }

    #[inline(always)]
    pub(super) fn begin(
        &mut self,
        worker: Worker,
        picked: Picked<'_, 'static>,
        permit: Option<Permit<'static>>,
        now: u64,
    ) {
        let Picked { info: known, counters } = picked;
        let PeerInfo { identity, slot, params, .. } = known;
        if params.max_fails != 0 {
            counters.note_checked(*identity, params.limits().fail_timeout, now);
        }
        self.at = Some((counters, known.number));
        self.last = Some(known.number);
        self.permit = permit;
        self.answered = false;
        self.in_flight = worker.table.begin_request_at(*slot, counters, *identity, worker.shard());
    }

    /// nginx has accepted the response header: from here on the peer counts as one that answers,
    /// however long the response takes. `true` if there are failures that this may end, by
    /// [`Counted::judge_header`].
    #[inline(always)]
    pub(super) fn note_header(&mut self) -> bool {
        self.answered = true;
        self.at.is_some_and(|(slot, _)| slot.has_fails()) || self.permit.is_some()
    }

    #[cold]
    #[inline(never)]
    pub(super) fn judge_header(&mut self, attempted: Attempted, account: Account<'_>) {
        self.note(attempted.by_header(), attempted, account);
        self.end_permit();
    }

    /// Counts the outcome, as `ngx_http_upstream_free_round_robin_peer()` does. `true` if failures
    /// keep the peer out by now; those of a peer that is the only one never do.
    #[inline]
    pub(super) fn judge(&mut self, attempted: Attempted, account: Account<'_>) -> bool {
        let Some((slot, _)) = self.at else { return false };
        (attempted.has_failed() || slot.has_fails()) && self.judge_failed(attempted, account)
    }

    #[cold]
    #[inline(never)]
    fn judge_failed(&mut self, attempted: Attempted, account: Account<'_>) -> bool {
        let outcome = match attempted.outcome() {
            // What came after the header says nothing new.
            Outcome::Passed if self.answered => Outcome::Unknown,
            outcome => outcome,
        };
        self.note(outcome, attempted, account)
    }

    #[cold]
    #[inline(never)]
    fn note(&self, outcome: Outcome, attempted: Attempted, account: Account<'_>) -> bool {
        let Account { block, view, single } = account;
        let (Some((slot, known)), Some(worker)) = (self.known(view), block.worker()) else {
            return false;
        };
        let (identity, now) = (known.identity, now());
        let max_fails = u64::from(known.params.max_fails);
        match outcome {
            Outcome::Unknown => false,
            Outcome::Passed if single => {
                slot.clear_fails(identity);
                false
            }
            Outcome::Passed => {
                if slot.note_success(identity, max_fails, attempted.began(), now.millis) {
                    worker.table.note_recovered();
                }
                false
            }
            Outcome::Failed => {
                let fails = slot.note_failed(identity, now.monotonic);
                if let Some(outage) = block.outage(worker) {
                    if fails == max_fails && !single {
                        outage.note_marked(now.monotonic);
                    }
                    outage.note_failed(attempted.began());
                }
                !single && max_fails != 0 && fails >= max_fails
            }
        }
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
        if self.permit.is_some() {
            self.end_permit();
        }
    }

    #[cold]
    #[inline(never)]
    fn end_permit(&mut self) {
        if let Some(permit) = self.permit.take() {
            permit.end();
        }
    }
}
