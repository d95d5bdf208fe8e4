//! The map of the zone: which word is what. Everything that lies in the zone has its offset here.
//!
//! ```text
//! header │ lookup cache │ overrides │ shards │ entries │ slots │ arena
//! ```

use std::ops::Range;

use super::platform::atomic::{AtomicU64, Ordering::Relaxed};

/// Says that the zone holds a table of this layout.
const MAGIC: u64 = 0x6e67_782d_636e_000b;

/// Most shards, for 256 workers and their successors.
const MAX_SHARDS: usize = 512;

/// Bytes of the zone for each entry of the table; a zone of 10 MB has room for 1280 targets.
const BYTES_PER_ENTRY: usize = 8192;

/// Words of the header.
pub(super) mod header {
    /// The other words of it are spare.
    pub(crate) const WORDS: usize = 24;
    pub(crate) const MAGIC: usize = 0;
    /// Process that holds the publishers' lock; 0: none.
    pub(crate) const LOCK: usize = 1;
    /// 1 while the lock is held: its holder was killed if the lock is free or orphaned.
    pub(crate) const DIRTY: usize = 2;
    pub(crate) const SHARDS: usize = 3;
    pub(crate) const ENTRIES: usize = 4;
    pub(crate) const SLOTS: usize = 5;
    /// Process whose watcher replaces sets.
    pub(crate) const LEADER: usize = 7;
    /// When the state file was last written, milliseconds of the monotonic clock; 0 if there is none.
    pub(crate) const STATE_WRITTEN: usize = 8;
    /// Why it can't be written now: an error number of the system; 0 if it can.
    pub(crate) const STATE_ERROR: usize = 9;
    /// Connections to Consul: of the watcher that runs now, and what is left of those before it.
    pub(crate) const CONNECTIONS: usize = 10;
    pub(crate) const CONNECTIONS_LEFT: usize = 11;
    pub(crate) const CONNECTIONS_ENDING: usize = 12;
    pub(crate) const CONNECTIONS_OWNER: usize = 13;
    /// How many words of each slot's shards, from the first one on, were ever in use.
    pub(crate) const SHARD_WORDS: usize = 14;
    /// The list of overrides in force: its version, whose last bit says in which area it is, and in
    /// the lower half its bytes.
    pub(crate) const OVERRIDES: usize = 15;
    /// Counts requests for a resync.
    pub(crate) const RESYNCS: usize = 16;
    /// 1 once overrides were restored, or there were none to restore.
    pub(crate) const OVERRIDES_RESTORED: usize = 17;
    /// Counts instances that answer again after they had failed.
    pub(crate) const RECOVERIES: usize = 18;
    /// How many connections to Consul are allowed, and what keeps more away.
    pub(crate) const CONNECTIONS_PLAN: usize = 19;
    /// Number of the configuration in force, and of the one that comes next; both from 1 on.
    pub(crate) const CONFIGURATION: usize = 20;
    pub(crate) const NEXT_CONFIGURATION: usize = 21;
}

/// Results of lookups of services that requests have named.
pub(super) mod lookup_cache {
    /// Cells that a name may be in.
    pub(crate) const WAYS: usize = 4;
    /// Words of a cell.
    pub(crate) const CELL: usize = 2;
    /// The cache has a set of cells for each entry of the table.
    pub(crate) const WORDS_PER_ENTRY: usize = WAYS * CELL;
}

/// The two areas of the list of overrides.
pub(super) mod overrides {
    /// Most overrides of a table.
    pub(crate) const MAX: usize = 1024;
    /// Words of an area for each override, its texts included.
    pub(crate) const AREA_WORDS: usize = 16;
    /// Words of both areas for each override.
    pub(crate) const WORDS: usize = 2 * AREA_WORDS;
}

/// Words of an entry.
pub(super) mod entry {
    use crate::model::{MAX_NAME, Reason};

