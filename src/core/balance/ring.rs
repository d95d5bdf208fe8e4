//! Consistent hashing with the points of nginx's `hash key consistent`.
//!
//! It is Ketama rather than Maglev: a host with a static block of the same servers maps keys to the
//! same peers, a peer that leaves moves only its own keys (Maglev moves some others too), and an
//! update touches only the points of peers that changed (Maglev's table is computed anew).

mod points;
mod point_table;

use std::cell::{Ref, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::pairs::{Pair, pairs};
use point_table::PointTable;
use points::{POINTS, Point, hashes};

/// How many points `ngx_http_upstream_get_chash_peer()` looks at for a request, over all its tries,
/// before it takes the next peer of the round robin.
pub const LOOKS: usize = 21;

/// Largest weight that has points of its own; larger ones count as this. It bounds the memory to
/// 16,000 points, 170 kB, for an instance.
pub const MAX_WEIGHT: u32 = 100;

/// Most points of a ring: 90 MB, a sum of weights of 52,428. Above that all weights are halved
/// (rounded down, at least 1) until they fit or are all 1, which moves keys in proportion and
/// is the same on all hosts.
pub const MAX_POINTS: usize = 1 << 23;

/// No member: never an index of a member nor the id of a point.
const NOBODY: u32 = u32::MAX;

/// A peer, as a ring sees it.
pub trait Member {
    /// Stays the same over updates. Unique within a set.
    fn identity(&self) -> u64;
    /// Its weight; 0 counts as 1, more than [`MAX_WEIGHT`] as that.
    fn weight(&self) -> u32;
    /// Its name as in nginx's `server`, with the port. Unique within a set.
    fn name(&self) -> impl AsRef<[u8]>;
    /// Whether its name is that of `other`.
    fn is_named_as(&self, other: &Self) -> bool;
}

/// Which keys belong to which members.
///
/// A ring shares its points with the rings before and after it. They are changed in place, so the cost
/// of an update is proportional to the change. After an update, an older ring finds only its own
/// members, at their present points; departed members have none. For a request that began before
/// the update that is good enough.
///
/// Takes 11 bytes for a point and 8 for a member. Points with the same hash (one in 5000 among the
/// 1.6 million of 10,000 peers) are all kept, ordered by name, and only the first is used: nginx
/// keeps the first in the order of its `server` lines, but our order must not depend on the host.
#[derive(Debug)]
pub struct Ring {
    /// The id of each member.
    ids: Vec<u32>,
    /// The member with each id, or [`NOBODY`].
    members: Vec<u32>,
    /// The edition it was made with.
    edition: u64,
    shared: Rc<RefCell<Shared>>,
}

/// State of all rings over the same points.
#[derive(Debug)]
struct Shared {
    points: PointTable,
    /// How often all weights are halved to keep [`MAX_POINTS`].
    halvings: u32,
    /// Goes up with each change.
    edition: u64,
    /// Ids that were ever used.
    ids: u32,
    /// Ids of departed members. They are reused late, since older rings still use them for the old
    /// member.
    resting: VecDeque<u32>,
}

impl Ring {
    /// The hash of a key, as nginx computes it: CRC-32 (IEEE 802.3).
    #[inline]
    pub fn hash(key: &[u8]) -> u32 {
        crc32fast::hash(key)
    }

    /// The ring of these members. `before` is an earlier ring and its members, in their order: if it is
    /// the newest one and that costs less than a new ring, it is changed into this one.
    pub fn new<T: Member>(members: &[T], before: Option<(&Ring, &[T])>) -> Ring {
        before
            .and_then(|(ring, old)| ring.changed(old, members))
            .unwrap_or_else(|| Ring::made(members))
    }

    fn made<T: Member>(members: &[T]) -> Ring {
        let halvings = halvings(members);
        let count = members.len() as u32;
        let mut points = Vec::with_capacity(point_count(members.iter(), halvings));
        for (member, id) in members.iter().zip(0..count) {
            each_hash(member, halvings, |hash| points.push(Point { hash, id }.key()));
        }
        let points = PointTable::new(points, |point| members[point.id as usize].name());
        let resting = VecDeque::new();
        let shared = Shared { points, halvings, edition: 0, ids: count, resting };
        let ids: Vec<u32> = (0..count).collect();
        Ring { members: ids.clone(), ids, edition: 0, shared: Rc::new(RefCell::new(shared)) }
    }

    /// The ring of `new`, over the same points; `None` if more points change than stay, or if this ring
    /// is not the newest one.
    fn changed<T: Member>(&self, old: &[T], new: &[T]) -> Option<Ring> {
        let mut shared = self.shared.borrow_mut();
        if shared.edition != self.edition || self.ids.len() != old.len() {
            return None;
        }
        let mut change = self.change(old, new);
        let points = |list: &[T], of: &[usize]| {
            point_count(of.iter().map(|&member| &list[member]), shared.halvings)
        };
        let (gone, come) = (points(old, &change.gone), points(new, &change.come));
        let count = shared.points.len() + come - gone;
        if gone + come > count / 4
            || !shared.points.suits(count)
            || shared.halvings != halvings(new)
        {
            return None;
        }
        for &member in &change.come {
            if change.ids[member] == NOBODY {
                change.ids[member] = shared.fresh_id(new.len());
            }
        }
        let mut members = vec![NOBODY; shared.ids as usize];
        change.ids.iter().zip(0..).for_each(|(&id, member)| members[id as usize] = member);
        shared.remove(change.gone.iter().map(|&i| (&old[i], self.ids[i])));
        shared.resting.extend(change.left);
        let name = |point: Point| new[members[point.id as usize] as usize].name();
        shared.insert(change.come.iter().map(|&j| (&new[j], change.ids[j])), name);
        shared.edition += 1;
        let (edition, shared) = (shared.edition, Rc::clone(&self.shared));
        Some(Ring { ids: change.ids, members, edition, shared })
    }

    fn change<T: Member>(&self, old: &[T], new: &[T]) -> Change {
        let mut change = Change { ids: vec![NOBODY; new.len()], ..Change::default() };
        pairs(old, new, T::identity, |pair| match pair {
            Pair::Both { old: i, new: j } => {
                change.ids[j] = self.ids[i];
                let (old, new) = (&old[i], &new[j]);
                if old.weight() != new.weight() || !old.is_named_as(new) {
                    change.gone.push(i);
                    change.come.push(j);
                }
            }
            Pair::Gone(i) => {
                change.gone.push(i);
                change.left.push(self.ids[i]);
            }
            Pair::Come(j) => change.come.push(j),
        });
        change
    }

    /// The members of the points from `hash` on, once around at most, by their index in the order they
    /// were given. The same member comes many times.
    ///
    /// nginx takes the first usable one of the first [`LOOKS`], then falls back to round robin; for
    /// an empty key it does so at once.
    #[inline]
    pub fn walk(&self, hash: u32) -> Walk<'_> {
        let points = Ref::map(self.shared.borrow(), |shared| &shared.points);
        let (at, left) = (points.find(hash), points.len());
        Walk { members: &self.members, points, at, left, strangers: LOOKS, last: None }
    }

    /// How many points there are.
    pub fn len(&self) -> usize {
        self.shared.borrow().points.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The difference of two sets of members.
#[derive(Default)]
struct Change {
    /// The ids of the new members, [`NOBODY`] if they were not there.
    ids: Vec<u32>,
    /// Old members whose points go.
    gone: Vec<usize>,
    /// New members whose points are not there.
    come: Vec<usize>,
    /// The ids of those who left.
    left: Vec<u32>,
}

impl Shared {
    /// An id for a new member. An id is reused only after as many others as there are members.
    fn fresh_id(&mut self, members: usize) -> u32 {
        let rested = self.resting.len() > members;
        rested.then(|| self.resting.pop_front()).flatten().unwrap_or_else(|| {
            self.ids += 1;
            self.ids - 1
        })
    }

    fn remove<'a, T: Member + 'a>(&mut self, members: impl Iterator<Item = (&'a T, u32)>) {
        for (member, id) in members {
            each_hash(member, self.halvings, |hash| self.points.remove(Point { hash, id }));
        }
    }

    fn insert<'a, T: Member + 'a, N: AsRef<[u8]>>(
        &mut self,
        members: impl Iterator<Item = (&'a T, u32)>,
        name: impl Fn(Point) -> N,
    ) {
        for (member, id) in members {
            each_hash(member, self.halvings, |hash| self.points.insert(Point { hash, id }, &name));
        }
    }
}

fn each_hash(member: &impl Member, halvings: u32, each: impl FnMut(u32)) {
    let weight = effective(member.weight(), halvings);
    hashes(member.name().as_ref(), weight).for_each(each);
}

fn effective(weight: u32, halvings: u32) -> u32 {
    (weight.clamp(1, MAX_WEIGHT) >> halvings).max(1)
}

/// How many points they have.
fn point_count<'a, T: Member + 'a>(members: impl Iterator<Item = &'a T>, halvings: u32) -> usize {
    members.map(|m| effective(m.weight(), halvings) as usize * POINTS).sum()
}

/// See [`MAX_POINTS`].
fn halvings<T: Member>(members: &[T]) -> u32 {
    let fits = |&n: &u32| point_count(members.iter(), n) <= MAX_POINTS;
    let most = MAX_WEIGHT.ilog2();
    (0..most).find(fits).unwrap_or(most)
}

/// See [`Ring::walk`].
#[derive(Debug)]
pub struct Walk<'a> {
    members: &'a [u32],
    points: Ref<'a, PointTable>,
    at: usize,
    /// Points it has not visited.
    left: usize,
    /// How many points of unknown members it passes before it gives up.
    strangers: usize,
    last: Option<u32>,
}

impl Iterator for Walk<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        while self.left > 0 && self.strangers > 0 {
            let point = self.points.point(self.at);
            self.at = self.points.after(self.at);
            let Some(point) = point else { continue };
            self.left -= 1;
            if self.last.replace(point.hash) == Some(point.hash) {
                continue;
            }
            match self.members.get(point.id as usize) {
                Some(&member) if member != NOBODY => return Some(member as usize),
                _ => self.strangers -= 1,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
