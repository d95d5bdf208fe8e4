//! Who is on the ring.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::points::{POINTS, Point, hashes};
use super::{MAX_POINTS, MAX_WEIGHT, Member};

/// The members in their order, and which of them has a slot.
#[derive(Debug, Default)]
pub(super) struct Members {
    entries: Vec<Entry>,
    /// All names, one after the other.
    names: Vec<u8>,
    of_slot: HashMap<u32, u32, BuildHasherDefault<SlotHasher>>,
    points: usize,
}

#[derive(Debug)]
struct Entry {
    slot: u32,
    weight: u32,
    name_end: usize,
}

impl Members {
    pub(super) fn new<'a>(members: impl Iterator<Item = Member<'a>>) -> Members {
        let mut this = Members::default();
        this.entries.reserve(members.size_hint().0);
        this.of_slot.reserve(members.size_hint().0);
        for (index, member) in members.enumerate() {
            this.names.extend_from_slice(member.name);
            let weight = member.weight.clamp(1, MAX_WEIGHT);
            this.entries.push(Entry { slot: member.slot, weight, name_end: this.names.len() });
            this.of_slot.insert(member.slot, index as u32);
        }
        this.limit_points();
        this
    }

    /// Keeps [`MAX_POINTS`].
    fn limit_points(&mut self) {
        loop {
            let sum: usize = self.entries.iter().map(|entry| entry.weight as usize).sum();
            self.points = sum * POINTS;
            if self.points <= MAX_POINTS || sum == self.entries.len() {
                return;
            }
            for entry in &mut self.entries {
                entry.weight = (entry.weight / 2).max(1);
            }
        }
    }

    /// How many points all have.
    pub(super) fn len(&self) -> usize {
        self.points
    }

    /// The place of the member with that slot.
    #[inline]
    pub(super) fn index(&self, slot: u32) -> Option<usize> {
        self.of_slot.get(&slot).map(|&index| index as usize)
    }

    fn name(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.entries[index - 1].name_end };
        &self.names[start..self.entries[index].name_end]
    }

    /// Those whose points `other` doesn't have.
    pub(super) fn not_in(&self, other: &Members) -> impl Iterator<Item = usize> {
        (0..self.entries.len()).filter(|&index| {
            let entry = &self.entries[index];
            // Most keep their place.
            let same_place = other.entries.get(index).is_some_and(|e| e.slot == entry.slot);
            let place = if same_place { Some(index) } else { other.index(entry.slot) };
            !place.is_some_and(|place| {
                other.entries[place].weight == entry.weight && other.name(place) == self.name(index)
            })
        })
    }

    /// How many points these members have.
    pub(super) fn point_count(&self, members: &[usize]) -> usize {
        members.iter().map(|&index| self.entries[index].weight as usize * POINTS).sum()
    }

    /// Their points, by hash and slot.
    pub(super) fn points(&self, members: &[usize]) -> Vec<Point> {
        let mut points = Vec::with_capacity(self.point_count(members));
        members.iter().for_each(|&index| points.extend(self.points_of(index)));
        points.sort_unstable_by_key(Point::key);
        points
    }

    /// The points of all members, in no order.
    pub(super) fn all_points(&self) -> impl Iterator<Item = Point> {
        (0..self.entries.len()).flat_map(|index| self.points_of(index))
    }

    fn points_of(&self, index: usize) -> impl Iterator<Item = Point> {
        let Entry { slot, weight, .. } = self.entries[index];
        hashes(self.name(index), weight).map(move |hash| Point { hash, slot })
    }

    /// The order on the ring: by hash, then the same on all hosts.
    pub(super) fn order(&self, one: &Point, other: &Point) -> Ordering {
        let name = |point: &Point| self.index(point.slot).map(|index| self.name(index));
        one.hash.cmp(&other.hash).then_with(|| name(one).cmp(&name(other)))
    }
}

/// Multiplies, which is enough for slots: they are numbers that we gave out ourselves.
#[derive(Debug, Default)]
struct SlotHasher(u64);

impl Hasher for SlotHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(byte.into());
        }
    }

    fn write_u32(&mut self, slot: u32) {
        self.0 = (self.0 ^ u64::from(slot)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        // The map uses the lowest bits, the product is best in its highest.
        self.0.rotate_left(26)
    }
}
