//! What the shared counters learn of a request's attempts.

use std::cell::Cell;

use nginx_consul_core::balance::{Latency, PeerInfo, Picked};
use nginx_consul_core::table::{InFlight, PeerCounters, PeerRecord, Permit};
use nginx_sys::{
    NGX_HTTP_UPSTREAM_FT_HTTP_429, NGX_HTTP_UPSTREAM_FT_HTTP_500, NGX_HTTP_UPSTREAM_FT_HTTP_502,
    NGX_HTTP_UPSTREAM_FT_HTTP_503, NGX_HTTP_UPSTREAM_FT_HTTP_504, NGX_PEER_FAILED,
    ngx_http_request_t, ngx_uint_t,
};

use super::set::PeerView;
use super::upstream::Upstream;
use super::worker::{Worker, monotonic};

/// What an attempt says of its peer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Failed,
    /// nginx has accepted the response header.
    Passed,
    /// The client has gone before that, or the status is one that `proxy_next_upstream` names.
    Unknown,
}

/// An attempt of a request that is over, or has its response header.
#[derive(Clone, Copy)]
pub(super) struct Attempted {
    request: *mut ngx_http_request_t,
    /// What `peer.free` gets.
    state: ngx_uint_t,
}

/// To whom an attempt counts.
#[derive(Clone, Copy)]
pub(super) struct Account<'a> {
    pub(super) upstream: &'a Upstream,
    pub(super) view: &'a PeerView,
    /// The peer is the upstream's only one.
    pub(super) single: bool,
}

/// The attempt of a request that is under way, if one is.
#[derive(Default)]
pub(super) struct AttemptCounters {
    /// The peer that has the request, and its counters.
    at: Cell<Option<(PeerCounters<'static>, u32)>>,
    in_flight: Cell<Option<InFlight<'static>>>,
    /// What lets the request try a peer that has failed.
    permit: Cell<Option<Permit<'static>>>,
    /// The peer that was picked last, also when the attempt is over.
    last: Cell<Option<u32>>,
    progress: Cell<Progress>,
}

/// How far an attempt has come.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// nginx has accepted the response header.
    answered: bool,
    /// There is a permit.
    has_permit: bool,
}

impl Attempted {
    /// # Safety
    ///
    /// `request` is a request with an upstream that lives as long as the value.
    #[inline]
    pub(super) unsafe fn new(request: *mut ngx_http_request_t, state: ngx_uint_t) -> Attempted {
        Attempted { request, state }
    }

    #[inline]
    pub(super) fn has_failed(self) -> bool {
        self.state & NGX_PEER_FAILED as ngx_uint_t != 0
    }

    fn outcome(self) -> Outcome {
        if self.has_failed() { Outcome::Failed } else { self.by_header() }
    }

    /// What the response header says, if it has come. 403 and 404 are never failures, as nginx's
    /// documentation of `proxy_next_upstream` says.
    fn by_header(self) -> Outcome {
        // SAFETY: the request and its upstream are valid (the promise of new()).
        let upstream = unsafe { (*self.request).upstream.as_ref() };
        let Some(upstream) = upstream else { return Outcome::Unknown };
        // SAFETY: null, or the state of this attempt and the settings of the request's location.
        let known = unsafe { (upstream.state.as_ref(), upstream.conf.as_ref()) };
        let (Some(state), Some(conf)) = known else { return Outcome::Unknown };
        // nginx's value of a time that never came.
        if state.header_time == usize::MAX {
            return Outcome::Unknown;
        }
        let named = match state.status {
            429 => NGX_HTTP_UPSTREAM_FT_HTTP_429,
            500 => NGX_HTTP_UPSTREAM_FT_HTTP_500,
            502 => NGX_HTTP_UPSTREAM_FT_HTTP_502,
            503 => NGX_HTTP_UPSTREAM_FT_HTTP_503,
            504 => NGX_HTTP_UPSTREAM_FT_HTTP_504,
            _ => 0,
        };
        let is_named = conf.next_upstream & named as ngx_uint_t != 0;
        if is_named { Outcome::Unknown } else { Outcome::Passed }
    }

    /// When it began, milliseconds of the monotonic clock; 0 if that is not known any more.
    fn began(self) -> u64 {
        // SAFETY: as in by_header(). nginx notes the time before each attempt.
        let upstream = unsafe { (*self.request).upstream.as_ref() };
        upstream.map_or(0, |upstream| upstream.start_time as u64)
    }
}

impl AttemptCounters {
    /// The peer that has the request.
    #[inline]
    pub(super) fn peer(&self) -> Option<usize> {
        self.at.get().map(|(_, peer)| peer as usize)
    }

    /// The peer that has, or had, the request last.
    pub(super) fn last(&self) -> Option<usize> {
        self.last.get().map(|peer| peer as usize)
    }

    /// None of the peers has, or had, the request.
    #[cold]
    pub(super) fn forget_last(&self) {
        self.last.set(None);
    }

