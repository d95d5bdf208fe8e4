//! Slots: the counters of an instance, shared by all workers and kept over updates.

use super::Table;
use super::permits;
use super::platform::atomic::AtomicU64;
use super::platform::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use super::platform::is_alive;
use crate::process::ProcessId;

/// Words of a slot before its shards.
pub(super) const WORDS: usize = 12;
/// Identity of the instance; 0 is nobody.
pub(super) const OWNER: usize = 0;
pub(super) const PICKS: usize = 1;
/// Failures within `fail_timeout`, and when: `fails`, `accessed` and `checked` of
/// `ngx_http_upstream_rr_peer_t`, but in milliseconds of the monotonic clock.
pub(super) const FAILS: usize = 2;
pub(super) const FAILED_AT: usize = 3;
pub(super) const CHECKED: usize = 4;
/// When the instance appeared or recovered, milliseconds since the epoch; 0: it was there from the
/// first answer.
pub(super) const STARTED: usize = 5;
/// All failures, never reset.
pub(super) const FAILED: usize = 6;

/// Mean of the time to the response header, as [`crate::balance::Latency::raw`] has it.
pub(super) const LATENCY: usize = 7;
/// Connections opened and reused by blocks with `consul_keepalive`.
pub(super) const OPENED: usize = 8;
pub(super) const REUSED: usize = 9;
/// When the first failure was that no success has followed; 0: there is none.
pub(super) const FAILING_SINCE: usize = 10;
/// The permit of the request that probes the instance.
pub(super) const PROBE: usize = 11;

/// A shard's half of a word: requests in flight, and idle connections above them.
const REQUEST_BITS: u32 = 20;
const MAX_IDLE: u64 = (1 << (32 - REQUEST_BITS)) - 1;
/// The requests of both shards of a word.
const REQUESTS: u64 = 0x000f_ffff_000f_ffff;
/// The idle connections of both, once shifted down.
const IDLE: u64 = MAX_IDLE << 32 | MAX_IDLE;

/// A worker's column of in-flight counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerShard(u32);

impl WorkerShard {
    #[cfg(all(test, not(loom)))]
    pub(super) fn of(number: u32) -> WorkerShard {
        WorkerShard(number)
    }

    pub(super) fn number(self) -> u32 {
        self.0
    }
}

/// Where a slot is, without its number having to be multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotRef(u32);

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
    /// Idle connections to it; of one worker at most 4095 are counted.
    pub idle: u64,
    /// Connections opened for requests, and requests over a connection that was there.
    pub opened: u64,
    /// See `opened`.
    pub reused: u64,
}

impl<'z> Table<'z> {
    /// Takes a shard for the calling process and clears what a killed one left in it.
    /// `None` if all shards are held by running processes; its requests are then not counted.
    pub fn claim_shard(&self, me: ProcessId) -> Option<WorkerShard> {
        let can_be_taken = |holder| holder == 0 || !is_alive(holder);
        let shard = self.shards().find(|shard| self.seize(*shard, me, can_be_taken))?;
        self.shard_words.fetch_max(u64::from(shard.0) / 2 + 1, AcqRel);
        self.clear_lane(shard);
        Some(shard)
    }

    /// Clears the shards of killed processes that no new worker has taken.
    pub fn clear_dead_lanes(&self) {
        let me = ProcessId::own();
        let is_left = |holder| holder != 0 && !is_alive(holder);
        for shard in self.shards().filter(|shard| self.seize(*shard, me, is_left)) {
            self.clear_lane(shard);
            self.release_lane(shard);
        }
    }

    fn shards(&self) -> impl Iterator<Item = WorkerShard> {
        (0..(self.layout.entries - self.layout.shards) as u32).map(WorkerShard)
    }

