//! Publishing a new set of peers.
//!
//! The order of the stores is what makes it safe to be killed anywhere: the new slots and the new
//! block are complete before the generation names them, and only then do the slots of those who
//! left become free. What a killed publisher leaves behind is slots that no block names;
//! [`Guard::recover`] frees them.

use std::collections::HashMap;

use super::entry::{D_COUNT, D_DIGEST_HI, D_DIGEST_LO, D_PLACE, GENERATION, KEY_HI, KEY_LO};
use super::lock::Guard;
use super::machine::atomic::Ordering::{Relaxed, Release};
use super::read::{Detail, RECORD, Record};
use super::{H_LEADER, H_SLOT_CURSOR, Named, Table, slots};
use crate::model::PeerSet;
use crate::process::ProcessId;

/// What a published set changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Peers in the set.
    pub peers: usize,
    /// Peers that were not there before.
    pub added: usize,
    /// Peers that are no longer there.
    pub removed: usize,
    /// Peers that are still there, with another address or weight.
    pub changed: usize,
}

/// A peer of the set before: its slot, and where its record lies.
pub(super) struct Held {
    pub(super) slot: u32,
    pub(super) at: usize,
}

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

/// Bytes as words, the last one filled with zeros; and how many bytes they were.
pub(super) fn pack(bytes: &[u8]) -> (Vec<u64>, usize) {
    let word = |chunk: &[u8]| {
        let mut w = [0; 8];
        w[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(w)
    };
    (bytes.chunks(8).map(word).collect(), bytes.len())
}

impl<'z> Table<'z> {
    /// The entry of a target, made if there is none. Waits for other publishers.
    pub fn claim(&self, key: u128, me: ProcessId) -> Result<usize, Full> {
        self.claim_as(key, None, me)
    }

    /// As [`Table::claim`], for a service that a request named just now.
    pub fn claim_named(
        &self,
        key: u128,
        (named, now_ms): (&Named, u64),
        me: ProcessId,
    ) -> Result<usize, Full> {
        self.claim_as(key, Some((named, now_ms)), me)
    }

    fn claim_as(
        &self,
        key: u128,
        named: Option<(&Named, u64)>,
        me: ProcessId,
    ) -> Result<usize, Full> {
        if let Some(entry) = self.find(key) {
            return Ok(entry);
        }
        let _guard = self.lock(me);
        if let Some(entry) = self.find(key) {
            return Ok(entry);
        }
        let entry =
            (0..self.layout.entry_count).find(|&e| self.key(e) == 0).ok_or(Full::Entries)?;
        for word in GENERATION + 1..super::entry::WORDS {
            self.entry_word(entry, word).store(0, Relaxed);
        }
        if let Some((named, now_ms)) = named {
            self.set_named(entry, named, now_ms);
        }
        self.entry_word(entry, KEY_HI).store((key >> 64) as u64, Relaxed);
        self.entry_word(entry, KEY_LO).store(key as u64, Release);
        Ok(entry)
    }

    /// Frees the entry of a target that nobody asks for any more, if it still has it.
    pub fn release(&self, entry: usize, key: u128, me: ProcessId) {
        let _guard = self.lock(me);
        if self.key(entry) != key || !self.is_led_by(me) {
            return;
        }
        let held = self.identities(entry, self.generation(entry));
        self.vacate(entry);
        for held in held.into_values() {
            self.slot_word(held.slot as usize, slots::OWNER).store(0, Release);
        }
    }

    /// Takes the entry from its target. The generation goes on, so that nobody takes the next
    /// user's set for this one's.
    fn vacate(&self, entry: usize) {
        let next = self.generation(entry).wrapping_add(1);
        self.descriptor(entry, next, D_PLACE).store(0, Relaxed);
        self.entry_word(entry, GENERATION).store(next, Release);
        self.entry_word(entry, KEY_LO).store(0, Relaxed);
        self.entry_word(entry, KEY_HI).store(0, Relaxed);
    }

    /// From here on only this process replaces sets: an old worker 0 that still has an answer in
    /// hand can't put it over a newer one of its successor's.
    pub fn lead(&self, me: ProcessId) {
        let _guard = self.lock(me);
        self.word(H_LEADER).store(me.get(), Relaxed);
    }

    /// Whether this process is the one that replaces sets.
    pub fn is_led_by(&self, me: ProcessId) -> bool {
        self.load(H_LEADER) == me.get()
    }

    /// Makes `set` the peers of `key`, whose entry this was when the caller looked. `None` if they
    /// are what they were: no generation then; also if the entry has passed to another target, or
    /// has a set and another process leads.
    /// Waits for other publishers; never for requests.
    pub fn publish(
        &self,
        (entry, key): (usize, u128),
        set: &PeerSet,
        now_ms: u64,
        me: ProcessId,
    ) -> Result<Option<Change>, Full> {
        let guard = self.lock(me);
        if self.key(entry) != key || (self.has_data(entry) && !self.is_led_by(me)) {
            return Ok(None);
        }
        let generation = self.generation(entry);
        let digest = set.digest();
        if self.has_data(entry) && self.digest(entry, generation) == digest {
            return Ok(None);
        }
        guard.replace(entry, generation, set, digest, now_ms).map(Some)
    }

    /// How many more targets there is room for.
    pub fn free_entries(&self) -> usize {
        (0..self.layout.entry_count).filter(|&e| self.key(e) == 0).count()
    }

    /// Frees the entries of all targets that are not among `keys`, nor of services that requests have
    /// named for one of `templates`. For worker 0, once the
    /// configuration that had them is gone.
    pub fn retain(&self, keys: &[u128], templates: &[u128], me: ProcessId) {
        let guard = self.lock(me);
        for entry in 0..self.layout.entry_count {
            let key = self.key(entry);
            let is_named =
                || self.named(entry).is_some_and(|named| templates.contains(&named.template));
            if key != 0 && !keys.contains(&key) && !is_named() {
                self.vacate(entry);
            }
        }
        guard.recover();
    }

    fn digest(&self, entry: usize, generation: u64) -> u128 {
        let lo = self.descriptor(entry, generation, D_DIGEST_LO).load(Relaxed);
        let hi = self.descriptor(entry, generation, D_DIGEST_HI).load(Relaxed);
        u128::from(hi) << 64 | u128::from(lo)
    }

    /// Offset and length of every block in force.
    pub(super) fn live_places(&self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.layout.entry_count)
            .filter_map(|e| if self.key(e) == 0 { None } else { self.place(e, self.generation(e)) })
    }

    /// Whether the entry has a set, be it an empty one.
    pub fn has_data(&self, entry: usize) -> bool {
        self.key(entry) != 0 && self.place(entry, self.generation(entry)).is_some()
    }

    /// How many peers the entry's set has; `None` before the first answer.
    pub fn peer_count(&self, entry: usize) -> Option<usize> {
        let count = self.descriptor(entry, self.generation(entry), D_COUNT).load(Relaxed);
        self.has_data(entry).then_some((count & u64::from(u32::MAX)) as usize)
    }

    /// The block of an entry, never outside the arena; `None` if it has none.
    pub(super) fn place(&self, entry: usize, generation: u64) -> Option<(usize, usize)> {
        let place = self.descriptor(entry, generation, D_PLACE).load(Relaxed);
        let (offset, len) = ((place >> 32) as usize, (place & u64::from(u32::MAX)) as usize);
        (offset >= self.layout.arena && offset + len <= self.layout.end).then_some((offset, len))
    }
}

