use super::*;
use proptest::prelude::*;

fn order_of(weights: &[u32], n: usize) -> Vec<usize> {
    let weights = WeightTable::new(weights.iter().copied());
    let order = Schedule::new(&weights);
    (0..n).map(|_| order.next(&weights)).collect()
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
    assert!(matches!(Order::new(&WeightTable::new(weights.iter().copied())), Order::GoldenRatio));
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

proptest! {
    #[test]
    fn beside_one_peer_each_other_one_comes_as_often_as_its_weight_says(
        weights in prop::collection::vec(1u32..10, 2..10), one: prop::sample::Index
    ) {
        let (one, weighted) = (one.index(weights.len()), WeightTable::new(weights.iter().copied()));
        let rest = u64::from(weights.iter().sum::<u32>() - weights[one]);
        let mut seen = vec![0; weights.len()];
        for n in 0..rest {
            let u = (u128::from(n) << 64).div_ceil(u128::from(rest)) as u64;
            seen[weighted.at_any_but(u, one)] += 1;
        }
        let mut expected = weights;
        expected[one] = 0;
        prop_assert_eq!(seen, expected);
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
