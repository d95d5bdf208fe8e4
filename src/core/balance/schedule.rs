//! Distributes requests by weight: in turn ([`Schedule`]) or at random ([`WeightTable`]).

use std::cell::Cell;

/// Most steps to build an exact order, about a millisecond.
const EXACT_STEPS: u64 = 1 << 20;
/// Longest exact order.
const EXACT_LEN: u64 = 1 << 16;
/// Most [`Schedule::steps`] among fewer peers than that.
const STEPS: usize = 1 << 12;
/// 2⁶⁴ divided by the golden ratio: multiples of it, modulo 2⁶⁴, are spread as evenly as any can be.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The order in which round robin visits the peers, and how far it has come.
///
/// Peers of equal weight come one after the other; with unequal weights it is nginx's own smooth
/// order (`5 1 1` gives `a a b a c a a`), computed once for the whole period. If the period is too
/// long for that (thousands of peers with unequal weights), the order follows the multiples of the
/// golden ratio over the cumulated weights: it is exact but for a few picks, and the picks of each
/// peer are nearly evenly spaced.
#[derive(Debug)]
pub struct Schedule {
    order: Order,
    cursor: Cell<u64>,
}

#[derive(Debug)]
enum Order {
    /// One after the other.
    Even,
    /// The whole period of nginx's order.
    Exact(Vec<u32>),
    /// Evenly spread multiples of the golden ratio.
    GoldenRatio,
}

impl Schedule {
    /// The order for these weights, at its beginning.
    pub fn new(weights: &WeightTable) -> Schedule {
        Schedule { order: Order::new(weights), cursor: Cell::new(0) }
    }

    /// Goes on from any place of the order.
    pub fn begin_at(&self, place: u64) {
        self.cursor.set(place);
    }

    /// The next peer.
    #[inline(always)]
    pub fn next(&self, weights: &WeightTable) -> usize {
        let at = self.cursor.get();
        match &self.order {
            Order::GoldenRatio => {
                self.cursor.set(at.wrapping_add(1));
                weights.at(at.wrapping_mul(GOLDEN))
            }
            Order::Even => self.step(weights.count()),
            Order::Exact(order) => order[self.step(order.len())] as usize,
        }
    }

    /// Goes one step back.
    pub fn back(&self) {
        self.cursor.set(self.cursor.get().wrapping_sub(1));
    }

    /// How many steps to look for a usable one of `count` peers: a whole period, unless that is longer
    /// than both `count` and 4096.
    pub fn steps(&self, count: usize) -> usize {
        match &self.order {
            Order::Even => count,
            Order::Exact(order) => order.len().min(count.max(STEPS)),
            Order::GoldenRatio => count.max(STEPS),
        }
    }

    /// Moves the cursor within a period; one from a longer period wraps. Usually without a division.
    #[inline]
    fn step(&self, period: usize) -> usize {
        let period = period as u64;
        let mut at = self.cursor.get();
        if at >= period {
            at %= period;
        }
        self.cursor.set(at + 1);
        at as usize
    }
}

