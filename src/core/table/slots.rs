//! Slots: the counters of an instance, shared by all workers and kept over updates.

use super::Table;
use super::machine::atomic::AtomicU64;
use super::machine::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use super::machine::is_alive;
use crate::process::ProcessId;

/// Words of a slot before its lanes.
pub(super) const WORDS: usize = 8;
/// Identity of the instance; 0 is nobody.
pub(super) const OWNER: usize = 0;
pub(super) const PICKS: usize = 1;
/// Failures within `fail_timeout`, and when: `fails`, `accessed` and `checked` of
/// `ngx_http_upstream_rr_peer_t`.
pub(super) const FAILS: usize = 2;
pub(super) const ACCESSED: usize = 3;
pub(super) const CHECKED: usize = 4;
/// When the instance appeared or recovered, milliseconds since the epoch; 0: it was there from the
/// first answer.
pub(super) const STARTED: usize = 5;
/// All failures, never reset.
pub(super) const FAILED: usize = 6;

/// Mean of the time to the response header, as [`crate::balance::Latency::raw`] has it.
pub(super) const LATENCY: usize = 7;

/// A worker's column of in-flight counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane(u32);

/// What the status page says of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests that are with the instance now.
    pub in_flight: u64,
    /// Times it was picked.
    pub picks: u64,
    /// Failed attempts since it appeared.
    pub failed: u64,
    /// Failures that count for `max_fails` now.
    pub fails: u64,
    /// When the last of them was, seconds since the epoch.
    pub checked: u64,
}

impl<'z> Table<'z> {
    /// Takes a lane for the calling process and clears what a killed one left in it.
    /// `None` if all lanes are held by running processes; its requests are then not counted.
    pub fn take_lane(&self, me: ProcessId) -> Option<Lane> {
        let lanes = self.layout.entries - self.layout.lanes;
        for lane in 0..lanes {
            let word = self.word(self.layout.lanes + lane);
            let holder = word.load(Acquire);
            if holder != 0 && is_alive(holder) {
                continue;
            }
            if word.compare_exchange(holder, me.get(), AcqRel, Acquire).is_ok() {
                let lane = Lane(lane as u32);
                self.clear_lane(lane);
                return Some(lane);
            }
        }
        None
    }

    /// Clears the lanes of killed processes that no new worker has taken.
    pub fn clear_dead_lanes(&self) {
        let lanes = self.layout.entries - self.layout.lanes;
        for lane in 0..lanes {
            let word = self.word(self.layout.lanes + lane);
            let holder = word.load(Acquire);
            if holder != 0 && !is_alive(holder) {
                let me = ProcessId::own().get();
                if word.compare_exchange(holder, me, AcqRel, Acquire).is_ok() {
                    self.clear_lane(Lane(lane as u32));
                    word.store(0, Release);
                }
            }
        }
    }

    /// Takes all requests of a lane out of flight; for its holder.
    pub fn clear_lane(&self, lane: Lane) {
        for slot in 0..self.layout.slot_count {
            let (word, shift) = self.lane_of(slot, lane);
            let left = word.load(Relaxed) >> shift & u64::from(u32::MAX);
            if left != 0 {
                word.fetch_sub(left << shift, AcqRel);
            }
        }
    }

    /// Gives the lane back; what is still in it is cleared by the next holder.
    pub fn release_lane(&self, lane: Lane) {
        self.word(self.layout.lanes + lane.0 as usize).store(0, Release);
    }

    fn lane_of(&self, slot: usize, lane: Lane) -> (&'z AtomicU64, u32) {
        (self.slot_word(slot, WORDS + lane.0 as usize / 2), lane.0 % 2 * 32)
    }

    /// Whether the slot still belongs to the instance; it may have passed to another one while a
    /// request held an older set.
    #[inline]
    fn belongs_to(&self, slot: usize, identity: u64) -> bool {
        self.slot_word(slot, OWNER).load(Relaxed) == identity
    }

    /// Counts a request to the instance, in flight if the worker has a lane. `true` if it is
    /// counted as in flight: [`Table::leave`] is then owed.
    #[inline]
    pub fn enter(&self, slot: usize, identity: u64, lane: Option<Lane>) -> bool {
        if !self.belongs_to(slot, identity) {
            return false;
        }
        self.slot_word(slot, PICKS).fetch_add(1, Relaxed);
        let Some(lane) = lane else { return false };
        let (word, shift) = self.lane_of(slot, lane);
        word.fetch_add(1 << shift, AcqRel);
        true
    }

    /// Ends a request that [`Table::enter`] counted.
    #[inline]
    pub fn leave(&self, slot: usize, lane: Lane) {
        let (word, shift) = self.lane_of(slot, lane);
        word.fetch_sub(1 << shift, AcqRel);
    }