    fn holder(&self, shard: WorkerShard) -> &'z AtomicU64 {
        self.word(self.layout.shards + shard.0 as usize)
    }

    /// Takes a shard from a holder that it may be taken from, if nobody else does.
    fn seize(&self, shard: WorkerShard, me: ProcessId, can_be_taken: impl Fn(u64) -> bool) -> bool {
        let holder = self.holder(shard).load(Acquire);
        let take = || self.holder(shard).compare_exchange(holder, me.get(), AcqRel, Acquire);
        can_be_taken(holder) && take().is_ok()
    }

    /// Takes all requests of a shard out of flight, and what permits they hold; for its holder.
    pub fn clear_lane(&self, shard: WorkerShard) {
        for slot in 0..self.layout.slot_count {
            let (word, shift) = self.lane_of(slot, shard);
            let left = word.load(Relaxed) >> shift & u64::from(u32::MAX);
            if left != 0 {
                word.fetch_sub(left << shift, AcqRel);
            }
            permits::clear(self.slot_word(slot, PROBE), shard);
        }
        self.clear_permits(shard);
    }

    /// Gives the shard back; what is still in it is cleared by the next holder.
    pub fn release_lane(&self, shard: WorkerShard) {
        self.holder(shard).store(0, Release);
    }

    fn lane_of(&self, slot: usize, shard: WorkerShard) -> (&'z AtomicU64, u32) {
        (self.slot_word(slot, WORDS + shard.0 as usize / 2), shard.0 % 2 * 32)
    }

    /// Where a slot is; `None` if there is none of that number.
    #[inline]
    pub(super) fn slot_place(&self, slot: usize) -> Option<SlotRef> {
        // A table has fewer words than 2³².
        (slot < self.layout.slot_count)
            .then(|| SlotRef((self.layout.slots + slot * self.layout.slot_words) as u32))
    }

    /// The number of the slot there.
    pub(super) fn slot_number(&self, SlotRef(place): SlotRef) -> u32 {
        (place - self.layout.slots as u32) / self.layout.slot_words as u32
    }

    /// The counters of a slot but for its shards, of which it has the first two.
    ///
    /// # Panics
    ///
    /// If the place is that of another table and beyond the end of this one.
    #[inline]
    pub fn slot(&self, place: SlotRef) -> Slot<'z> {
        let first = place.0 as usize;
        let words = self.words.get(first..first + WORDS + 1);
        match words.and_then(|words| words.try_into().ok()) {
            Some(words) => Slot { words },
            None => no_such_slot(place),
        }
    }

    /// Counts a request to the instance, in flight if the worker has a shard: then it has to be told
    /// when it ends.
    pub fn enter(
        &self,
        place: SlotRef,
        identity: u64,
        shard: Option<WorkerShard>,
    ) -> Option<InFlight<'z>> {
        self.enter_at(place, self.slot(place), identity, shard)
    }

    /// As [`Table::enter`], of a slot that was found before.
    #[inline]
    pub fn enter_at(
        &self,
        place: SlotRef,
        slot: Slot<'z>,
        identity: u64,
        shard: Option<WorkerShard>,
    ) -> Option<InFlight<'z>> {
        if !slot.belongs_to(identity) {
            return None;
        }
        slot.words[PICKS].fetch_add(1, Relaxed);
        let WorkerShard(shard) = shard?;
        let word = &self.words[place.0 as usize + WORDS + (shard / 2) as usize];
        let one = 1 << (shard % 2 * 32);
        word.fetch_add(one, AcqRel);
        Some(InFlight { word, one })
    }

    /// Requests that are with the instance, over all workers.
    pub fn in_flight(&self, place: SlotRef) -> u64 {
        self.in_flight_at(place, self.slot(place))
    }

    /// As [`Table::in_flight`], of a slot that was found before.
    #[inline]
    pub fn in_flight_at(&self, place: SlotRef, slot: Slot<'z>) -> u64 {
        // The sum of either half stays below 2³².
        let mut sums = slot.words[WORDS].load(Relaxed) & REQUESTS;
        if self.shard_words.load(Relaxed) > 1 {
            sums = sums.wrapping_add(self.sum_of_lanes(place, 1, |pair| pair & REQUESTS));
        }
        both(sums)
    }

    /// Sum over the words of shards from this number on, two to a word. In shards that nobody ever
    /// took there is nothing.
    #[inline(never)]
    fn sum_of_lanes(&self, place: SlotRef, from: usize, part: impl Fn(u64) -> u64) -> u64 {
        let used = self.shard_words.load(Relaxed) as usize;
        let used = used.clamp(from, self.layout.slot_words - WORDS);
        let first = place.0 as usize + WORDS;
        let pairs = self.words[first + from..first + used].iter();
        pairs.map(|pair| part(pair.load(Relaxed))).fold(0, u64::wrapping_add)
    }

    /// Counts an idle connection to the instance, or one less; for the holder of the shard.
    #[inline]
    pub fn note_idle(&self, place: SlotRef, WorkerShard(shard): WorkerShard, more: bool) {
        let word = &self.words[place.0 as usize + WORDS + (shard / 2) as usize];
        let shift = shard % 2 * 32 + REQUEST_BITS;
        // Nobody else changes the shard's half.
        let idle = word.load(Relaxed) >> shift & MAX_IDLE;
        if more && idle < MAX_IDLE {
            word.fetch_add(1 << shift, Relaxed);
        } else if !more && idle > 0 {
            word.fetch_sub(1 << shift, Relaxed);
        }
    }

    /// The counters, for the status page.
    pub fn counters(&self, place: SlotRef) -> Counters {
        let counters = self.slot(place);
        Counters {
            in_flight: self.in_flight_at(place, counters),
            picks: counters.picks(),
            failed: counters.load(FAILED),
            fails: counters.load(FAILS),
            idle: both(self.sum_of_lanes(place, 0, |pair| pair >> REQUEST_BITS & IDLE)),
            opened: counters.load(OPENED),
            reused: counters.load(REUSED),
        }
    }
}

