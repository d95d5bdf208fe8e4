//! Publishes sets of peers, and claims and frees entries.
//!
//! A publisher may be killed at any store: the new slots and the new block are complete before the
//! generation names them, and only after that is noted who has left. All that a killed publisher leaves
//! behind is members that no block names; [`PublishGuard::recover`] notes that they have left.

use std::collections::HashSet;
use std::ops::Range;

use super::block::{PEER_RECORD, PeerMetadata, SetChange, encode_history};
use super::layout::{Table, entry as word, header};
use super::lock::PublishGuard;
use super::platform::atomic::Ordering::{Relaxed, Release};
use super::platform::monotonic_ms;
use super::words::{join, pack};
use crate::clock::Clock;
use crate::model::{PeerSet, ServiceName};
use crate::process::ProcessId;

/// The zone has no room; the last set stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// No room for another target.
    #[error("no room for another service")]
    Entries,
    /// No free slot for an instance.
    #[error("no room for the counters of {0} more instances")]
    Slots(usize),
    /// No free stretch of the arena that is long enough.
    #[error("no room for {0} bytes of instances")]
    Arena(usize),
}

impl<'z> Table<'z> {
    /// The entry of a target; a free one if it has none. Waits for other publishers.
    ///
    /// # Errors
    ///
    /// The zone has no room for it.
    pub fn claim(&self, key: u128, me: ProcessId) -> Result<usize, Full> {
        self.claim_as(key, None, me)
    }

    /// As [`Table::claim`], for an event loop; `None` if another publisher takes too long.
    ///
    /// # Errors
    ///
    /// The zone has no room for it.
    pub fn claim_soon(&self, key: u128, me: ProcessId) -> Result<Option<usize>, Full> {
        if let Some(entry) = self.find(key) {
            return Ok(Some(entry));
        }
        let guard = self.lock_soon(me);
        guard.map(|guard| guard.make_entry(key, None)).transpose()
    }

    /// As [`Table::claim`], for a service that a request has named at a moment of the monotonic clock,
    /// in milliseconds.
    pub fn claim_named(
        &self,
        key: u128,
        named: (&ServiceName, u64),
        me: ProcessId,
    ) -> Result<usize, Full> {
        self.claim_as(key, Some(named), me)
    }

    fn claim_as(
        &self,
        key: u128,
        named: Option<(&ServiceName, u64)>,
        me: ProcessId,
    ) -> Result<usize, Full> {
        if let Some(entry) = self.find(key) {
            return Ok(entry);
        }
        self.lock(me).make_entry(key, named)
    }

    /// Frees the entry of a target that is no longer followed, if the target still has it.
    pub fn release(&self, entry: usize, key: u128, me: ProcessId) {
        let _guard = self.lock(me);
        if self.key(entry) != key || !self.is_leader(me) {
            return;
        }
        let held = self.records_by_identity(entry, self.generation(entry));
        self.free_entry(entry);
        let now = monotonic_ms();
        held.values().for_each(|record| self.note_left(record.slot, now));
    }

    /// Takes the entry from its target. The generation goes on, so that no reader mistakes the set of
    /// the entry's next target for this one's.
    fn free_entry(&self, entry: usize) {
        let next = self.generation(entry).wrapping_add(1);
        self.descriptor(entry, next, word::D_BLOCK).store(0, Relaxed);
        self.entry_word(entry, word::GENERATION).store(next, Release);
        self.entry_word(entry, word::KEY_LO).store(0, Relaxed);
        self.entry_word(entry, word::KEY_HI).store(0, Relaxed);
    }

    /// From here on only this process replaces sets: an old worker 0 can't publish a late answer over
    /// a newer one of its successor. For an event loop: `false` if another publisher takes too long, and
    /// then nothing has changed.
    pub fn acquire_leadership(&self, me: ProcessId) -> bool {
        let Some(_guard) = self.lock_soon(me) else { return false };
        self.word(header::LEADER).store(me.get(), Relaxed);
        true
    }

    /// Whether this process is the one that may replace sets.
    pub fn is_leader(&self, me: ProcessId) -> bool {
        self.load(header::LEADER) == me.get()
    }

    /// Makes `set` the peers of `key`, in its entry, and begins a new generation. `None`, without a new
    /// generation, if the peers are the same, if the set is frozen, if another process leads, or if
    /// the entry has passed to another target since the caller looked it up.
    ///
    /// Waits for other publishers, never for requests.
    ///
    /// # Errors
    ///
    /// The zone has no room.
    pub fn publish(
        &self,
        (entry, key): (usize, u128),
        set: &PeerSet,
        now: Clock,
        me: ProcessId,
    ) -> Result<Option<SetChange>, Full> {
        let guard = self.lock(me);
        let stays = || !self.is_leader(me) || self.is_frozen(key, now.monotonic);
        if self.key(entry) != key || (self.has_data(entry) && stays()) {
            return Ok(None);
        }
        let generation = self.generation(entry);
        let digest = set.digest();
        if self.has_data(entry) && self.digest(entry, generation) == digest {
            return Ok(None);
        }
        guard.replace(entry, generation, set, digest, now).map(Some)
    }

