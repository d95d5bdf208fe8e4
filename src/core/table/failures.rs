//! The failures of an instance, as `max_fails` and `fail_timeout` of nginx's round robin judge them. All
//! workers share them.
//!
//! Times are milliseconds of the monotonic clock.

use super::counters::PeerCounters;
use super::layout::{WorkerShard, slot as word};
use super::membership::Membership;
use super::permits::{self, Permit, Terms};
use super::platform::atomic::Ordering::Relaxed;

/// Shortest time between two probing requests to an instance, milliseconds.
pub const PROBE_PACE: u64 = 1000;

/// `max_fails` and `fail_timeout` of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureLimits {
    /// Failures that mark the instance as failed; 0: failures are ignored.
    pub max_fails: u64,
    /// Milliseconds.
    pub fail_timeout: u64,
}

impl<'z> PeerCounters<'z> {
    /// Whether there are failures that count.
    #[inline]
    pub fn has_fails(&self) -> bool {
        self.load(word::FAILS) != 0
    }

    /// Whether `max_fails` failures were counted, and no success since.
    #[inline]
    pub fn is_marked(&self, limits: FailureLimits) -> bool {
        let fails = self.load(word::FAILS);
        // Nearly always there are none.
        fails != 0 && limits.max_fails != 0 && fails >= limits.max_fails && !self.is_over(limits)
    }

    /// Whether the instance has returned since its last failure, after its `fail_timeout`.
    #[cold]
    #[inline(never)]
    fn is_over(&self, limits: FailureLimits) -> bool {
        self.started() > self.load(word::FAILED_AT).saturating_add(limits.fail_timeout)
    }

    /// Whether failures exclude the instance, by the rule of `ngx_http_upstream_get_peer()`.
    #[inline]
    pub fn is_failed(&self, limits: FailureLimits, now: u64) -> bool {
        self.is_marked(limits) && now <= self.out_until(limits)
    }

    /// Until when failures exclude a marked instance.
    pub(crate) fn out_until(&self, limits: FailureLimits) -> u64 {
        self.load(word::CHECKED).saturating_add(limits.fail_timeout)
    }

    /// Whether a request could probe the instance now.
    pub(crate) fn is_probe_free(&self, limits: FailureLimits, now: u64, pace: u64) -> bool {
        permits::is_free_at(&self.words[word::PROBE], terms(limits, now, pace))
    }

    /// Lets the request probe the instance, which is marked as failed, unless another request does.
    /// Other requests skip it for another `fail_timeout`.
    pub fn probe(
        &self,
        (owner, shard): (u64, Option<WorkerShard>),
        limits: FailureLimits,
        now: u64,
        pace: u64,
    ) -> Option<Permit<'z>> {
        if !self.belongs_to(owner) {
            return None;
        }
        let permit = Permit::take(&self.words[word::PROBE], shard, terms(limits, now, pace))?;
        self.words[word::CHECKED].store(now, Relaxed);
        Some(permit)
    }

    /// Starts a new `fail_timeout` for a peer that was picked after the last one had passed: its
    /// failures are forgotten if the attempt succeeds, or if they are over.
    #[inline]
    pub fn note_checked(&self, owner: u64, limits: FailureLimits, now: u64) {
        if now.saturating_sub(self.load(word::CHECKED)) > limits.fail_timeout
            && self.belongs_to(owner)
        {
            self.words[word::CHECKED].store(now, Relaxed);
            if self.has_fails() && self.is_over(limits) {
                self.forget_fails();
            }
        }
    }

    /// Counts a failed attempt at the address with this
    /// [`PeerRecord::address_id`](super::PeerRecord::address_id); returns the failures in a row. 0 if
    /// the instance is at another address now.
    pub fn note_failed(&self, (owner, address): (u64, u64), now: u64) -> u64 {
        if !self.belongs_to(owner) || !self.membership().is_at(address) {
            return 0;
        }
        self.words[word::FAILED_AT].store(now, Relaxed);
        self.words[word::CHECKED].store(now, Relaxed);
        let _ = self.words[word::FAILING_SINCE].compare_exchange(0, now.max(1), Relaxed, Relaxed);
        self.words[word::FAILED].fetch_add(1, Relaxed);
        self.words[word::FAILS].fetch_add(1, Relaxed).saturating_add(1)
    }

    /// How long the instance has failed without a success, milliseconds.
    pub fn failing_for(&self, limits: FailureLimits, now: u64) -> Option<u64> {
        let since = self.load(word::FAILING_SINCE);
        (since != 0 && !self.is_over(limits)).then(|| now.saturating_sub(since))
    }

    /// Notes the success of an attempt that began at `from`. It clears the failures of a marked
    /// instance if the attempt began after the last failure; of another instance if it was the first
    /// attempt after `fail_timeout`, as in nginx. A marked instance begins its slow start `now`.
    /// Returns whether the instance was marked and has recovered.
    pub fn note_success(&self, owner: u64, limits: FailureLimits, from: u64, now: u64) -> bool {
        if !self.has_fails() || !self.belongs_to(owner) {
            return false;
        }
        let (failed_at, marked) = (self.load(word::FAILED_AT), self.is_marked(limits));
        if (marked && from < failed_at) || (!marked && failed_at >= self.load(word::CHECKED)) {
            return false;
        }
        if marked {
            self.restart(now);
        }
        self.forget_fails();
        marked
    }

    /// Clears the failures. Any success of an upstream's only instance does so.
    pub fn clear_fails(&self, owner: u64) {
        if self.belongs_to(owner) {
            self.forget_fails();
        }
    }

    /// The owner of the slot is a member since then, at this address. Only under the publishers' lock.
    pub(super) fn join(&self, since: u64, address: u64) {
        if !self.membership().is_at(address) {
            self.forget_fails();
        }
        self.words[word::MEMBERSHIP].store(Membership::of(since, address).raw(), Relaxed);
    }

    fn forget_fails(&self) {
        self.words[word::FAILING_SINCE].store(0, Relaxed);
        self.words[word::FAILS].store(0, Relaxed);
    }
}

fn terms(limits: FailureLimits, now: u64, pace: u64) -> Terms {
    Terms { now, expires_after: limits.fail_timeout, pace }
}

#[cfg(all(test, not(loom)))]
mod tests;
