//! The counters of an instance's requests, which all workers share and which stay with it from set to
//! set, also while it is in none.

use super::layout::{SlotRef, Table, WorkerShard, slot as word};
use super::platform::atomic::AtomicU64;
use super::platform::atomic::Ordering::{AcqRel, Relaxed};

/// A shard's half of a word: requests in flight, and idle connections above them.
const REQUEST_BITS: u32 = 20;
const MAX_IDLE: u64 = (1 << (32 - REQUEST_BITS)) - 1;
/// The requests of both shards of a word.
const REQUESTS: u64 = 0x000f_ffff_000f_ffff;
/// The idle connections of both, once shifted down.
const IDLE: u64 = MAX_IDLE << 32 | MAX_IDLE;

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
        owner: u64,
        shard: Option<WorkerShard>,
    ) -> Option<InFlight<'z>> {
        self.begin_request_at(slot, self.peer_counters(slot), owner, shard)
    }

    /// As [`Table::begin_request`], with counters that the caller already has.
    #[inline]
    pub fn begin_request_at(
        &self,
        slot: SlotRef,
        counters: PeerCounters<'z>,
        owner: u64,
        shard: Option<WorkerShard>,
    ) -> Option<InFlight<'z>> {
        let Some(WorkerShard(shard)) = shard else {
            counters.count_pick(owner);
            return None;
        };
        let word = &self.words[slot.0 as usize + word::WORDS + (shard / 2) as usize];
        let request = InFlight { word, one: 1 << (shard % 2 * 32) };
        // Before it looks at the owner: see Table::take_slot().
        word.fetch_add(request.one, AcqRel);
        if !counters.count_pick(owner) {
            return request.cancel();
        }
        Some(request)
    }

    /// The words of a slot's shards.
    pub(super) fn shards_of(&self, slot: SlotRef) -> &'z [AtomicU64] {
        let first = slot.0 as usize;
        &self.words[first + word::WORDS..first + self.layout.slot_words]
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

/// Whether a word of two shards counts requests in flight.
pub(super) fn has_requests(shards: u64) -> bool {
    shards & REQUESTS != 0
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

    /// Whether the slot still belongs to the instance. Another instance, or the same one in the set of
    /// another target, may have got it while a request held an older set.
    #[inline]
    pub(super) fn belongs_to(&self, owner: u64) -> bool {
        self.load(word::OWNER) == owner
    }

    /// Counts a pick, if the slot still belongs to the instance.
    #[inline]
    fn count_pick(&self, owner: u64) -> bool {
        let belongs = self.belongs_to(owner);
        if belongs {
            self.words[word::PICKS].fetch_add(1, Relaxed);
        }
        belongs
    }

    /// The mean time to the response header, as [`crate::balance::Latency`] reads it.
    #[inline]
    pub fn latency(&self) -> u64 {
        self.load(word::LATENCY)
    }

    /// Replaces the mean, unless another worker has just done so: its sample is as good.
    #[inline]
    pub fn update_latency(&self, owner: u64, update: impl Fn(u64) -> u64) {
        if self.belongs_to(owner) {
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
    pub fn note_opened(&self, owner: u64) {
        if self.belongs_to(owner) {
            self.words[word::OPENED].fetch_add(1, Relaxed);
        }
    }

    /// Counts a request sent over an idle connection.
    #[inline]
    pub fn note_reused(&self, owner: u64) {
        if self.belongs_to(owner) {
            self.words[word::REUSED].fetch_add(1, Relaxed);
        }
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
    /// Takes the request back: the slot is not that of the instance any more.
    #[cold]
    #[inline(never)]
    fn cancel<T>(self) -> Option<T> {
        self.end();
        None
    }

    /// The request has ended.
    #[inline]
    pub fn end(self) {
        self.word.fetch_sub(self.one, AcqRel);
    }
}
