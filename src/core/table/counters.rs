//! The counters of an instance, which all workers share and which stay with it from set to set: its
//! requests, and its failures as `max_fails` and `fail_timeout` of nginx's round robin judge them.
//!
//! Times are milliseconds of the monotonic clock.

use super::layout::{SlotRef, Table, WorkerShard, slot as word};
use super::permits::{self, Permit, Terms};
use super::platform::atomic::AtomicU64;
use super::platform::atomic::Ordering::{AcqRel, Relaxed};

/// A shard's half of a word: requests in flight, and idle connections above them.
const REQUEST_BITS: u32 = 20;
const MAX_IDLE: u64 = (1 << (32 - REQUEST_BITS)) - 1;
/// The requests of both shards of a word.
const REQUESTS: u64 = 0x000f_ffff_000f_ffff;
/// The idle connections of both, once shifted down.
const IDLE: u64 = MAX_IDLE << 32 | MAX_IDLE;

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

/// The counters of an instance, for the status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterValues {
    /// Requests in flight to the instance.
    pub in_flight: u64,
    /// Times it was picked.
    pub picks: u64,
    /// Failed attempts since it appeared.
    pub failed: u64,
    /// Failures that count for `max_fails` now.
    pub fails: u64,
    /// Idle connections to it; of one worker at most 4095 are counted.
    pub idle: u64,
    /// Connections opened for requests.
    pub opened: u64,
    /// Requests sent over an idle connection.
    pub reused: u64,
}

impl<'z> Table<'z> {
    /// The counters in a slot, without its shards except the first two.
    ///
    /// # Panics
    ///
    /// If the slot is of another, larger table.
    #[inline]
    pub fn peer_counters(&self, slot: SlotRef) -> PeerCounters<'z> {
        let first = slot.0 as usize;
        let words = self.words.get(first..first + word::WORDS + 1);
        match words.and_then(|words| words.try_into().ok()) {
            Some(words) => PeerCounters { words },
            None => no_such_slot(slot),
        }
    }

    /// Counts a pick of the instance and, if the worker has a shard, a request in flight, which the
    /// caller must end.
    pub fn begin_request(
        &self,
        slot: SlotRef,
        identity: u64,
        shard: Option<WorkerShard>,
    ) -> Option<InFlight<'z>> {
        self.begin_request_at(slot, self.peer_counters(slot), identity, shard)
    }

    /// As [`Table::begin_request`], with counters that the caller already has.
    #[inline]
    pub fn begin_request_at(
        &self,
        slot: SlotRef,
        counters: PeerCounters<'z>,
        identity: u64,
        shard: Option<WorkerShard>,
    ) -> Option<InFlight<'z>> {
        if !counters.belongs_to(identity) {
            return None;
        }
        counters.words[word::PICKS].fetch_add(1, Relaxed);
        let WorkerShard(shard) = shard?;
        let word = &self.words[slot.0 as usize + word::WORDS + (shard / 2) as usize];
        let one = 1 << (shard % 2 * 32);
        word.fetch_add(one, AcqRel);
        Some(InFlight { word, one })
    }

    /// Requests in flight to the instance, over all workers.
    pub fn in_flight(&self, slot: SlotRef) -> u64 {
        self.in_flight_at(slot, self.peer_counters(slot))
    }

    /// As [`Table::in_flight`], with counters that the caller already has.
    #[inline]
    pub fn in_flight_at(&self, slot: SlotRef, counters: PeerCounters<'z>) -> u64 {
        // The sum of either half stays below 2³².
        let mut sums = counters.words[word::WORDS].load(Relaxed) & REQUESTS;
        if self.shard_words.load(Relaxed) > 1 {
            sums = sums.wrapping_add(self.sum_of_shards(slot, 1, |pair| pair & REQUESTS));
        }
        both(sums)
    }

    /// Sum over the words of the shards, two to a word, from word `from` on. Words beyond those ever
    /// in use are 0 and are not read.
    #[inline(never)]
    fn sum_of_shards(&self, slot: SlotRef, from: usize, part: impl Fn(u64) -> u64) -> u64 {
        let used = self.shard_words.load(Relaxed) as usize;
        let used = used.clamp(from, self.layout.slot_words - word::WORDS);
        let first = slot.0 as usize + word::WORDS;
        let pairs = self.words[first + from..first + used].iter();
        pairs.map(|pair| part(pair.load(Relaxed))).fold(0, u64::wrapping_add)
    }

    /// Adds an idle connection to the instance, or removes one. Only the holder of the shard may.
    #[inline]
    pub fn note_idle(&self, slot: SlotRef, WorkerShard(shard): WorkerShard, more: bool) {
        let word = &self.words[slot.0 as usize + word::WORDS + (shard / 2) as usize];
        let shift = shard % 2 * 32 + REQUEST_BITS;
        // Nobody else changes the shard's half.
        let idle = word.load(Relaxed) >> shift & MAX_IDLE;
        if more && idle < MAX_IDLE {
            word.fetch_add(1 << shift, Relaxed);
        } else if !more && idle > 0 {
            word.fetch_sub(1 << shift, Relaxed);
        }
    }

    /// The values of all counters, for the status.
    pub fn counter_values(&self, slot: SlotRef) -> CounterValues {
        let counters = self.peer_counters(slot);
        CounterValues {
            in_flight: self.in_flight_at(slot, counters),
            picks: counters.picks(),
            failed: counters.load(word::FAILED),
            fails: counters.load(word::FAILS),
            idle: both(self.sum_of_shards(slot, 0, |pair| pair >> REQUEST_BITS & IDLE)),
            opened: counters.load(word::OPENED),
            reused: counters.load(word::REUSED),
        }
    }
}

