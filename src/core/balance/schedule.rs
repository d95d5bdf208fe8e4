//! The order of weighted round robin.

use super::WeightTable;

/// Most steps that building an exact order may take: about a millisecond.
const EXACT_STEPS: u64 = 1 << 20;
/// Longest exact order.
const EXACT_LEN: u64 = 1 << 16;
/// 2⁶⁴ divided by the golden ratio: multiples of it, modulo 2⁶⁴, are spread as evenly as any can be.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// In which order round robin visits the peers.
///
/// With equal weights one after the other, and else nginx's own smooth order (`5 1 1` gives
/// `a a b a c a a`), computed once for the whole period. Where the period is too long for that
/// (thousands of peers with unlike weights) the order is that of the multiples of the golden
/// ratio over the cumulated weights: exact but for a few picks, and each peer comes at nearly equal
/// distances.
#[derive(Debug)]
pub enum Schedule {
    /// One after the other.
    Even,
    /// The whole period of nginx's order.
    Exact(Vec<u32>),
    /// Evenly spread multiples of the golden ratio.
    GoldenRatio,
}

impl Schedule {
    /// The order for these weights.
    pub fn new(weights: &WeightTable) -> Schedule {
        if weights.is_even() {
            return Schedule::Even;
        }
        let each: Vec<u64> = (0..weights.count()).map(|p| weights.of(p)).collect();
        let unit = each.iter().copied().reduce(gcd).unwrap_or(1);
        let period = each.iter().sum::<u64>() / unit;
        if period > EXACT_LEN || period * each.len() as u64 > EXACT_STEPS {
            return Schedule::GoldenRatio;
        }
        Schedule::Exact(smooth(each.iter().map(|w| (w / unit) as i64).collect(), period as usize))
    }

    /// The next peer; moves the cursor.
    #[inline(always)]
    pub fn next(&self, cursor: &mut u64, weights: &WeightTable) -> usize {
        let at = *cursor;
        match self {
            Schedule::GoldenRatio => {
                *cursor = at.wrapping_add(1);
                weights.at(at.wrapping_mul(GOLDEN))
            }
            Schedule::Even => step(cursor, weights.count()),
            Schedule::Exact(order) => order[step(cursor, order.len())] as usize,
        }
    }
}

/// The cursor within a period; a cursor from a longer one wraps. No division in the usual case.
#[inline]
fn step(cursor: &mut u64, period: usize) -> usize {
    let period = period as u64;
    if *cursor >= period {
        *cursor %= period;
    }
    let at = *cursor;
    *cursor = at + 1;
    at as usize
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One period of the loop in `ngx_http_upstream_get_peer()`: every peer gains its weight, the
/// first of those who have most is picked and pays the total.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order_of(weights: &[u32], n: usize) -> Vec<usize> {
        let weights = WeightTable::new(weights.iter().copied());
        let order = Schedule::new(&weights);
        let mut cursor = 0;
        (0..n).map(|_| order.next(&mut cursor, &weights)).collect()
    }

    #[test]
    fn weights_5_1_1_give_nginx_s_own_sequence() {
        assert_eq!(order_of(&[5, 1, 1], 14), [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(order_of(&[50, 10, 10], 7), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn equal_weights_come_one_after_the_other() {
        assert_eq!(order_of(&[3, 3, 3], 6), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_period_too_long_to_store_is_spread_evenly() {
        let weights: Vec<u32> = (0..2000).map(|i| i % 97 + 1).collect();
        let sum: u64 = weights.iter().map(|&w| u64::from(w)).sum();
        assert!(matches!(
            Schedule::new(&WeightTable::new(weights.iter().copied())),
            Schedule::GoldenRatio
        ));
        let mut seen = vec![0u64; weights.len()];
        for peer in order_of(&weights, sum as usize) {
            seen[peer] += 1;
        }
        for (peer, (&seen, &weight)) in seen.iter().zip(&weights).enumerate() {
            assert!(
                seen.abs_diff(u64::from(weight)) <= 5,
                "peer {peer}: {seen} picks, weight {weight}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_period_gives_each_peer_its_weight(weights in prop::collection::vec(1u32..30, 1..20)) {
            let unit = weights.iter().map(|&w| u64::from(w)).reduce(gcd).unwrap();
            let period = weights.iter().map(|&w| u64::from(w)).sum::<u64>() / unit;
            let mut seen = vec![0; weights.len()];
            for peer in order_of(&weights, period as usize) {
                seen[peer] += unit as u32;
            }
            prop_assert_eq!(seen, weights);
        }
    }
}