/// The counters of an instance but for most of its shards. They are found once for all that a
/// request wants of them.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'z> {
    pub(super) words: &'z [AtomicU64; WORDS + 1],
}

/// Of a sum over words of two shards.
#[inline]
fn both(sums: u64) -> u64 {
    (sums & u64::from(u32::MAX)) + (sums >> 32)
}

#[cold]
fn no_such_slot(place: SlotRef) -> ! {
    panic!("no slot at {place:?} of the table")
}

impl Slot<'_> {
    #[inline]
    pub(super) fn load(&self, word: usize) -> u64 {
        self.words[word].load(Relaxed)
    }

    /// Times the instance was picked.
    pub fn picks(&self) -> u64 {
        self.load(PICKS)
    }

    /// Whether the slot still belongs to the instance; it may have passed to another one while a
    /// request held an older set.
    #[inline]
    pub(super) fn belongs_to(&self, identity: u64) -> bool {
        self.load(OWNER) == identity
    }

    /// The mean time to the response header, as [`crate::balance::Latency`] reads it.
    #[inline]
    pub fn latency(&self) -> u64 {
        self.load(LATENCY)
    }

    /// Replaces the mean, unless another worker was quicker: what it saw is as good.
    #[inline]
    pub fn update_latency(&self, identity: u64, update: impl Fn(u64) -> u64) {
        if self.belongs_to(identity) {
            let before = self.load(LATENCY);
            let _ = self.words[LATENCY].compare_exchange(before, update(before), Relaxed, Relaxed);
        }
    }

    /// Counts a connection that was opened for a request.
    pub fn note_opened(&self, identity: u64) {
        if self.belongs_to(identity) {
            self.words[OPENED].fetch_add(1, Relaxed);
        }
    }

    /// Counts a request over a connection that was there.
    #[inline]
    pub fn note_reused(&self, identity: u64) {
        if self.belongs_to(identity) {
            self.words[REUSED].fetch_add(1, Relaxed);
        }
    }

    /// When the instance appeared, or recovered from its failures, milliseconds since the epoch; 0:
    /// with the first answer.
    #[inline]
    pub fn started(&self) -> u64 {
        self.load(STARTED)
    }
}

/// A request that counts as in flight, until it is told that it ended. What a worker that dies has
/// not told is cleared with its shard.
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