/// The counters of an instance, found once for all that a request does with them; of its shards only
/// the first two.
#[derive(Clone, Copy, Debug)]
pub struct PeerCounters<'z> {
    pub(super) words: &'z [AtomicU64; word::WORDS + 1],
}

/// Adds the two halves of a sum over words of two shards.
#[inline]
fn both(sums: u64) -> u64 {
    (sums & u64::from(u32::MAX)) + (sums >> 32)
}

#[cold]
fn no_such_slot(slot: SlotRef) -> ! {
    panic!("no slot at {slot:?} of the table")
}

impl PeerCounters<'_> {
    #[inline]
    pub(super) fn load(&self, word: usize) -> u64 {
        self.words[word].load(Relaxed)
    }

    /// Times the instance was picked.
    pub fn picks(&self) -> u64 {
        self.load(word::PICKS)
    }

    /// Whether the slot still belongs to the instance. Another instance may have got it while a
    /// request held an older set.
    #[inline]
    pub(super) fn belongs_to(&self, identity: u64) -> bool {
        self.load(word::OWNER) == identity
    }

    /// The mean time to the response header, as [`crate::balance::Latency`] reads it.
    #[inline]
    pub fn latency(&self) -> u64 {
        self.load(word::LATENCY)
    }

    /// Replaces the mean, unless another worker has just done so: its sample is as good.
    #[inline]
    pub fn update_latency(&self, identity: u64, update: impl Fn(u64) -> u64) {
        if self.belongs_to(identity) {
            let before = self.load(word::LATENCY);
            let _ = self.words[word::LATENCY].compare_exchange(
                before,
                update(before),
                Relaxed,
                Relaxed,
            );
        }
    }

    /// Counts a connection that was opened for a request.
    pub fn note_opened(&self, identity: u64) {
        if self.belongs_to(identity) {
            self.words[word::OPENED].fetch_add(1, Relaxed);
        }
    }

    /// Counts a request sent over an idle connection.
    #[inline]
    pub fn note_reused(&self, identity: u64) {
        if self.belongs_to(identity) {
            self.words[word::REUSED].fetch_add(1, Relaxed);
        }
    }

    /// When the instance appeared, or recovered from its failures; 0: it was there from the first
    /// answer.
    #[inline]
    pub fn started(&self) -> u64 {
        self.load(word::STARTED)
    }
}

