//! Finds slots for the instances of a set.

use std::collections::{HashMap, HashSet};

use super::block::PeerRecord;
use super::layout::{SlotRef, slot};
use super::lock::PublishGuard;
use super::membership::owner;
use crate::model::{Peer, PeerSet};

/// Slots for instances that join: of those that return, by owner, and for the others.
type Slots = (HashMap<u64, SlotRef>, Vec<SlotRef>);

impl PublishGuard<'_, '_> {
    /// The records of the set: each peer keeps its slot, one that returns gets its slot back, a new one
    /// gets a free slot, or else that of an instance that has left. If there are too few, nothing has
    /// changed, and the error is how many are needed.
    pub(super) fn assign_slots(
        &self,
        (key, set): (u128, &PeerSet),
        before: &HashMap<u64, PeerRecord>,
        (now, is_first): (u64, bool),
    ) -> Result<Vec<PeerRecord>, usize> {
        let table = self.table;
        let joins = |peer: &&Peer| !before.contains_key(&peer.identity);
        let joining: Vec<u64> =
            set.peers().iter().filter(joins).map(|peer| owner(key, peer.identity)).collect();
        let (mut returning, fresh) = self.find_slots(&joining)?;
        // Instances of the first answer get no slow start, unless there was one before.
        let started = if is_first && returning.is_empty() { 0 } else { now };
        let mut fresh = fresh.into_iter();
        let record = |peer: &Peer| {
            let owner = owner(key, peer.identity);
            let held = before.get(&peer.identity);
            let own = held.map(|held| held.slot).or_else(|| returning.remove(&owner));
            let record = PeerRecord::new(peer, own.or_else(|| fresh.next())?, owner);
            let (counters, address) = (table.peer_counters(record.slot), record.address_id());
            if own.is_none() {
                table.give_slot(record.slot, owner, (started, address));
            } else if held.is_none_or(|held| !held.has_address_of(&record)) {
                counters.join(held.map_or(started, |_| counters.started()), address);
            }
            Some(record)
        };
        Ok(set.peers().iter().filter_map(record).collect())
    }

    fn find_slots(&self, joining: &[u64]) -> Result<Slots, usize> {
        let table = self.table;
        let (mut returning, mut free, mut left) = (HashMap::new(), Vec::new(), Vec::new());
        let wanted: HashSet<u64> = joining.iter().copied().collect();
        let all = (0..table.layout.slot_count).filter_map(|slot| table.slot_at(slot));
        for slot in all.filter(|_| !joining.is_empty()) {
            let counters = table.peer_counters(slot);
            let (owner, membership) = (counters.load(slot::OWNER), counters.membership());
            if owner == 0 {
                free.push(slot);
            } else if membership.has_left() && wanted.contains(&owner) {
                returning.insert(owner, slot);
            } else if membership.has_left() {
                left.push((membership.since(), slot));
            }
        }
        let new = joining.len() - returning.len();
        // A publisher that was killed may have left one without its owner.
        let is_idle = |slot: &SlotRef| table.in_flight(*slot) == 0;
        let mut fresh: Vec<SlotRef> = free.into_iter().filter(is_idle).take(new).collect();
        let missing = new - fresh.len();
        if missing > 0 {
            left.retain(|(_, slot)| is_idle(slot));
            if left.len() >= missing {
                left.sort_by_key(|(since, _)| *since);
                let oldest = left.into_iter().map(|(_, slot)| slot);
                fresh.extend(oldest.filter(|slot| table.take_slot(*slot)).take(missing));
            }
        }
        if fresh.len() < new { Err(new) } else { Ok((returning, fresh)) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