    /// The peer that has the request, its counters and what else is known of it.
    #[inline]
    fn known<'a>(&self, view: &'a PeerView) -> Option<(PeerCounters<'static>, &'a PeerInfo)> {
        self.at.get().map(|(slot, peer)| (slot, view.peers().info(peer as usize)))
    }

    /// A peer gets the request.
    #[inline(always)]
    pub(super) fn begin(
        &self,
        worker: Worker,
        picked: Picked<'_, 'static>,
        permit: Option<Permit<'static>>,
        now: u64,
    ) {
        let Picked { info, counters } = picked;
        let PeerInfo { owner, slot, params, .. } = info;
        if params.max_fails != 0 {
            counters.note_checked(*owner, params.limits(), now);
        }
        self.at.set(Some((counters, info.number)));
        self.last.set(Some(info.number));
        self.progress.set(Progress { answered: false, has_permit: permit.is_some() });
        self.permit.set(permit);
        let in_flight = worker.table().begin_request_at(*slot, counters, *owner, worker.shard());
        self.in_flight.set(in_flight);
    }

    /// nginx has accepted the response header: from here on the peer counts as one that answers,
    /// however long the response takes. `true` if there are failures that this may end, by
    /// [`AttemptCounters::judge_header`].
    #[inline(always)]
    pub(super) fn note_header(&self) -> bool {
        let has_permit = self.progress.get().has_permit;
        self.progress.set(Progress { answered: true, has_permit });
        self.at.get().is_some_and(|(slot, _)| slot.has_fails()) || has_permit
    }

    #[cold]
    #[inline(never)]
    pub(super) fn judge_header(&self, attempted: Attempted, account: Account<'_>) {
        self.note(attempted.by_header(), attempted, account);
        self.end_permit();
    }

    /// Counts the outcome, as `ngx_http_upstream_free_round_robin_peer()` does. `true` if failures
    /// keep the peer out by now; those of a peer that is the only one never do.
    #[inline]
    pub(super) fn judge(&self, attempted: Attempted, account: Account<'_>) -> bool {
        let Some((slot, _)) = self.at.get() else { return false };
        (attempted.has_failed() || slot.has_fails()) && self.judge_failed(attempted, account)
    }

    #[cold]
    #[inline(never)]
    fn judge_failed(&self, attempted: Attempted, account: Account<'_>) -> bool {
        let outcome = match attempted.outcome() {
            // What came after the header says nothing new.
            Outcome::Passed if self.progress.get().answered => Outcome::Unknown,
            outcome => outcome,
        };
        self.note(outcome, attempted, account)
    }

    #[cold]
    #[inline(never)]
    fn note(&self, outcome: Outcome, attempted: Attempted, account: Account<'_>) -> bool {
        let Account { upstream, view, single } = account;
        let (Some((slot, known)), Some(worker)) = (self.known(view), upstream.worker.get()) else {
            return false;
        };
        let (owner, limits, now) = (known.owner, known.limits(), monotonic());
        let max_fails = limits.max_fails;
        match outcome {
            Outcome::Unknown => false,
            Outcome::Passed if single => {
                slot.clear_fails(owner);
                false
            }
            Outcome::Passed => {
                if slot.note_success(owner, limits, attempted.began(), now) {
                    worker.table.note_recovered();
                }
                false
            }
            Outcome::Failed => {
                let record = view.peers().records().get(known.number as usize);
                let address = record.map_or(0, PeerRecord::address_id);
                let fails = slot.note_failed((owner, address), now);
                if let Some(outage) = upstream.outage(worker) {
                    if fails == max_fails && !single {
                        outage.note_marked(now);
                    }
                    outage.note_failed(attempted.began());
                }
                !single && max_fails != 0 && fails >= max_fails
            }
        }
    }

    /// Notes how long the peer took, for `least_time`.
    #[cold]
    #[inline(never)]
    pub(super) fn note_time(&self, attempted: Attempted, view: &PeerView) {
        let Some((counters, known)) = self.known(view) else { return };
        // SAFETY: the request and its upstream are valid (the promise of Attempted).
        let upstream = unsafe { &*(*attempted.request).upstream };
        // SAFETY: nginx makes the state before it connects.
        let Some(state) = (unsafe { upstream.state.as_ref() }) else { return };
        let now = monotonic();
        // nginx's value of a time that never came.
        let has_header = state.header_time != usize::MAX;
        if has_header && !attempted.has_failed() {
            let header_time = state.header_time as u64;
            counters.update_latency(known.owner, |raw| {
                Latency::from_raw(raw).after(header_time, now).raw()
            });
            return;
        }
        let elapsed = now.wrapping_sub(upstream.start_time as u64);
        counters.update_latency(known.owner, |raw| {
            let latency = Latency::from_raw(raw);
            if attempted.has_failed() {
                latency.after_failure(elapsed, now).raw()
            } else if elapsed as f32 > latency.at(now) {
                // The client gave up; the answer would have taken longer still.
                latency.after(elapsed, now).raw()
            } else {
                raw
            }
        });
    }

    /// Whether a peer has the request.
    #[inline]
    pub(super) fn is_under_way(&self) -> bool {
        self.at.get().is_some()
    }

    /// The attempt is over.
    #[inline]
    pub(super) fn end(&self) {
        self.at.set(None);
        if let Some(request) = self.in_flight.take() {
            request.end();
        }
        if self.progress.get().has_permit {
            self.end_permit();
        }
    }

    #[cold]
    #[inline(never)]
    fn end_permit(&self) {
        self.progress.set(Progress { has_permit: false, ..self.progress.get() });
        self.permit.take().into_iter().for_each(Permit::end);
    }
}
