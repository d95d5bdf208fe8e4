//! The table of peers that all processes share: a slice of words in nginx's shared zone.
//!
//! ```text
//! header │ verdicts │ overrides │ shards │ entries │ slots │ arena
//! ```
//!
//! * An **entry** is one target (a selection of a service's instances): its generation and where
//!   its current block lies.
//! * A **block**, in the arena, is one published set of peers, with its last changes. It is never changed: a new set is a
//!   new block, and the store of the entry's generation makes it the current one. A reader copies
//!   the block and looks at the generation again, so it waits for nobody ([`read`]).
//! * A **slot** holds the counters of one instance. It belongs to the instance, not to the block,
//!   and stays with it from set to set ([`counters`]).
//! * A **shard** is one worker's column of in-flight counts in every slot. Only its worker writes
//!   it, so when a worker is killed its column is all there is to clear.
//! * A **permit**, in an entry or a slot, lets a request try what has failed ([`permits`]).
//! * A **verdict** says what became of a name that a request asked for ([`lookup_cache`]).
//! * An **override** is what an operator wants of an instance or a selection ([`overrides`]).
//!
//! Which parts of the arena and which slots are free is not stored anywhere: it follows from the
//! entries. So a publisher may be killed at any instruction, and the next one has nothing to
//! repair but slots that no block names ([`publish`]).

use std::io;

use platform::atomic::{AtomicU64, Ordering::Relaxed};

pub mod resync;
pub mod entry;
pub mod failures;
mod history;
pub mod connection_budget;
mod lock;
#[cfg(not(all(test, loom)))]
mod platform;
#[cfg(all(test, loom))]
#[path = "table/model/platform.rs"]
mod platform;
#[cfg(all(test, loom))]
mod model;
pub mod outage;
pub mod overrides;
pub mod permits;
pub mod publish;
pub mod read;
mod record;
pub mod counters;
pub mod lookup_cache;
mod words;

pub use counters::{Counters, InFlight, Slot, SlotRef, WorkerShard};
pub use entry::Freshness;
pub use failures::{Limits, PROBE_PACE};
pub use history::Changed;
pub use lookup_cache::LookupResult;
pub use outage::Outage;
pub use overrides::{NotSet, Overrides};
pub use permits::Permit;
pub use publish::Full;
pub use read::PeerSnapshot;
pub use record::{PeerMetadata, PeerRecord};
pub use resync::FrozenDiff;

/// Says that the zone holds a table of this layout.
const MAGIC: u64 = 0x6e67_782d_636e_000a;

/// Words of the header; the rest of them is spare.
const HEADER: usize = 24;
const H_MAGIC: usize = 0;
const H_LOCK: usize = 1;
const H_DIRTY: usize = 2;
const H_SHARDS: usize = 3;
const H_ENTRIES: usize = 4;
const H_SLOTS: usize = 5;
const H_SLOT_CURSOR: usize = 6;
const H_LEADER: usize = 7;
/// When the state file was last written, milliseconds since the epoch; 0 if there is none.
const H_STATE_WRITTEN: usize = 8;
/// Why it can't be written now: an error number of the system; 0 if it can.
const H_STATE_ERROR: usize = 9;
/// Connections to Consul: of who follows it now, and what is left of those before ([`connection_budget`]).
const H_CONNECTIONS: usize = 10;
const H_CONNECTIONS_LEFT: usize = 11;
const H_CONNECTIONS_ENDING: usize = 12;
const H_CONNECTIONS_OWNER: usize = 13;
/// See [`Table`].
const H_SHARD_WORDS: usize = 14;
/// The list of overrides in force: its number, whose last bit says in which area it is, and in the
/// lower half its bytes.
const H_OVERRIDES: usize = 15;
/// Counts what workers ask of worker 0 ([`resync`]).
const H_ASKED: usize = 16;
/// 1 once overrides were restored, or there were none to restore.
const H_OVERRIDES_BEGUN: usize = 17;
/// Counts instances that answer again after they had failed.
const H_RECOVERIES: usize = 18;
/// How many connections to Consul are allowed, and why not more ([`connection_budget`]).
const H_CONNECTIONS_PLAN: usize = 19;