impl Order {
    fn new(weights: &WeightTable) -> Order {
        if weights.is_even() {
            return Order::Even;
        }
        let each: Vec<u64> = (0..weights.count()).map(|p| weights.of(p)).collect();
        let unit = each.iter().copied().reduce(gcd).unwrap_or(1);
        let period = each.iter().sum::<u64>() / unit;
        if period > EXACT_LEN || period * each.len() as u64 > EXACT_STEPS {
            return Order::GoldenRatio;
        }
        Order::Exact(smooth(each.iter().map(|w| (w / unit) as i64).collect(), period as usize))
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One period of the loop in `ngx_http_upstream_get_peer()`: every peer gains its weight; the first
/// peer with the highest value is picked and loses the total.
fn smooth(weights: Vec<i64>, period: usize) -> Vec<u32> {
    let mut current = vec![0; weights.len()];
    let total: i64 = weights.iter().sum();
    let mut order = Vec::with_capacity(period);
    for _ in 0..period {
        let mut best = 0;
        for (peer, weight) in weights.iter().enumerate() {
            current[peer] += weight;
            if current[peer] > current[best] {
                best = peer;
            }
        }
        current[best] -= total;
        order.push(best as u32);
    }
    order
}

/// Cumulated weights with a guide table (Chen and Asau 1974): the top bits of a random number
/// name the few peers it can mean. Unlike an alias table it keeps the order of the peers, so evenly
/// spread numbers give evenly spread peers, which [`Schedule`] uses.
#[derive(Debug, Default)]
pub struct WeightTable {
    /// `upto[i]` is the sum of the weights of peers 0 to i; empty if all weights are equal.
    upto: Vec<u64>,
    /// The first and the last of the peers that numbers with these top bits can mean.
    guide: Vec<[u32; 2]>,
    shift: u32,
    count: usize,
}

impl WeightTable {
    /// Weights of at least 1 each.
    pub fn new(weights: impl ExactSizeIterator<Item = u32> + Clone) -> WeightTable {
        let count = weights.len();
        let first = weights.clone().next().unwrap_or(1);
        if weights.clone().all(|w| w == first) {
            return WeightTable { count, ..WeightTable::default() };
        }
        let mut sum = 0;
        let upto: Vec<u64> = weights
            .map(|w| {
                sum += u64::from(w.max(1));
                sum
            })
            .collect();
        let bits = count.next_power_of_two().trailing_zeros();
        let shift = 64 - bits;
        let mut peer = 0;
        let mut guide: Vec<[u32; 2]> = (0..1u64 << bits)
            .map(|b| {
                let target = scale(b << shift, sum);
                while upto[peer] <= target {
                    peer += 1;
                }
                [peer as u32; 2]
            })
            .collect();
        for b in 0..guide.len() {
            guide[b][1] = guide.get(b + 1).map_or(count as u32 - 1, |next| next[0]);
        }
        WeightTable { upto, guide, shift, count }
    }

    /// The peer that `u`, a fraction of 2⁶⁴, falls on.
    #[inline(always)]
    pub fn at(&self, u: u64) -> usize {
        let Some(&sum) = self.upto.last() else { return scale(u, self.count as u64) as usize };
        let [low, high] = self.guide[(u >> self.shift) as usize].map(|peer| peer as usize);
        if low == high {
            return low;
        }
        let target = scale(u, sum);
        self.first_beyond(target, low, high)
    }

    /// As [`WeightTable::at`], but another peer than `one` if all weights are equal. With unequal
    /// weights it may be `one` again.
    #[inline(always)]
    pub fn at_other(&self, u: u64, one: usize) -> usize {
        if !self.is_even() || self.count < 2 {
            return self.at(u);
        }
        let other = scale(u, self.count as u64 - 1) as usize;
        other + usize::from(other >= one)
    }

    /// As [`WeightTable::at`] among the peers other than `one`, of which there is one at least.
    pub fn at_any_but(&self, u: u64, one: usize) -> usize {
        let Some(&sum) = self.upto.last() else { return self.at_other(u, one) };
        let own = self.of(one);
        let target = scale(u, sum - own);
        let is_before = target < self.upto[one] - own;
        let target = if is_before { target } else { target + own };
        self.first_beyond(target, 0, self.count - 1)
    }

    #[inline(never)]
    fn first_beyond(&self, target: u64, low: usize, high: usize) -> usize {
        low + self.upto[low..high].partition_point(|&upto| upto <= target)
    }

    /// The weight of a peer; 1 if all are equal.
    #[inline]
    pub fn of(&self, peer: usize) -> u64 {
        let Some(upto) = self.upto.get(peer) else { return 1 };
        upto - if peer == 0 { 0 } else { self.upto[peer - 1] }
    }

    /// Whether all weights are equal.
    pub fn is_even(&self) -> bool {
        self.upto.is_empty()
    }

    /// How many peers there are.
    #[inline]
    pub fn count(&self) -> usize {
        self.count
    }
}

/// `u / 2⁶⁴ × n`, rounded down.
#[inline]
pub(super) fn scale(u: u64, n: u64) -> u64 {
    ((u128::from(u) * u128::from(n)) >> 64) as u64
}

#[cfg(test)]
mod tests;
