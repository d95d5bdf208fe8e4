//! Reading a set of peers, without waiting for anybody.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::ops::Range;

use super::block::{Block, PEER_RECORD, PeerMetadata, PeerRecord, SetChange, decode_history};
use super::layout::{Table, entry, slot};
use super::platform::atomic::{
    Ordering::{Acquire, Relaxed},
    fence,
};
use super::words::{unpack, wide};
use crate::model::{Peer, PeerSet};

/// How often a reader starts over before it stays with what it has.
pub(super) const TRIES: usize = 8;

/// A copy of one set.
#[derive(Clone, Debug, Default)]
pub struct PeerSnapshot {
    /// The generation it is.
    pub generation: u64,
    /// Its peers.
    pub records: Vec<PeerRecord>,
    /// If they were read.
    details: Option<Vec<u8>>,
    history: Vec<u64>,
}

impl PeerSnapshot {
    /// A set without details, as [`Table::read_records`] gives it.
    pub fn of_records(generation: u64, records: Vec<PeerRecord>) -> PeerSnapshot {
        PeerSnapshot { generation, records, ..PeerSnapshot::default() }
    }

    /// The last changes of the set, newest first.
    pub fn history(&self) -> Vec<SetChange> {
        decode_history(self.history.iter().copied())
    }

    /// What the status shows of each peer, in their order.
    pub fn metadata(&self) -> Vec<PeerMetadata> {
        let lines = self.details.as_deref().unwrap_or_default();
        let lines = lines.split_inclusive(|&b| b == b'\n');
        lines.map_while(PeerMetadata::decode).collect()
    }

    /// The next of the details, for who takes them one at a time; `at` is 0 at first.
    pub fn next_metadata(&self, at: &mut usize) -> Option<PeerMetadata> {
        let rest = self.details.as_ref()?.get(*at..)?;
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

    /// The same as it is in the table, once.
    pub(crate) fn take_metadata(&mut self) -> Option<Vec<u8>> {
        self.details.take()
    }
}

impl<'z> Table<'z> {
    /// Copies the set of `key`, whose entry this was when the caller looked. `None` before the
    /// first answer, when the entry has passed to another target, and if publishers were faster
    /// than this reader several times running: the caller then stays with the copy it has.
    pub fn read(&self, entry: usize, key: u128) -> Option<PeerSnapshot> {
        (0..TRIES).find_map(|_| self.try_read(entry, key, true))
    }

    /// As [`Table::read`], without the details: what a worker needs to pick.
    pub fn read_records(&self, entry: usize, key: u128) -> Option<PeerSnapshot> {
        (0..TRIES).find_map(|_| self.try_read(entry, key, false))
    }

    pub(super) fn try_read(
        &self,
        entry: usize,
        key: u128,
        with_details: bool,
    ) -> Option<PeerSnapshot> {
        let generation = self.generation(entry);
        if self.key(entry) != key {
            return None;
        }
        let block = self.block(entry, generation)?;
        let count = block.records.len() / PEER_RECORD;
        let mut records = Vec::with_capacity(count);
        records.extend(self.records(&block));
        let words = |range: Range<usize>| self.words[range].iter().map(|word| word.load(Relaxed));
        let details = with_details.then(|| unpack(words(block.details)));
        let history = if with_details { words(block.history).collect() } else { Vec::new() };
        // Pairs with the publisher's fence: had one of the words above been of a later block, the
        // generation would have moved.
        fence(Acquire);
        let whole = records.len() == count
            && self.generation(entry) == generation
            && self.key(entry) == key;
        whole.then_some(PeerSnapshot { generation, records, details, history })
    }

    /// The records of a block, but for those whose slot there is not.
    fn records(&self, block: &Block) -> impl Iterator<Item = PeerRecord> {
        let rows = self.words[block.records.clone()].chunks_exact(PEER_RECORD);
        rows.filter_map(|words| PeerRecord::decode(words.try_into().ok()?, self))
    }

    /// The entry's peers by identity. Only under the publishers' lock.
    pub(super) fn held(&self, entry: usize, generation: u64) -> HashMap<u64, PeerRecord> {
        let block = self.block(entry, generation);
        let records = block.iter().flat_map(|block| self.records(block));
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

    /// Every block in force.
    pub(super) fn live_blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let live = (0..self.layout.entry_count).filter(|&entry| self.key(entry) != 0);
        let block = |entry| self.block(entry, self.generation(entry));
        live.filter_map(block).map(|block| block.records.start..block.history.end)
    }

    /// Whether the entry has a set, be it an empty one.
    pub fn has_data(&self, entry: usize) -> bool {
        self.key(entry) != 0 && self.block(entry, self.generation(entry)).is_some()
    }

    /// How many peers the entry's set has; `None` before the first answer.
    pub fn peer_count(&self, entry: usize) -> Option<usize> {
        let block = self.block(entry, self.generation(entry)).filter(|_| self.key(entry) != 0);
        block.map(|block| block.records.len() / PEER_RECORD)
    }

    /// Bytes in use; a slot is while an instance has it.
    pub fn usage(&self) -> usize {
        let blocks: usize = self.live_blocks().map(|block| block.len()).sum();
        let slots = (0..self.layout.slot_count)
            .filter(|&s| self.slot_word(s, slot::OWNER).load(Relaxed) != 0)
            .count();
        let fixed = self.layout.slots;
        (fixed + blocks + slots * self.layout.slot_words) * 8
    }
}