/// A request in flight, until [`InFlight::end`]. If its worker dies first, the count is cleared
/// with the worker's shard.
#[derive(Debug)]
#[must_use = "the request counts as in flight until its end"]
pub struct InFlight<'z> {
    word: &'z AtomicU64,
    one: u64,
}

impl InFlight<'_> {
    /// The request has ended.
    #[inline]
    pub fn end(self) {
        self.word.fetch_sub(self.one, AcqRel);
    }
}

impl<'z> PeerCounters<'z> {
    /// Whether there are failures that count.
    #[inline]
    pub fn has_fails(&self) -> bool {
        self.load(word::FAILS) != 0
    }

    /// Whether `max_fails` failures were counted, and no success since.
    #[inline]
    pub fn is_marked(&self, max_fails: u64) -> bool {
        let fails = self.load(word::FAILS);
        // Nearly always there are none.
        fails != 0 && max_fails != 0 && fails >= max_fails
    }

    /// Whether failures exclude the instance, by the rule of `ngx_http_upstream_get_peer()`.
    #[inline]
    pub fn is_failed(&self, limits: FailureLimits, now: u64) -> bool {
        self.is_marked(limits.max_fails) && now <= self.out_until(limits)
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
        (identity, shard): (u64, Option<WorkerShard>),
        limits: FailureLimits,
        now: u64,
        pace: u64,
    ) -> Option<Permit<'z>> {
        if !self.belongs_to(identity) {
            return None;
        }
        let permit = Permit::take(&self.words[word::PROBE], shard, terms(limits, now, pace))?;
        self.words[word::CHECKED].store(now, Relaxed);
        Some(permit)
    }

    /// Starts a new `fail_timeout` for a peer that was picked after the last one had passed: its
    /// failures are forgotten if the attempt succeeds.
    #[inline]
    pub fn note_checked(&self, identity: u64, fail_timeout: u64, now: u64) {
        if now.saturating_sub(self.load(word::CHECKED)) > fail_timeout && self.belongs_to(identity)
        {
            self.words[word::CHECKED].store(now, Relaxed);
        }
    }

    /// Counts a failed attempt; returns the failures in a row.
    pub fn note_failed(&self, identity: u64, now: u64) -> u64 {
        if !self.belongs_to(identity) {
            return 0;
        }
        self.words[word::FAILED_AT].store(now, Relaxed);
        self.words[word::CHECKED].store(now, Relaxed);
        let _ = self.words[word::FAILING_SINCE].compare_exchange(0, now.max(1), Relaxed, Relaxed);
        self.words[word::FAILED].fetch_add(1, Relaxed);
        self.words[word::FAILS].fetch_add(1, Relaxed).saturating_add(1)
    }

    /// How long the instance has failed without a success, milliseconds.
    pub fn failing_for(&self, now: u64) -> Option<u64> {
        let since = self.load(word::FAILING_SINCE);
        (since != 0).then(|| now.saturating_sub(since))
    }

    /// Notes the success of an attempt that began at `from`. It clears the failures of a marked
    /// instance if the attempt began after the last failure; of another instance if it was the first
    /// attempt after `fail_timeout`, as in nginx. A marked instance begins its slow start `now`.
    /// Returns whether the instance was marked and has recovered.
    pub fn note_success(&self, identity: u64, max_fails: u64, from: u64, now: u64) -> bool {
        if !self.has_fails() || !self.belongs_to(identity) {
            return false;
        }
        let (failed_at, marked) = (self.load(word::FAILED_AT), self.is_marked(max_fails));
        if (marked && from < failed_at) || (!marked && failed_at >= self.load(word::CHECKED)) {
            return false;
        }
        if marked {
            self.words[word::STARTED].store(now, Relaxed);
        }
        self.clear_fails(identity);
        marked
    }

    /// Clears the failures. Any success of an upstream's only instance does so.
    pub fn clear_fails(&self, identity: u64) {
        if self.belongs_to(identity) {
            self.words[word::FAILING_SINCE].store(0, Relaxed);
            self.words[word::FAILS].store(0, Relaxed);
        }
    }
}

fn terms(limits: FailureLimits, now: u64, pace: u64) -> Terms {
    Terms { now, expires_after: limits.fail_timeout, pace }
}