    /// Frees the entries of all targets, except those among `keys` and those of services that requests
    /// have named for one of `templates`. Worker 0 calls it once the configuration that had them is
    /// gone. `false` if another publisher takes too long for an event loop, and then nothing has changed.
    pub fn retain(&self, keys: &[u128], templates: &[u128], me: ProcessId) -> bool {
        let Some(guard) = self.lock_soon(me) else { return false };
        for entry in 0..self.layout.entry_count {
            let key = self.key(entry);
            let is_named = || {
                self.service_name(entry).is_some_and(|named| templates.contains(&named.template))
            };
            if key != 0 && !keys.contains(&key) && !is_named() {
                self.free_entry(entry);
            }
        }
        guard.recover();
        true
    }
}

impl PublishGuard<'_, '_> {
    /// The entry of a target, made if there is none; `named` is of a service that a request named
    /// just now.
    fn make_entry(&self, key: u128, named: Option<(&ServiceName, u64)>) -> Result<usize, Full> {
        let table = self.table;
        if let Some(entry) = table.find(key) {
            return Ok(entry);
        }
        let entry =
            (0..table.layout.entry_count).find(|&e| table.key(e) == 0).ok_or(Full::Entries)?;
        for word in word::GENERATION + 1..word::WORDS {
            table.entry_word(entry, word).store(0, Relaxed);
        }
        if let Some((named, now)) = named {
            table.set_service_name(entry, named, now);
        }
        table.entry_word(entry, word::KEY_HI).store((key >> 64) as u64, Relaxed);
        table.entry_word(entry, word::KEY_LO).store(key as u64, Release);
        Ok(entry)
    }

    fn replace(
        &self,
        entry: usize,
        generation: u64,
        set: &PeerSet,
        digest: u128,
        now: Clock,
    ) -> Result<SetChange, Full> {
        let table = self.table;
        let next = generation.wrapping_add(1);
        let before = table.records_by_identity(entry, generation);
        let metadata = pack(&PeerMetadata::encode(set));
        let changed = SetChange::of(set, &before, (next, now.wall));
        let mut history = table.history(entry, generation);
        if changed.is_any() {
            history.insert(0, changed.clone());
        }
        let history = encode_history(history);
        let len = set.peers().len() * PEER_RECORD + metadata.len();
        // Without room for the history, the set is published without it.
        let (offset, history) = match self.find_gap(len + history.len()) {
            Some(offset) => (offset, history),
            None => (self.find_gap(len).ok_or(Full::Arena(len * 8))?, Vec::new()),
        };
        let when = (now.monotonic, !table.has_data(entry));
        let records =
            self.assign_slots((table.key(entry), set), &before, when).map_err(Full::Slots)?;

        let (len, metadata_words) = (len + history.len(), metadata.len());
        let records = records.iter().flat_map(|record| record.encode(table));
        for (at, word) in (offset..).zip(records.chain(metadata).chain(history)) {
            table.word(at).store(word, Relaxed);
        }

        let describe = |word, value| table.descriptor(entry, next, word).store(value, Relaxed);
        describe(word::D_BLOCK, join(offset as u32, len as u32));
        describe(word::D_COUNT, join(metadata_words as u32, set.peers().len() as u32));
        describe(word::D_DIGEST[0], digest as u64);
        describe(word::D_DIGEST[1], (digest >> 64) as u64);
        table.note_change(entry, now.monotonic);
        table.entry_word(entry, word::GENERATION).store(next, Release);

        let stay: HashSet<u64> = set.peers().iter().map(|peer| peer.identity).collect();
        let left = before.values().filter(|record| !stay.contains(&record.identity));
        left.for_each(|record| table.note_left(record.slot, now.monotonic));
        Ok(changed)
    }

    /// Where the first gap between blocks of the arena is that is long enough.
    fn find_gap(&self, len: usize) -> Option<usize> {
        let layout = self.table.layout;
        let mut used: Vec<Range<usize>> = self.table.live_blocks().collect();
        used.sort_unstable_by_key(|block| block.start);
        let mut at = layout.arena;
        for block in used {
            if block.start >= at + len {
                return Some(at);
            }
            at = at.max(block.end);
        }
        (at + len <= layout.end).then_some(at)
    }
}

#[cfg(test)]
mod tests;