    pub(crate) const WORDS: usize = 90 + OUTAGE_WORDS;
    pub(crate) const KEY_LO: usize = 0;
    pub(crate) const KEY_HI: usize = 1;
    /// Its lowest bit says which of the two descriptors is in force. 0: no data yet.
    pub(crate) const GENERATION: usize = 2;
    /// Two descriptors of four words, so that a new one is complete before the generation names it.
    pub(crate) const DESCRIPTORS: [usize; 2] = [3, 8];
    /// In a descriptor: offset and length of the block.
    pub(crate) const D_BLOCK: usize = 0;
    /// In a descriptor: words of metadata, and number of peers.
    pub(crate) const D_COUNT: usize = 1;
    /// In a descriptor: digest of the set.
    pub(crate) const D_DIGEST: [usize; 2] = [2, 3];
    /// When Consul is asked again after a failure, milliseconds of the monotonic clock, as all times of
    /// an entry.
    pub(crate) const RETRY_AT: usize = 7;
    /// 1 while the set is from the state file.
    pub(crate) const RESTORED: usize = 12;
    pub(crate) const INDEX: usize = 13;
    pub(crate) const LAST_GOOD: usize = 14;
    pub(crate) const FAILURES: usize = 15;
    pub(crate) const SERVER: usize = 16;
    pub(crate) const MODE: usize = 17;
    pub(crate) const LAST_CHANGE: usize = 18;
    /// A removal that waits: peers, reads that agreed, reads that have to. 0: none.
    pub(crate) const PENDING: usize = 19;
    /// A counter for each [`Reason`].
    pub(crate) const REFUSALS: usize = 20;
    /// When a request last asked for the target.
    pub(crate) const USED: usize = REFUSALS + Reason::ALL.len();
    /// Of a service that a request named: key of its template.
    pub(crate) const TEMPLATE: [usize; 2] = [USED + 1, USED + 2];
    /// Name of that service; 0: none.
    pub(crate) const NAME: usize = USED + 3;
    /// Process that confirmed the set last, with a good answer.
    pub(crate) const CONFIRMED_BY: usize = NAME + MAX_NAME / 8;
    /// [`service_scope`](crate::model::service_scope) of the target.
    pub(crate) const SCOPE: usize = CONFIRMED_BY + 1;
    /// 1: worker 0 is to ask Consul now.
    pub(crate) const RESYNC: usize = SCOPE + 1;
    /// What an answer would change while the target is frozen.
    pub(crate) const FROZEN_DIFF: usize = SCOPE + 2;
    /// State of an outage of all instances.
    pub(crate) const OUTAGE: usize = SCOPE + 3;
    pub(crate) const OUTAGE_WORDS: usize = 2 + PERMITS;
    /// In an outage: when an instance was last marked as failed.
    pub(crate) const O_MARKED_AT: usize = 0;
    /// In an outage: when the attempt began that failed and began last.
    pub(crate) const O_FAILED_FROM: usize = 1;
    /// In an outage: permits, the last words of it.
    pub(crate) const PERMITS: usize = 16;
    /// The last error, to the end of the entry.
    pub(crate) const ERROR: usize = OUTAGE + OUTAGE_WORDS;
}

/// Words of a slot, which holds the counters of an instance.
pub(super) mod slot {
    /// Before its shards, two of which share a word.
    pub(crate) const WORDS: usize = 12;
    /// To which instance it belongs, in the set of which target; 0: to none.
    pub(crate) const OWNER: usize = 0;
    pub(crate) const PICKS: usize = 1;
    /// `fails`, `accessed` and `checked` of `ngx_http_upstream_rr_peer_t`, in milliseconds of the
    /// monotonic clock.
    pub(crate) const FAILS: usize = 2;
    pub(crate) const FAILED_AT: usize = 3;
    pub(crate) const CHECKED: usize = 4;
    /// When the instance appeared, returned or recovered, milliseconds of the monotonic clock, 0: it was
    /// there from the first answer; or when it left. Below that is a hash of its address.
    pub(crate) const MEMBERSHIP: usize = 5;
    /// All failures, never reset.
    pub(crate) const FAILED: usize = 6;
    /// Mean of the time to the response header, as [`crate::balance::Latency::raw`] has it.
    pub(crate) const LATENCY: usize = 7;
    /// Connections opened and reused by upstreams with `consul_keepalive`.
    pub(crate) const OPENED: usize = 8;
    pub(crate) const REUSED: usize = 9;
    /// When the first failure was that no success has followed; 0: there is none.
    pub(crate) const FAILING_SINCE: usize = 10;
    /// The permit of the request that probes the instance.
    pub(crate) const PROBE: usize = 11;
}

/// The table, over the words of the zone.
#[derive(Clone, Copy, Debug)]
pub struct Table<'z> {
    pub(super) words: &'z [AtomicU64],
    pub(super) layout: Layout,
    /// How many words of each slot's shards, from the first one on, were ever in use.
    pub(super) shard_words: &'z AtomicU64,
    /// The configuration that the holder acts for.
    pub(super) configuration: u32,
    /// The holder is a process's main thread, which never waits for the lock for long.
    pub(super) is_event_loop: bool,
}

/// Where the parts begin, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) lookup_cache: usize,
    pub(super) overrides: usize,
    pub(super) override_count: usize,
    /// Holders of the shards, up to the entries.
    pub(super) shards: usize,
    pub(super) entries: usize,
    pub(super) entry_count: usize,
    pub(super) slots: usize,
    pub(super) slot_count: usize,
    pub(super) slot_words: usize,
    pub(super) arena: usize,
    pub(super) end: usize,
}

/// Where a slot is: its first word, so that nothing has to be multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotRef(pub(super) u32);

/// A worker's column of in-flight counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerShard(pub(super) u32);