impl Guard<'_, '_> {
    fn replace(
        &self,
        entry: usize,
        generation: u64,
        set: &PeerSet,
        digest: u128,
        now_ms: u64,
    ) -> Result<Change, Full> {
        let table = self.table;
        let next = generation.wrapping_add(1);
        let before = table.identities(entry, generation);
        let (details, detail_bytes) = pack(&Detail::encode(set));
        let changed = table.changed(set, &before, (next, now_ms));
        let (total, len) = (changed.changed_total, set.peers().len() * RECORD + details.len());
        let history = table.next_history(entry, generation, changed);
        // Where there is no room for the history, the set goes without.
        let (offset, history) = match self.find_gap(len + history.len()) {
            Some(offset) => (offset, history),
            None => (self.find_gap(len).ok_or(Full::Arena(len * 8))?, Vec::new()),
        };
        // Who is there from the first answer is not new: it gets its full share at once.
        let started = if table.has_data(entry) { now_ms } else { 0 };
        let slots = self.assign_slots(set, &before, started)?;

        let records =
            set.peers().iter().zip(slots).flat_map(|(peer, slot)| Record::encode(peer, slot));
        let len = len + history.len();
        for (at, word) in (offset..).zip(records.chain(details).chain(history)) {
            table.word(at).store(word, Relaxed);
        }

        let describe = |word, value| table.descriptor(entry, next, word).store(value, Relaxed);
        describe(D_PLACE, (offset as u64) << 32 | len as u64);
        describe(D_COUNT, (detail_bytes as u64) << 32 | set.peers().len() as u64);
        describe(D_DIGEST_LO, digest as u64);
        describe(D_DIGEST_HI, (digest >> 64) as u64);
        table.note_change(entry, now_ms);
        table.entry_word(entry, GENERATION).store(next, Release);

        Ok(Change { changed: total, ..self.free_leavers(set, before) })
    }