    /// Requests that are with the instance, over all workers.
    #[inline]
    pub fn in_flight(&self, slot: usize) -> u64 {
        let lanes = self.layout.slot_words - WORDS;
        let first = self.layout.slots + slot * self.layout.slot_words + WORDS;
        let pairs = self.words[first..first + lanes].iter();
        // Two lanes to a word; the sum of either stays below 2³².
        let sums = pairs.map(|pair| pair.load(Relaxed)).fold(0, u64::wrapping_add);
        (sums & u64::from(u32::MAX)) + (sums >> 32)
    }

    /// Whether the instance is out after `max_fails` failures; the rule and the second try after
    /// `fail_timeout` are those of `ngx_http_upstream_get_peer()`.
    #[inline]
    pub fn is_failed(&self, slot: usize, max_fails: u64, fail_timeout: u64, now: u64) -> bool {
        max_fails != 0
            && self.slot_word(slot, FAILS).load(Relaxed) >= max_fails
            && now.saturating_sub(self.slot_word(slot, CHECKED).load(Relaxed)) <= fail_timeout
    }

    /// Starts a new `fail_timeout` for a peer that was picked after the last one had passed, so
    /// that one request, not all, tries a failed peer again.
    #[inline]
    pub fn note_checked(&self, slot: usize, identity: u64, fail_timeout: u64, now: u64) {
        let checked = self.slot_word(slot, CHECKED);
        if now.saturating_sub(checked.load(Relaxed)) > fail_timeout
            && self.belongs_to(slot, identity)
        {
            checked.store(now, Relaxed);
        }
    }

    /// Counts a failed attempt, seconds since the epoch; returns the failures in a row.
    pub fn note_failed(&self, slot: usize, identity: u64, now: u64) -> u64 {
        if !self.belongs_to(slot, identity) {
            return 0;
        }
        self.slot_word(slot, ACCESSED).store(now, Relaxed);
        self.slot_word(slot, CHECKED).store(now, Relaxed);
        self.slot_word(slot, FAILED).fetch_add(1, Relaxed);
        self.slot_word(slot, FAILS).fetch_add(1, Relaxed).saturating_add(1)
    }

    /// Notes an attempt that did not fail: the failures are forgotten if it began after them. An
    /// instance that they kept out, because there were `max_fails`, starts anew (slow start) at
    /// `now_ms`, milliseconds since the epoch.
    #[inline]
    pub fn note_passed(&self, slot: usize, identity: u64, max_fails: u64, now_ms: u64) {
        let fails = self.slot_word(slot, FAILS).load(Relaxed);
        if fails != 0
            && self.load_slot(slot, ACCESSED) < self.load_slot(slot, CHECKED)
            && self.belongs_to(slot, identity)
        {
            if max_fails != 0 && fails >= max_fails {
                self.slot_word(slot, STARTED).store(now_ms, Relaxed);
            }
            self.slot_word(slot, FAILS).store(0, Relaxed);
        }
    }

    /// Forgets the failures: those of a single peer never count.
    pub fn forget_fails(&self, slot: usize, identity: u64) {
        if self.belongs_to(slot, identity) {
            self.slot_word(slot, FAILS).store(0, Relaxed);
        }
    }

    fn load_slot(&self, slot: usize, word: usize) -> u64 {
        self.slot_word(slot, word).load(Relaxed)
    }

    /// The mean time to the response header, as [`crate::balance::Latency`] reads it.
    #[inline]
    pub fn latency(&self, slot: usize) -> u64 {
        self.slot_word(slot, LATENCY).load(Relaxed)
    }

    /// Replaces the mean, unless another worker was quicker: what it saw is as good.
    #[inline]
    pub fn update_latency(&self, slot: usize, identity: u64, update: impl Fn(u64) -> u64) {
        if self.belongs_to(slot, identity) {
            let word = self.slot_word(slot, LATENCY);
            let before = word.load(Relaxed);
            let _ = word.compare_exchange(before, update(before), Relaxed, Relaxed);
        }
    }

    /// When the instance appeared, or recovered from its failures, milliseconds since the epoch; 0:
    /// with the first answer.
    #[inline]
    pub fn started(&self, slot: usize) -> u64 {
        self.slot_word(slot, STARTED).load(Relaxed)
    }

    /// Times the instance was picked.
    pub fn picks(&self, slot: usize) -> u64 {
        self.load_slot(slot, PICKS)
    }

    /// The counters, for the status page.
    pub fn counters(&self, slot: usize) -> Counters {
        let get = |word| self.slot_word(slot, word).load(Relaxed);
        Counters {
            in_flight: self.in_flight(slot),
            picks: get(PICKS),
            failed: get(FAILED),
            fails: get(FAILS),
            checked: get(CHECKED),
        }
    }
}
