//! Consistent hashing with the points of nginx's `hash key consistent`.
//!
//! Ketama rather than Maglev: a host with a static block of the same servers agrees with ours, a
//! peer that leaves moves only its own keys (Maglev moves some others too), and an update touches
//! only the points of those who changed, where Maglev's table is computed anew.

mod buckets;
mod members;
mod points;

use buckets::Buckets;
use members::Members;

/// How many points `ngx_http_upstream_get_chash_peer()` looks at for a request, over all its tries,
/// before it takes the next peer of the round robin.
pub const LOOKS: usize = 21;

/// Largest weight that has points of its own; larger ones count as this. It bounds the memory to
/// 16,000 points, 128 kB, for an instance.
pub const MAX_WEIGHT: u32 = 100;

/// Most points of a ring: 64 MB, a sum of weights of 52,428. Above that all weights are halved
/// (rounded down, at least 1) until they fit or are all 1, which moves keys in proportion and
/// is the same on all hosts.
pub const MAX_POINTS: usize = 1 << 23;

/// A peer, as a ring is told of it.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// What the instance keeps over updates. No two of a set have the same.
    pub slot: u32,
    /// Its weight; 0 counts as 1, more than [`MAX_WEIGHT`] as that.
    pub weight: u32,
    /// Its name as in nginx's `server`, with the port. No two of a set have the same.
    pub name: &'a [u8],
}

/// The points of a set, never changed. The ring of the next set shares all but the stretches in
/// which points came or went.
///
/// Takes 8 bytes for a point. Points with the same hash (one in 5000 among the 1.6 million of
/// 10,000 peers) are all kept, ordered by name, and only the first is used: nginx keeps the first in
/// the order of its `server` lines, but our order must not depend on the host.
#[derive(Debug)]
pub struct Ring {
    members: Members,
    buckets: Buckets,
}

impl Ring {
    /// The hash of a key, as nginx computes it: CRC-32 (IEEE 802.3).
    #[inline]
    pub fn hash(key: &[u8]) -> u32 {
        crc32fast::hash(key)
    }

    /// The ring of these members; the same with and without a ring before, but faster with.
    pub fn new<'a>(members: impl Iterator<Item = Member<'a>>, before: Option<&Ring>) -> Ring {
        let members = Members::new(members);
        let buckets = before
            .and_then(|before| before.updated(&members))
            .unwrap_or_else(|| Buckets::new(&members));
        Ring { members, buckets }
    }

    /// The members that the points from the first one not before `hash` on belong to, once around.
    /// Indexes are those of the members in the order they were given; the same one comes many times.
    ///
    /// nginx's choice is the first usable one of the first [`LOOKS`], then round robin. An empty
    /// key goes to the round robin at once.
    #[inline]
    pub fn walk(&self, hash: u32) -> Walk<'_> {
        let (bucket, at) = self.buckets.find(hash);
        Walk { ring: self, bucket, at, left: self.buckets.len(), last: None }
    }

    /// How many points there are.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// This ring's buckets changed into those of `members`; `None` if building them anew is better.
    fn updated(&self, members: &Members) -> Option<Buckets> {
        let gone: Vec<usize> = self.members.not_in(members).collect();
        let come: Vec<usize> = members.not_in(&self.members).collect();
        let changed = self.members.point_count(&gone) + members.point_count(&come);
        if changed > members.len() / 4 || !self.buckets.suits(members.len()) {
            return None;
        }
        Some(self.buckets.changed(self.members.points(&gone), members.points(&come), members))
    }
}

/// See [`Ring::walk`].
#[derive(Debug)]
pub struct Walk<'a> {
    ring: &'a Ring,
    bucket: usize,
    at: usize,
    left: usize,
    last: Option<u32>,
}

impl Iterator for Walk<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        while self.left > 0 {
            let Some(point) = self.ring.buckets.point(self.bucket, self.at) else {
                self.bucket = self.ring.buckets.after(self.bucket);
                self.at = 0;
                continue;
            };
            self.at += 1;
            self.left -= 1;
            if self.last.replace(point.hash) == Some(point.hash) {
                continue;
            }
            if let Some(member) = self.ring.members.index(point.slot) {
                return Some(member);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
