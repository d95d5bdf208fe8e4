//! Drawing peers in proportion to their weights.

/// Cumulated weights with a guide table (Chen and Asau 1974): the top bits of a random number
/// name the few peers it can mean. Unlike an alias table it keeps the order of the peers, so evenly
/// spread numbers give evenly spread peers, which [`super::Schedule`] uses.
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

    /// As [`WeightTable::at`], for one who wants another than `one`. Still that one at times if the
    /// weights are unlike.
    #[inline(always)]
    pub fn at_other(&self, u: u64, one: usize) -> usize {
        if !self.is_even() || self.count < 2 {
            return self.at(u);
        }
        let other = scale(u, self.count as u64 - 1) as usize;
        other + usize::from(other >= one)
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
fn scale(u: u64, n: u64) -> u64 {
    ((u128::from(u) * u128::from(n)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn every_number_falls_on_the_peer_whose_stretch_it_is_in(
            weights in prop::collection::vec(1u32..=65535, 1..200), u: u64
        ) {
            let weighted = WeightTable::new(weights.iter().copied());
            let sum: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            let target = scale(u, sum);
            let mut upto = 0;
            let plain = weights.iter().position(|&w| { upto += u64::from(w); upto > target }).unwrap();
            prop_assert_eq!(weighted.at(u), plain);
            if !weighted.is_even() {
                prop_assert_eq!(weighted.of(plain), u64::from(weights[plain]));
            }
        }
    }

    #[test]
    fn of_equal_weights_all_the_others_come_equally_often() {
        let weighted = WeightTable::new([3; 5].into_iter());
        let mut seen = [0; 5];
        let step = u64::MAX / 4000;
        for i in 0..4000 {
            seen[weighted.at_other(i * step + step / 2, 2)] += 1;
        }
        assert_eq!(seen, [1000, 1000, 0, 1000, 1000]);
        assert_eq!(WeightTable::new([3].into_iter()).at_other(u64::MAX, 0), 0, "there is no other");
    }

    #[test]
    fn a_peer_with_nearly_all_the_weight_does_not_hide_the_others() {
        let weighted =
            WeightTable::new([65535u32].into_iter().chain([1; 99]).collect::<Vec<_>>().into_iter());
        assert_eq!(weighted.at(0), 0);
        assert_eq!(weighted.at(u64::MAX), 99);
    }
}
