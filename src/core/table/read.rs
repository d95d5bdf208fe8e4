//! Copies sets of peers out of the zone. A reader takes no lock and waits for nobody: it copies the
//! block and starts over if the generation has moved meanwhile.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::ops::Range;

use super::block::{Block, PEER_RECORD, PeerMetadata, PeerRecord, SetChange, decode_history};
use super::layout::{Table, entry};
use super::platform::atomic::{
    Ordering::{Acquire, Relaxed},
    fence,
};
use super::words::{unpack, wide};
use crate::model::{Peer, PeerSet};

/// How often a reader starts over before it gives up.
pub(super) const TRIES: usize = 8;

/// A copy of one set.
#[derive(Clone, Debug, Default)]
pub struct PeerSnapshot {
    /// Its generation.
    pub generation: u64,
    /// Its peers.
    pub records: Vec<PeerRecord>,
    /// Lines of JSON; `None` if only the records were read.
    metadata: Option<Vec<u8>>,
    history: Vec<u64>,
}

impl PeerSnapshot {
    /// A set without metadata, as [`Table::read_records`] gives it.
    pub fn of_records(generation: u64, records: Vec<PeerRecord>) -> PeerSnapshot {
        PeerSnapshot { generation, records, ..PeerSnapshot::default() }
    }

    /// The last changes of the set, newest first.
    pub fn history(&self) -> Vec<SetChange> {
        decode_history(self.history.iter().copied())
    }

    /// The metadata of all peers, in their order.
    pub fn metadata(&self) -> Vec<PeerMetadata> {
        let lines = self.metadata.as_deref().unwrap_or_default();
        let lines = lines.split_inclusive(|&b| b == b'\n');
        lines.map_while(PeerMetadata::decode).collect()
    }

    /// The metadata of the next peer, for a caller that reads one at a time; `at` is 0 at first.
    pub fn next_metadata(&self, at: &mut usize) -> Option<PeerMetadata> {
        let rest = self.metadata.as_ref()?.get(*at..)?;
        let line = rest.split_inclusive(|&b| b == b'\n').next()?;
        *at += line.len();
        PeerMetadata::decode(line)
    }

    /// The set itself; `None` if its metadata can't be read.
    pub fn peer_set(&self) -> Option<PeerSet> {
        let metadata = self.metadata();
        if metadata.len() != self.records.len() {
            return None;
        }
        let peer = |(record, metadata): (&PeerRecord, PeerMetadata)| {
            Some(Peer {
                addr: record.addr(),
                weight: NonZeroU16::new(u16::try_from(record.weight).ok()?)?,
                identity: record.identity,
                node: metadata.node,
                id: metadata.id,
                tags: metadata.tags,
                health: metadata.health,
                datacenter: metadata.datacenter,
                params: record.params(),
                meta: metadata.meta,
            })
        };
        let peers: Option<Vec<Peer>> = self.records.iter().zip(metadata).map(peer).collect();
        peers.map(PeerSet::new)
    }

    /// Takes the lines of JSON out.
    pub(crate) fn take_metadata(&mut self) -> Option<Vec<u8>> {
        self.metadata.take()
    }
}

impl<'z> Table<'z> {
    /// Copies the set of `key` out of its entry. `None` before the first answer, if the entry has
    /// passed to another target since the caller looked it up, and if the set was replaced during
    /// each of several tries: the caller then keeps the copy it has.
    pub fn read(&self, entry: usize, key: u128) -> Option<PeerSnapshot> {
        (0..TRIES).find_map(|_| self.try_read(entry, key, true))
    }

    /// As [`Table::read`], without metadata and history: what a worker needs to pick.
    pub fn read_records(&self, entry: usize, key: u128) -> Option<PeerSnapshot> {
        (0..TRIES).find_map(|_| self.try_read(entry, key, false))
    }

    pub(super) fn try_read(
        &self,
        entry: usize,
        key: u128,
        with_metadata: bool,
    ) -> Option<PeerSnapshot> {
        let generation = self.generation(entry);
        if self.key(entry) != key {
            return None;
        }
        let block = self.block(entry, generation)?;
        let count = block.records.len() / PEER_RECORD;
        let mut records = Vec::with_capacity(count);
        records.extend(self.records(&block, key));
        let words = |range: Range<usize>| self.words[range].iter().map(|word| word.load(Relaxed));
        let metadata = with_metadata.then(|| unpack(words(block.metadata)));
        let history = if with_metadata { words(block.history).collect() } else { Vec::new() };
        // Pairs with the publisher's fence: had one of the words above been of a later block, the
        // generation would have moved.
        fence(Acquire);
        let whole = records.len() == count
            && self.generation(entry) == generation
            && self.key(entry) == key;
        whole.then_some(PeerSnapshot { generation, records, metadata, history })
    }

    /// The records of a block; those with an impossible slot are left out.
    fn records(&self, block: &Block, key: u128) -> impl Iterator<Item = PeerRecord> {
        let rows = self.words[block.records.clone()].chunks_exact(PEER_RECORD);
        rows.filter_map(move |words| PeerRecord::decode(words.try_into().ok()?, key, self))
    }

    /// The entry's peers by identity. Only under the publishers' lock.
    pub(super) fn records_by_identity(
        &self,
        entry: usize,
        generation: u64,
    ) -> HashMap<u64, PeerRecord> {
        let (block, key) = (self.block(entry, generation), self.key(entry));
        let records = block.iter().flat_map(|block| self.records(block, key));
        records.map(|record| (record.identity, record)).collect()
    }

    /// The last changes of the entry's set. Only under the publishers' lock.
    pub(super) fn history(&self, entry: usize, generation: u64) -> Vec<SetChange> {
        let Some(block) = self.block(entry, generation) else { return Vec::new() };
        decode_history(block.history.map(|at| self.load(at)))
    }

    pub(super) fn digest(&self, entry: usize, generation: u64) -> u128 {
        wide(entry::D_DIGEST.map(|word| self.descriptor(entry, generation, word).load(Relaxed)))
    }

    /// The blocks of all entries.
    pub(super) fn live_blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let live = (0..self.layout.entry_count).filter(|&entry| self.key(entry) != 0);
        let block = |entry| self.block(entry, self.generation(entry));
        live.filter_map(block).map(|block| block.records.start..block.history.end)
    }

    /// Whether the entry has a set, even an empty one.
    pub fn has_data(&self, entry: usize) -> bool {
        self.key(entry) != 0 && self.block(entry, self.generation(entry)).is_some()
    }

    /// How many peers the entry's set has; `None` before the first answer.
    pub fn peer_count(&self, entry: usize) -> Option<usize> {
        let block = self.block(entry, self.generation(entry)).filter(|_| self.key(entry) != 0);
        block.map(|block| block.records.len() / PEER_RECORD)
    }

    /// Bytes in use. Of the slots, only those of members of a set count: that of an instance that has
    /// left can be given to another one once its requests have ended.
    pub fn usage(&self) -> usize {
        let blocks: usize = self.live_blocks().map(|block| block.len()).sum();
        let slots = (0..self.layout.slot_count).filter(|&slot| self.has_member(slot)).count();
        let fixed = self.layout.slots;
        (fixed + blocks + slots * self.layout.slot_words) * 8
    }
}
