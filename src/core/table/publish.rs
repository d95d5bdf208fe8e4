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
use super::resync::FrozenDiff;
use super::words::{join, pack};
use crate::clock::Clock;
use crate::model::{PeerSet, ServiceName};
use crate::process::ProcessId;

/// Why nothing is claimed or published; the last set stays in force.
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
    /// Another process holds the lock for too long; an event loop does not wait for it.
    #[error("the shared memory is busy")]
    Busy,
    /// The caller's configuration is not in force any more.
    #[error("a newer configuration is in force")]
    Superseded,
}

/// A target that is to have an entry.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Its key.
    pub key: u128,
    /// [`service_scope`](crate::model::service_scope) of its instances, by which overrides find them.
    pub scope: u64,
    /// Of a service that a request has just named: its name, and the time in milliseconds of the
    /// monotonic clock.
    pub named: Option<(&'a ServiceName, u64)>,
}

impl From<u128> for Claim<'_> {
    fn from(key: u128) -> Self {
        Claim { key, scope: 0, named: None }
    }
}

impl<'z> Table<'z> {
    /// The entry of a target; a free one if it has none. Waits for other publishers.
    ///
    /// # Errors
    ///
    /// The target has no entry, and the zone has no room for it, the lock is busy, or a newer
    /// configuration is in force.
    pub fn claim<'a>(&self, claim: impl Into<Claim<'a>>, me: ProcessId) -> Result<usize, Full> {
        let claim = claim.into();
        if let Some(entry) = self.find(claim.key) {
            return Ok(entry);
        }
        let guard = self.lock(me).ok_or(Full::Busy)?;
        if self.is_superseded() { Err(Full::Superseded) } else { guard.make_entry(&claim) }
    }

    /// Frees the entry of a service that requests had named, if it still has it and the caller leads.
    pub fn release(&self, entry: usize, key: u128, me: ProcessId) {
        let Some(_guard) = self.lock(me) else { return };
        if self.key(entry) != key || !self.is_leader(me) || self.is_superseded() {
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
    /// a newer one of its successor. For an event loop: `false` if another publisher takes too long or
    /// a newer configuration is in force, and then nothing has changed.
    pub fn acquire_leadership(&self, me: ProcessId) -> bool {
        let guard = self.lock_soon(me).filter(|_| !self.is_superseded());
        guard.inspect(|_| self.word(header::LEADER).store(me.get(), Relaxed)).is_some()
    }

    /// Whether this process is the one that may replace sets.
    pub fn is_leader(&self, me: ProcessId) -> bool {
        self.load(header::LEADER) == me.get()
    }

    /// Makes `set` the peers of `key`, in its entry, and begins a new generation. `None`, without a new
    /// generation, if the peers are the same, if the set is frozen, if another process leads, or if
    /// the entry has passed to another target since the caller looked it up. Of a frozen set it notes
    /// what would have changed.
    ///
    /// Waits for other publishers, never for requests.
    ///
    /// # Errors
    ///
    /// The zone has no room, or the lock is busy.
    pub fn publish(
        &self,
        (entry, key): (usize, u128),
        set: &PeerSet,
        now: Clock,
        me: ProcessId,
    ) -> Result<Option<SetChange>, Full> {
        let guard = self.lock(me).ok_or(Full::Busy)?;
        let has_data = self.has_data(entry);
        if self.key(entry) != key || (has_data && !self.is_leader(me)) {
            return Ok(None);
        }
        let generation = self.generation(entry);
        let is_frozen = has_data && self.is_frozen(key, now.monotonic);
        self.note_frozen_diff(
            entry,
            if is_frozen {
                let held = self.records_by_identity(entry, generation);
                let staying = set.peers().iter().filter(|p| held.contains_key(&p.identity)).count();
                let (joined, left) = (set.peers().len() - staying, held.len() - staying);
                FrozenDiff { joined: joined as u32, left: left as u32 }
            } else {
                FrozenDiff::default()
            },
        );
        let digest = set.digest();
        if is_frozen || (has_data && self.digest(entry, generation) == digest) {
            return Ok(None);
        }
        guard.replace(entry, generation, set, digest, now).map(Some)
    }

    /// Frees the entries of all targets, except those among `keys` and those of services that requests
    /// have named for one of `templates`. Worker 0 calls it once the configuration that had them is
    /// gone. `false` if another publisher takes too long for an event loop, if another process leads, or
    /// if there is a newer configuration; then nothing has changed.
    pub fn retain(&self, keys: &[u128], templates: &[u128], me: ProcessId) -> bool {
        let may = |_: &_| self.is_leader(me) && !self.has_successor();
        let Some(guard) = self.lock_soon(me).filter(may) else { return false };
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
    /// The entry of a target, made if there is none.
    fn make_entry(&self, claim: &Claim<'_>) -> Result<usize, Full> {
        let (table, key) = (self.table, claim.key);
        if let Some(entry) = table.find(key) {
            return Ok(entry);
        }
        let entry =
            (0..table.layout.entry_count).find(|&e| table.key(e) == 0).ok_or(Full::Entries)?;
        for word in word::GENERATION + 1..word::WORDS {
            table.entry_word(entry, word).store(0, Relaxed);
        }
        if let Some((named, now)) = claim.named {
            table.set_service_name(entry, named, now);
        }
        table.entry_word(entry, word::SCOPE).store(claim.scope, Relaxed);
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
