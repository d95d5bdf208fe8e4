//! The points in order, in a table that is edited in place.

use super::points::Point;

/// Cells for a hundred points: in a new table, and when a table is too full or too wide.
const BEST: usize = 133;
const LEAST: usize = 115;
const MOST: usize = 300;
/// A table with fewer cells is never too wide.
const FEW: usize = 1024;
const EMPTY: u64 = u64::MAX;

/// A hash table with linear probing whose entries are in order (Amble and Knuth 1974): each hash has
/// a home cell, higher hashes have higher homes, and a point is at its home or in the run of used
/// cells that begins there. So a lookup or a change touches only a cache line or two.
#[derive(Debug)]
pub(super) struct PointTable {
    /// [`Point::key`], or [`EMPTY`]. The last cells are no homes, so that no run wraps.
    cells: Vec<u64>,
    homes: u64,
    len: usize,
}

impl PointTable {
    /// A table of points, given as their keys in any order.
    pub(super) fn new<N: AsRef<[u8]>>(mut keys: Vec<u64>, name: impl Fn(Point) -> N) -> PointTable {
        keys.sort_unstable();
        let hash = |key: u64| Point::from_key(key).hash;
        for same in keys.chunk_by_mut(|&a, &b| hash(a) == hash(b)) {
            if same.len() > 1 {
                let name = |key: u64| name(Point::from_key(key));
                same.sort_by(|&a, &b| name(a).as_ref().cmp(name(b).as_ref()));
            }
        }
        let len = keys.len();
        let mut this = PointTable { cells: Vec::new(), homes: homes(len) as u64, len };
        // A few cells beyond the last home.
        this.cells.reserve(this.homes as usize + 256);
        for key in keys {
            let home = this.home(hash(key));
            if this.cells.len() < home {
                this.cells.resize(home, EMPTY);
            }
            this.cells.push(key);
        }
        let end = this.cells.len().max(this.homes as usize);
        this.cells.resize(end + 1, EMPTY);
        this
    }

    /// Whether the table suits that many points: not so full that runs get long, nor too wide. The
    /// range is so large that a set whose size goes up and down doesn't need a new table each time.
    pub(super) fn suits(&self, points: usize) -> bool {
        let homes = self.homes as usize;
        homes >= points * LEAST / 100 && homes <= (points * MOST / 100).max(FEW)
    }

    /// How many points there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.homes) >> 32) as usize
    }

    /// The cell of the first point whose hash is not less, or an empty cell before it.
    #[inline]
    pub(super) fn find(&self, hash: u32) -> usize {
        let mut at = self.home(hash);
        // Empty cells have the largest key.
        while self.cells[at] < u64::from(hash) << 32 {
            at += 1;
        }
        at
    }

    /// The point there; `None` if the cell is empty.
    #[inline]
    pub(super) fn point(&self, at: usize) -> Option<Point> {
        let key = self.cells[at];
        (key != EMPTY).then(|| Point::from_key(key))
    }

    /// The cell after that one; the first after the last.
    #[inline]
    pub(super) fn after(&self, at: usize) -> usize {
        if at + 1 < self.cells.len() { at + 1 } else { 0 }
    }

    /// Inserts a point; points with the same hash are ordered by name.
    pub(super) fn insert<N: AsRef<[u8]>>(&mut self, point: Point, name: impl Fn(Point) -> N) {
        let mut at = self.find(point.hash);
        let comes_first =
            |p: Point| p.hash == point.hash && name(p).as_ref() <= name(point).as_ref();
        while self.point(at).is_some_and(comes_first) {
            at += 1;
        }
        let mut carried = point.key();
        while carried != EMPTY {
            std::mem::swap(&mut self.cells[at], &mut carried);
            at += 1;
            if at == self.cells.len() {
                self.cells.push(EMPTY);
            }
        }
        self.len += 1;
    }

    /// Removes a point, if it is there.
    pub(super) fn remove(&mut self, point: Point) {
        let mut at = self.find(point.hash);
        while self.cells[at] != point.key() {
            if self.point(at).is_none_or(|there| there.hash != point.hash) {
                return;
            }
            at += 1;
        }
        // The points after it move up, until one is at its home.
        while let Some(next) = self.point(at + 1).filter(|next| self.home(next.hash) <= at) {
            self.cells[at] = next.key();
            at += 1;
        }
        self.cells[at] = EMPTY;
        self.len -= 1;
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut last = 0;
        for (at, &key) in self.cells.iter().enumerate().filter(|(_, key)| **key != EMPTY) {
            let home = self.home(Point::from_key(key).hash);
            assert!(home <= at && key >> 32 >= last, "out of order at {at}");
            assert!(!self.cells[home..at].contains(&EMPTY), "a gap between {home} and {at}");
            last = key >> 32;
        }
        assert_eq!(self.cells.last(), Some(&EMPTY));
        assert_eq!(self.cells.iter().filter(|key| **key != EMPTY).count(), self.len);
    }
}

/// How many homes are best for that many points.
fn homes(points: usize) -> usize {
    (points * BEST / 100).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn name(point: Point) -> [u8; 4] {
        point.id.to_be_bytes()
    }

    /// Many at the same homes, also at the last one.
    fn point() -> impl Strategy<Value = Point> {
        let hash =
            prop_oneof![0u32..20, u32::MAX - 20..=u32::MAX, 1u32 << 20..1 << 27, any::<u32>()];
        (hash, 0u32..5).prop_map(|(hash, id)| Point { hash, id })
    }

    proptest! {
        #[test]
        fn it_is_a_sorted_set_whatever_comes_and_goes(
            first in prop::collection::btree_set(point().prop_map(Point::key), 0..3000),
            changes in prop::collection::vec((any::<bool>(), point()), 0..300),
            looks in prop::collection::vec(any::<u32>(), 20),
        ) {
            let mut table = PointTable::new(first.iter().rev().copied().collect(), name);
            let mut expected: BTreeSet<u64> = first;
            table.check();
            for (comes, point) in changes {
                if comes && expected.insert(point.key()) {
                    table.insert(point, name);
                } else if !comes {
                    expected.remove(&point.key());
                    table.remove(point);
                }
            }
            table.check();
            let all = || (0..table.cells.len()).filter_map(|at| table.point(at));
            prop_assert!(all().map(Point::key).eq(expected.iter().copied()));
            for hash in looks {
                let mut at = table.find(hash);
                while table.point(at).is_none() && at + 1 < table.cells.len() {
                    at += 1;
                }
                let next = expected.range(u64::from(hash) << 32..).next().copied();
                prop_assert_eq!(table.point(at).map(Point::key), next);
            }
        }
    }
}