impl Layout {
    pub(super) fn new(words: usize, shards: usize) -> Option<Layout> {
        let entry_count = entries_in(words * 8);
        let slot_words = slot::WORDS + shards / 2;
        let overrides = header::WORDS + entry_count * lookup_cache::WORDS_PER_ENTRY;
        let override_count = entry_count.min(overrides::MAX);
        let first_shard = overrides + override_count * overrides::WORDS;
        let entries = first_shard + shards;
        let slots = entries + entry_count * entry::WORDS;
        // Two sevenths of what is left for slots: a slot is about 40 % of what an instance takes,
        // and an update needs room for a second block.
        let slot_count = words.checked_sub(slots)? / 7 * 2 / slot_words;
        let arena = slots + slot_count * slot_words;
        (slot_count > 0 && words > arena && words <= u32::MAX as usize).then_some(Layout {
            lookup_cache: header::WORDS,
            overrides,
            override_count,
            shards: first_shard,
            entries,
            entry_count,
            slots,
            slot_count,
            slot_words,
            arena,
            end: words,
        })
    }
}

/// How many shards a zone gets for this many workers: enough for two generations of many workers and
/// more of few, in whole cache lines of counts.
pub fn shards_for(workers: usize) -> usize {
    (workers * 2).next_multiple_of(16).clamp(32, MAX_SHARDS)
}

/// How many targets fit into a zone of so many bytes.
pub fn entries_in(bytes: usize) -> usize {
    (bytes / BYTES_PER_ENTRY).max(4)
}

impl<'z> Table<'z> {
    /// Lays out an empty table for `shards` (a multiple of 16) over zeroed words.
    /// `None` if the zone is too small.
    pub fn create(words: &'z [AtomicU64], shards: usize) -> Option<Table<'z>> {
        let layout = Layout::new(words.len(), shards)?;
        let table = Table::over(words, layout);
        table.word(header::SHARDS).store(shards as u64, Relaxed);
        table.word(header::ENTRIES).store(layout.entry_count as u64, Relaxed);
        table.word(header::SLOTS).store(layout.slot_count as u64, Relaxed);
        table.word(header::MAGIC).store(MAGIC, Relaxed);
        Some(table)
    }

    /// Finds the table that an earlier configuration left in the zone, for a process's main thread.
    /// `None` if there is none, or one of another layout.
    pub fn attach(words: &'z [AtomicU64]) -> Option<Table<'z>> {
        if words.len() < header::WORDS || words[header::MAGIC].load(Relaxed) != MAGIC {
            return None;
        }
        let shards = usize::try_from(words[header::SHARDS].load(Relaxed)).ok()?;
        if shards % 16 != 0 || !(16..=MAX_SHARDS).contains(&shards) {
            return None;
        }
        let layout = Layout::new(words.len(), shards)?;
        (words[header::ENTRIES].load(Relaxed) == layout.entry_count as u64
            && words[header::SLOTS].load(Relaxed) == layout.slot_count as u64)
            .then(|| Table { is_event_loop: true, ..Table::over(words, layout) })
    }

    pub(super) fn over(words: &'z [AtomicU64], layout: Layout) -> Table<'z> {
        let shard_words = &words[header::SHARD_WORDS];
        Table { words, layout, shard_words, configuration: 0, is_event_loop: false }
    }

    /// The table for threads, which may wait for the publishers' lock for as long as it takes.
    #[must_use]
    pub fn for_threads(self) -> Table<'z> {
        Table { is_event_loop: false, ..self }
    }

    /// How many targets fit.
    pub fn entry_capacity(&self) -> usize {
        self.layout.entry_count
    }

    #[inline]
    pub(super) fn word(&self, at: usize) -> &'z AtomicU64 {
        &self.words[at]
    }

    #[inline]
    pub(super) fn load(&self, at: usize) -> u64 {
        self.word(at).load(Relaxed)
    }

    #[inline]
    pub(super) fn entry_word(&self, entry: usize, word: usize) -> &'z AtomicU64 {
        self.word(self.layout.entries + entry * entry::WORDS + word)
    }

    #[inline]
    pub(super) fn slot_word(&self, slot: usize, word: usize) -> &'z AtomicU64 {
        self.word(self.layout.slots + slot * self.layout.slot_words + word)
    }

    /// Some words of an entry.
    #[inline]
    pub(super) fn entry_words(&self, entry: usize, words: Range<usize>) -> &'z [AtomicU64] {
        let first = self.layout.entries + entry * entry::WORDS;
        &self.words[first + words.start..first + words.end]
    }

    /// A word of the descriptor that belongs to a generation of the entry's set.
    #[inline]
    pub(super) fn descriptor(&self, entry: usize, generation: u64, word: usize) -> &'z AtomicU64 {
        self.entry_word(entry, entry::DESCRIPTORS[(generation & 1) as usize] + word)
    }

    /// Where a slot is; `None` if there is none of that number.
    #[inline]
    pub(super) fn slot_at(&self, slot: usize) -> Option<SlotRef> {
        // A table has fewer words than 2³².
        (slot < self.layout.slot_count)
            .then(|| SlotRef((self.layout.slots + slot * self.layout.slot_words) as u32))
    }

    /// The number of the slot there.
    pub(super) fn slot_number(&self, SlotRef(first): SlotRef) -> u32 {
        (first - self.layout.slots as u32) / self.layout.slot_words as u32
    }
}

#[cfg(test)]
mod tests;
