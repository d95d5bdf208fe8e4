//! The failures of an instance: `max_fails` and `fail_timeout` of nginx's round robin, over all
//! workers. Times are milliseconds of the monotonic clock, unless they say otherwise.

use super::counters::{
    CHECKED, FAILED, FAILED_AT, FAILING_SINCE, FAILS, PROBE, STARTED, Slot, WorkerShard,
};
use super::permits::{self, Permit, Terms};
use super::platform::atomic::Ordering::Relaxed;

/// From one probing request to an instance to the next, milliseconds.
pub const PROBE_PACE: u64 = 1000;

/// Whether, and how, an instance's failures are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// So many failures mark the instance as failed; 0: none do.
    pub max_fails: u64,
    /// Milliseconds.
    pub fail_timeout: u64,
}

impl<'z> Slot<'z> {
    /// Whether there are failures that count.
    #[inline]
    pub fn has_fails(&self) -> bool {
        self.load(FAILS) != 0
    }

    /// Whether `max_fails` failures were counted, and no success since.
    #[inline]
    pub fn is_marked(&self, max_fails: u64) -> bool {
        let fails = self.load(FAILS);
        // Nearly always there are none.
        fails != 0 && max_fails != 0 && fails >= max_fails
    }

    /// Whether the instance is out: the rule of `ngx_http_upstream_get_peer()`.
    #[inline]
    pub fn is_failed(&self, limits: Limits, now: u64) -> bool {
        self.is_marked(limits.max_fails) && now <= self.out_until(limits)
    }

    /// Until when a marked instance is out.
    pub(crate) fn out_until(&self, limits: Limits) -> u64 {
        self.load(CHECKED).saturating_add(limits.fail_timeout)
    }

    /// Whether a request could probe the instance now.
    pub(crate) fn is_probe_free(&self, limits: Limits, now: u64, pace: u64) -> bool {
        permits::is_free_at(&self.words[PROBE], terms(limits, now, pace))
    }

    /// Lets a request probe the instance, which is marked, if no other one does. It is out for the
    /// others for another `fail_timeout`.
    pub fn probe(
        &self,
        (identity, shard): (u64, Option<WorkerShard>),
        limits: Limits,
        now: u64,
        pace: u64,
    ) -> Option<Permit<'z>> {
        if !self.belongs_to(identity) {
            return None;
        }
        let permit = Permit::take(&self.words[PROBE], shard, terms(limits, now, pace))?;
        self.words[CHECKED].store(now, Relaxed);
        Some(permit)
    }

    /// Starts a new `fail_timeout` for a peer that was picked after the last one had passed: its
    /// failures are forgotten if the attempt succeeds.
    #[inline]
    pub fn note_checked(&self, identity: u64, fail_timeout: u64, now: u64) {
        if now.saturating_sub(self.load(CHECKED)) > fail_timeout && self.belongs_to(identity) {
            self.words[CHECKED].store(now, Relaxed);
        }
    }

    /// Counts a failed attempt; returns the failures in a row.
    pub fn note_failed(&self, identity: u64, now: u64) -> u64 {
        if !self.belongs_to(identity) {
            return 0;
        }
        self.words[FAILED_AT].store(now, Relaxed);
        self.words[CHECKED].store(now, Relaxed);
        let _ = self.words[FAILING_SINCE].compare_exchange(0, now.max(1), Relaxed, Relaxed);
        self.words[FAILED].fetch_add(1, Relaxed);
        self.words[FAILS].fetch_add(1, Relaxed).saturating_add(1)
    }

    /// How long the instance has failed without a success, milliseconds.
    pub fn failing_for(&self, now: u64) -> Option<u64> {
        let since = self.load(FAILING_SINCE);
        (since != 0).then(|| now.saturating_sub(since))
    }

    /// Notes a success of an attempt that began at `from`. It ends the failures if it says that they
    /// are over: of a marked instance if it began after the last of them; else if it was the first
    /// one after `fail_timeout`, as in nginx. One that was marked starts anew (slow start) at
    /// `now_ms`, milliseconds since the epoch. Returns whether it was.
    pub fn note_passed(&self, identity: u64, max_fails: u64, from: u64, now_ms: u64) -> bool {
        if !self.has_fails() || !self.belongs_to(identity) {
            return false;
        }
        let (failed_at, marked) = (self.load(FAILED_AT), self.is_marked(max_fails));
        if (marked && from < failed_at) || (!marked && failed_at >= self.load(CHECKED)) {
            return false;
        }
        if marked {
            self.words[STARTED].store(now_ms, Relaxed);
        }
        self.forget_fails(identity);
        marked
    }

    /// Forgets the failures: any success of a block's only instance ends them.
    pub fn forget_fails(&self, identity: u64) {
        if self.belongs_to(identity) {
            self.words[FAILING_SINCE].store(0, Relaxed);
            self.words[FAILS].store(0, Relaxed);
        }
    }
}

fn terms(limits: Limits, now: u64, pace: u64) -> Terms {
    Terms { now, expires_after: limits.fail_timeout, pace }
}