/// Most shards, for 256 workers and their successors.
const MAX_SHARDS: usize = 512;

/// Bytes of the zone for each entry of the table; a zone of 10 MB has room for 1280 targets.
const BYTES_PER_ENTRY: usize = 8192;

/// The table, over the words of the zone.
#[derive(Clone, Copy, Debug)]
pub struct Table<'z> {
    words: &'z [AtomicU64],
    layout: Layout,
    /// How many words of a slot's shards, from the first one on, belong to shards that somebody ever
    /// took.
    shard_words: &'z AtomicU64,
}

/// Where the parts begin, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    verdicts: usize,
    overrides: usize,
    override_count: usize,
    /// Up to the entries.
    shards: usize,
    entries: usize,
    entry_count: usize,
    slots: usize,
    slot_count: usize,
    slot_words: usize,
    arena: usize,
    end: usize,
}

impl Layout {
    fn new(words: usize, shards: usize) -> Option<Layout> {
        let entry_count = entries_in(words * 8);
        let slot_words = counters::WORDS + shards / 2;
        let overrides = HEADER + entry_count * lookup_cache::WORDS_PER_ENTRY;
        let override_count = entry_count.min(overrides::MAX);
        let first_shard = overrides + override_count * overrides::WORDS;
        let entries = first_shard + shards;
        let slots = entries + entry_count * entry::WORDS;
        // Two sevenths of what is left for slots: a slot is about 40 % of what an instance takes,
        // and an update needs room for a second block.
        let slot_count = words.checked_sub(slots)? / 7 * 2 / slot_words;
        let arena = slots + slot_count * slot_words;
        (slot_count > 0 && words > arena && words <= u32::MAX as usize).then_some(Layout {
            verdicts: HEADER,
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
        table.word(H_SHARDS).store(shards as u64, Relaxed);
        table.word(H_ENTRIES).store(layout.entry_count as u64, Relaxed);
        table.word(H_SLOTS).store(layout.slot_count as u64, Relaxed);
        table.word(H_MAGIC).store(MAGIC, Relaxed);
        Some(table)
    }

    /// Finds the table that an earlier configuration left in the zone.
    /// `None` if there is none, or one of another layout.
    pub fn attach(words: &'z [AtomicU64]) -> Option<Table<'z>> {
        if words.len() < HEADER || words[H_MAGIC].load(Relaxed) != MAGIC {
            return None;
        }
        let shards = usize::try_from(words[H_SHARDS].load(Relaxed)).ok()?;
        if shards % 16 != 0 || !(16..=MAX_SHARDS).contains(&shards) {
            return None;
        }
        let layout = Layout::new(words.len(), shards)?;
        (words[H_ENTRIES].load(Relaxed) == layout.entry_count as u64
            && words[H_SLOTS].load(Relaxed) == layout.slot_count as u64)
            .then(|| Table::over(words, layout))
    }

    fn over(words: &'z [AtomicU64], layout: Layout) -> Table<'z> {
        Table { words, layout, shard_words: &words[H_SHARD_WORDS] }
    }

    /// How many targets fit.
    pub fn entry_capacity(&self) -> usize {
        self.layout.entry_count
    }

    /// Bytes in use; a slot is while an instance has it.
    pub fn usage(&self) -> usize {
        let blocks: usize = self.live_blocks().map(|block| block.len()).sum();
        let slots = (0..self.layout.slot_count)
            .filter(|&s| self.slot_word(s, counters::OWNER).load(Relaxed) != 0)
            .count();
        let fixed = self.layout.slots;
        (fixed + blocks + slots * self.layout.slot_words) * 8
    }

    /// Notes when the state file was written, milliseconds since the epoch.
    pub fn note_state_written(&self, at_ms: u64) {
        self.word(H_STATE_ERROR).store(0, Relaxed);
        self.word(H_STATE_WRITTEN).store(at_ms, Relaxed);
    }

    /// Notes why the state file can't be written.
    pub fn note_state_error(&self, error: &io::Error) {
        // EIO where the error is not the system's.
        let number = error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error());
        self.word(H_STATE_ERROR).store(u64::from(number.unsigned_abs()), Relaxed);
    }

    /// When the state file was last written (0: never), and why it can't be now.
    pub fn state_file(&self) -> (u64, Option<io::Error>) {
        let number = i32::try_from(self.load(H_STATE_ERROR)).unwrap_or(0);
        let error = (number != 0).then(|| io::Error::from_raw_os_error(number));
        (self.load(H_STATE_WRITTEN), error)
    }

    #[inline]
    fn word(&self, at: usize) -> &'z AtomicU64 {
        &self.words[at]
    }

    #[inline]
    fn load(&self, at: usize) -> u64 {
        self.word(at).load(Relaxed)
    }

    #[inline]
    fn entry_word(&self, entry: usize, word: usize) -> &'z AtomicU64 {
        self.word(self.layout.entries + entry * entry::WORDS + word)
    }

    #[inline]
    fn slot_word(&self, slot: usize, word: usize) -> &'z AtomicU64 {
        self.word(self.layout.slots + slot * self.layout.slot_words + word)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::{Health, Meta, Peer, PeerSet, identity};
    use crate::params::Params;
    use crate::process::ProcessId;
    use std::num::NonZeroU16;

    pub(crate) fn zone(words: usize) -> &'static [AtomicU64] {
        Vec::leak((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn peer(port: u16, weight: u16) -> Peer {
        let id = format!("web-{port}");
        Peer {
            addr: ([127, 0, 0, 1], port).into(),
            weight: NonZeroU16::new(weight).unwrap(),
            identity: identity("n1", &id, None),
            node: "n1".into(),
            id,
            tags: vec!["v1".into()],
            health: Health::Passing,
            datacenter: "dc1".into(),
            params: Params::default(),
            meta: Meta::new(),
        }
    }

    pub(crate) fn set(ports: impl IntoIterator<Item = u16>) -> PeerSet {
        PeerSet::new(ports.into_iter().map(|p| peer(p, 1)).collect())
    }

    #[test]
    fn a_table_is_found_again_in_its_zone_and_nowhere_else() {
        let words = zone(1 << 17);
        assert!(Table::attach(words).is_none());
        let made = Table::create(words, 16).unwrap();
        assert_eq!(Table::attach(words).unwrap().layout, made.layout);
        assert!(Table::attach(&words[..1 << 16]).is_none(), "another size is another layout");
    }

    #[test]
    fn a_zone_too_small_for_anything_is_refused() {
        assert!(Table::create(zone(200), 16).is_none());
    }

    #[test]
    fn ten_megabytes_have_room_for_1280_targets_and_ten_thousand_instances() {
        let layout = Layout::new(10 * 1024 * 1024 / 8, shards_for(8)).unwrap();
        assert_eq!(layout.entry_count, 1280);
        assert!(layout.slot_count > 10_000, "{layout:?}");
    }

    #[test]
    fn an_instance_takes_at_most_800_bytes_while_its_set_is_replaced() {
        let table = Table::create(zone(10 * 1024 * 1024 / 8), shards_for(16)).unwrap();
        let me = ProcessId::own();
        table.lead(me);
        let n: u16 = 5000;
        let instance = |i: u16| Peer {
            node: format!("ip-10-20-{}-{}.eu-central-1.compute.internal", i / 256, i % 256),
            id: format!("payments-api-10-20-{}-{}-8080", i / 256, i % 256),
            tags: ["v1.24.3", "http", "team=payments"].map(str::to_owned).to_vec(),
            datacenter: "eu-central-1".into(),
            ..peer(i, 1)
        };
        let empty = table.usage();
        let entry = table.claim(1, me).unwrap();
        let set = PeerSet::new((1..=n).map(instance).collect());
        table.publish((entry, 1), &set, 1, me).unwrap();
        let used = table.usage() - empty;
        // The old block and the new one are both there until the generation moves.
        let block = used - usize::from(n) * table.layout.slot_words * 8;
        let each = (used + block) / usize::from(n);
        assert!((500..=800).contains(&each), "{each} bytes");
    }
}
