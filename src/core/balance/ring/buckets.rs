//! The points in order, cut into stretches that rings share.

use std::rc::Rc;

use super::members::Members;
use super::points::Point;

/// A bucket has at least about as many points, and less than twice as many: few, so that changing
/// one costs little, but enough that taking over the others does too.
const POINTS_PER_BUCKET: usize = 128;

/// Points by hash. The top bits of a hash name its bucket.
#[derive(Debug)]
pub(super) struct Buckets {
    /// A power of two of them.
    buckets: Vec<Rc<[Point]>>,
    bits: u32,
    len: usize,
}

impl Buckets {
    /// All points of the members.
    pub(super) fn new(members: &Members) -> Buckets {
        let bits = best_bits(members.len());
        // Few buckets have a quarter more than the mean.
        let room = (members.len() >> bits) * 5 / 4;
        let mut unsorted: Vec<_> = (0..1 << bits).map(|_| Vec::with_capacity(room)).collect();
        members.all_points().for_each(|point| unsorted[place(point.hash, bits)].push(point));
        let buckets = unsorted.into_iter().map(|mut points| {
            points.sort_unstable_by_key(Point::key);
            for same in points.chunk_by_mut(|a, b| a.hash == b.hash) {
                if same.len() > 1 {
                    same.sort_by(|a, b| members.order(a, b));
                }
            }
            Rc::from(points)
        });
        Buckets { buckets: buckets.collect(), bits, len: members.len() }
    }

    /// Whether the number of buckets is good for that many points. Set so wide that a set whose size
    /// goes to and fro doesn't need new ones each time.
    pub(super) fn suits(&self, points: usize) -> bool {
        best_bits(points).abs_diff(self.bits) <= 1
    }

    /// Without the points in `gone` and with those in `come`, both by hash; `members` are those after it.
    pub(super) fn changed(&self, gone: Vec<Point>, come: Vec<Point>, members: &Members) -> Buckets {
        let mut buckets = self.buckets.clone();
        let mut len = self.len;
        let (mut gone, mut come) = (gone.as_slice(), come.as_slice());
        let mut edited = Vec::with_capacity(4 * POINTS_PER_BUCKET);
        while let Some(hash) = first_hash(gone, come) {
            let bucket = place(hash, self.bits);
            edited.clear();
            edited.extend_from_slice(&self.buckets[bucket]);
            for point in self.take_of(bucket, &mut gone) {
                remove(&mut edited, point);
            }
            for point in self.take_of(bucket, &mut come) {
                let at = edited.partition_point(|p| members.order(p, point).is_lt());
                edited.insert(at, *point);
            }
            len = len + edited.len() - buckets[bucket].len();
            buckets[bucket] = Rc::from(edited.as_slice());
        }
        Buckets { buckets, bits: self.bits, len }
    }

    /// Cuts the points of a bucket off the front.
    fn take_of<'p>(&self, bucket: usize, points: &mut &'p [Point]) -> &'p [Point] {
        let inside = points.iter().take_while(|p| place(p.hash, self.bits) == bucket).count();
        let (here, after) = points.split_at(inside);
        *points = after;
        here
    }

    /// Where the first point is whose hash is not less: a bucket, and the place in it, which may be
    /// its end.
    #[inline]
    pub(super) fn find(&self, hash: u32) -> (usize, usize) {
        let bucket = place(hash, self.bits);
        let points = &*self.buckets[bucket];
        // Points are spread evenly, so it is a few places from where it would be with equal
        // distances: fewer lines of memory are read than by halving.
        let part = u64::from(hash << self.bits);
        let mut at = ((part * points.len() as u64) >> 32) as usize;
        while at > 0 && points[at - 1].hash >= hash {
            at -= 1;
        }
        while at < points.len() && points[at].hash < hash {
            at += 1;
        }
        (bucket, at)
    }

    /// The point at that place of the bucket.
    #[inline]
    pub(super) fn point(&self, bucket: usize, at: usize) -> Option<&Point> {
        self.buckets[bucket].get(at)
    }

    /// The bucket after that one; the first after the last.
    #[inline]
    pub(super) fn after(&self, bucket: usize) -> usize {
        (bucket + 1) & (self.buckets.len() - 1)
    }

    /// How many points there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[cfg(test)]
    pub(super) fn shared_with(&self, other: &Buckets) -> usize {
        self.buckets.iter().zip(&other.buckets).filter(|(a, b)| Rc::ptr_eq(a, b)).count()
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.buckets.len()
    }
}

/// The bucket of a hash.
#[inline]
fn place(hash: u32, bits: u32) -> usize {
    (u64::from(hash) >> (32 - bits)) as usize
}

fn best_bits(points: usize) -> u32 {
    (points / POINTS_PER_BUCKET).max(1).ilog2()
}

fn first_hash(gone: &[Point], come: &[Point]) -> Option<u32> {
    gone.first().into_iter().chain(come.first()).map(|point| point.hash).min()
}

/// The names of those who left are not known any more, so among equal hashes it looks for the slot.
fn remove(points: &mut Vec<Point>, point: &Point) {
    let first = points.partition_point(|p| p.hash < point.hash);
    let same = points[first..].iter().take_while(|p| p.hash == point.hash);
    if let Some(nth) = same.clone().position(|p| p.slot == point.slot) {
        points.remove(first + nth);
    }
}