    /// The slot of each peer of the set: the one it had, or a free one.
    fn assign_slots(
        &self,
        set: &PeerSet,
        before: &HashMap<u64, Held>,
        started: u64,
    ) -> Result<Vec<u32>, Full> {
        let table = self.table;
        let new = set.peers().iter().filter(|p| !before.contains_key(&p.identity)).count();
        let free = self.find_free_slots(new).ok_or(Full::Slots(new))?;
        let mut free = free.into_iter();
        let slots = set.peers().iter().map(|peer| {
            if let Some(held) = before.get(&peer.identity) {
                return held.slot;
            }
            let slot = free.next().unwrap_or_default();
            for word in slots::OWNER + 1..slots::WORDS {
                table.slot_word(slot, word).store(0, Relaxed);
            }
            table.slot_word(slot, slots::STARTED).store(started, Relaxed);
            table.slot_word(slot, slots::OWNER).store(peer.identity, Release);
            slot as u32
        });
        Ok(slots.collect())
    }

    /// Free slots, looked for from where the last search ended, so that a slot rests as long as
    /// possible before it is used again. One with requests still in flight is not free.
    fn find_free_slots(&self, wanted: usize) -> Option<Vec<usize>> {
        let table = self.table;
        let count = table.layout.slot_count;
        let start = table.word(H_SLOT_CURSOR).load(Relaxed) as usize % count;
        let is_free = |slot: &usize| {
            table.slot_word(*slot, slots::OWNER).load(Relaxed) == 0
                && table.slot_place(*slot).is_some_and(|place| table.in_flight(place) == 0)
        };
        let found: Vec<usize> =
            (0..count).map(|i| (start + i) % count).filter(is_free).take(wanted).collect();
        let last = found.last().copied().unwrap_or(start);
        table.word(H_SLOT_CURSOR).store(last as u64 + 1, Relaxed);
        (found.len() == wanted).then_some(found)
    }

    /// The first stretch of the arena that no block in force touches.
    fn find_gap(&self, len: usize) -> Option<usize> {
        let layout = self.table.layout;
        let mut used: Vec<(usize, usize)> = self.table.live_places().collect();
        used.sort_unstable();
        let mut at = layout.arena;
        for (offset, used_len) in used {
            if offset >= at + len {
                return Some(at);
            }
            at = at.max(offset + used_len);
        }
        (at + len <= layout.end).then_some(at)
    }

    fn free_leavers(&self, set: &PeerSet, mut before: HashMap<u64, Held>) -> Change {
        let had = before.len();
        for peer in set.peers() {
            before.remove(&peer.identity);
        }
        for held in before.values() {
            self.table.slot_word(held.slot as usize, slots::OWNER).store(0, Release);
        }
        let kept = had - before.len();
        let peers = set.peers().len();
        Change { peers, added: peers - kept, removed: before.len(), changed: 0 }
    }

    /// Frees every slot that no block in force names.
    pub(super) fn recover(&self) {
        let table = self.table;
        let mut named = vec![false; table.layout.slot_count];
        for entry in 0..table.layout.entry_count {
            if table.key(entry) != 0 {
                for held in table.identities(entry, table.generation(entry)).into_values() {
                    named[held.slot as usize] = true;
                }
            }
        }
        for (slot, _) in named.iter().enumerate().filter(|(_, named)| !**named) {
            table.slot_word(slot, slots::OWNER).store(0, Release);
        }
    }
}

#[cfg(test)]
mod tests;
