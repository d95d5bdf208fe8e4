//! The methods, over peers that are only numbers.

use super::super::super::schedule::WeightTable;
use super::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::collections::HashSet;

struct Fake {
    weights: WeightTable,
    order: Schedule,
    tried: HashSet<usize>,
    failed: HashSet<usize>,
    loads: Vec<u64>,
    shares: Vec<u32>,
}

impl Fake {
    fn new(weights: &[u32]) -> Fake {
        let n = weights.len();
        let weights = WeightTable::new(weights.iter().copied());
        Fake {
            order: Schedule::new(&weights),
            weights,
            tried: HashSet::new(),
            failed: HashSet::new(),
            loads: vec![0; n],
            shares: vec![FULL_SHARE; n],
        }
    }
}

impl Peers for Fake {
    type Peer = usize;

    fn len(&self) -> usize {
        self.weights.count()
    }
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    fn peer(&self, number: usize) -> usize {
        number
    }
    fn number(&self, peer: usize) -> usize {
        peer
    }
    fn weight(&self, peer: usize) -> u64 {
        self.weights.of(peer)
    }
    fn weights(&self) -> &WeightTable {
        &self.weights
    }
    fn schedule(&self) -> &Schedule {
        &self.order
    }
    fn is_retry(&self) -> bool {
        !self.tried.is_empty()
    }
    fn is_unrestricted(&self, _: usize) -> bool {
        false
    }
    fn is_free(&self, peer: usize) -> bool {
        !self.tried.contains(&peer)
    }
    fn is_failed(&self, peer: usize) -> bool {
        self.failed.contains(&peer)
    }
    fn share(&self, peer: usize) -> u32 {
        self.shares[peer]
    }
    fn load(&self, peer: usize) -> u64 {
        self.loads[peer]
    }
    fn cost(&self, peer: usize) -> f32 {
        self.loads[peer] as f32
    }
    /// Of two looks the last one is the peer's that has the key.
    fn keyed(&self, suits: impl Fn(usize) -> bool) -> Option<usize> {
        [0, self.len().checked_sub(1)?].into_iter().rev().find(|&peer| suits(peer))
    }
}

const METHODS: [Method; 5] = [
    Method::RoundRobin,
    Method::Random,
    Method::LeastConn,
    Method::LeastTime,
    Method::Hash { consistent: true },
];

fn rng() -> SmallRng {
    SmallRng::seed_from_u64(42)
}

fn counts(method: Method, peers: &Fake, picks: usize) -> Vec<u64> {
    let mut rng = rng();
    let mut counts = vec![0; peers.len()];
    for _ in 0..picks {
        counts[pick_from(method, peers, &mut rng).unwrap()] += 1;
    }
    counts
}

/// χ² of the counts against the weights. With 3 degrees of freedom 16.3 is exceeded once in 1000.
fn chi_square(counts: &[u64], weights: &[u32]) -> f64 {
    let (n, sum) = (counts.iter().sum::<u64>() as f64, weights.iter().sum::<u32>() as f64);
    counts
        .iter()
        .zip(weights)
        .map(|(&seen, &w)| (n * f64::from(w) / sum, seen as f64))
        .map(|(expected, seen)| (seen - expected).powi(2) / expected)
        .sum()
}

#[test]
fn random_follows_the_weights() {
    let weights = [1, 2, 3, 10];
    let seen = counts(Method::Random, &Fake::new(&weights), 40_000);
    assert!(chi_square(&seen, &weights) < 16.3, "{seen:?}");
}

#[test]
fn least_conn_takes_the_one_with_less_in_flight_for_its_weight() {
    let mut peers = Fake::new(&[1, 1, 1]);
    peers.loads = vec![5, 0, 5];
    let seen = counts(Method::LeastConn, &peers, 3000);
    assert!(seen[1] > 1800, "one of two choices is the idle one two times in three: {seen:?}");
    let mut peers = Fake::new(&[10, 1]);
    peers.loads = vec![5, 1];
    assert_eq!(counts(Method::LeastConn, &peers, 100), [100, 0], "5 for 10 is less than 1 for 1");
}

#[test]
fn every_method_visits_each_peer_once_and_then_gives_up() {
    for method in METHODS {
        for n in [1, 2, 3, 200] {
            let mut peers = Fake::new(&vec![1; n]);
            let mut rng = rng();
            for _ in 0..n {
                let peer = pick_from(method, &peers, &mut rng).unwrap();
                assert!(peers.tried.insert(peer), "{method:?} tried {peer} twice");
            }
            assert_eq!(pick_from(method, &peers, &mut rng), None, "{method:?}");
        }
    }
}

#[test]
fn an_empty_set_has_no_pick() {
    for method in METHODS {
        assert_eq!(pick_from(method, &Fake::new(&[]), &mut rng()), None);
    }
}

#[test]
fn failed_peers_are_passed_over_however_many_they_are() {
    for method in METHODS {
        let mut peers = Fake::new(&vec![1; 100]);
        peers.failed = (0..99).collect();
        assert_eq!(counts(method, &peers, 200)[99], 200, "{method:?}");
        peers.failed.insert(99);
        assert_eq!(pick_from(method, &peers, &mut rng()), None, "{method:?}");
    }
}

#[test]
fn one_failed_peer_of_a_round_robin_leaves_the_others_even() {
    let mut peers = Fake::new(&[1; 5]);
    peers.failed.insert(2);
    assert_eq!(counts(Method::RoundRobin, &peers, 400), [100, 100, 0, 100, 100]);
}

#[test]
fn a_peer_in_slow_start_gets_its_share() {
    let mut peers = Fake::new(&[1, 1]);
    peers.shares[1] = FULL_SHARE / 4;
    let seen = counts(Method::Random, &peers, 10_000);
    let share = seen[1] as f64 / seen[0] as f64;
    assert!((0.22..0.28).contains(&share), "{seen:?}");
}

#[test]
fn few_usable_peers_share_by_weight_wherever_they_are() {
    for (method, is_retry) in METHODS[..4].iter().flat_map(|&m| [(m, false), (m, true)]) {
        for weights in [[1; 4], [1, 2, 3, 10]] {
            let mut peers = Fake::new(&[weights.as_slice(), &[1; 196]].concat());
            peers.failed = (4..200).collect();
            peers.tried = (100..101).take(usize::from(is_retry)).collect();
            let seen = counts(method, &peers, 4000);
            assert!(chi_square(&seen[..4], &weights) < 16.3, "{method:?}: {:?}", &seen[..4]);
        }
    }
}

#[test]
fn peers_that_all_start_slowly_share_by_what_each_gets_of_its_weight() {
    let mut peers = Fake::new(&[2, 1, 1, 1]);
    peers.shares = [1, 2, 4, 8].map(|part| FULL_SHARE / 1000 * part).to_vec();
    for method in [Method::RoundRobin, Method::Random] {
        let seen = counts(method, &peers, 8000);
        assert!(chi_square(&seen, &[2, 2, 4, 8]) < 16.3, "{method:?}: {seen:?}");
    }
}

#[test]
fn the_turns_that_a_peer_in_slow_start_leaves_out_do_not_go_to_its_neighbour() {
    let mut peers = Fake::new(&[1; 5]);
    peers.shares[2] = FULL_SHARE / 100;
    let seen = counts(Method::RoundRobin, &peers, 4000);
    let others = [0, 1, 3, 4].map(|peer| seen[peer]);
    assert!(others.iter().all(|count| count.abs_diff(others[0]) <= 1), "{seen:?}");
}

#[test]
fn the_second_choice_is_by_weight_also_beside_a_peer_with_nearly_all_of_it() {
    let mut peers = Fake::new(&[60_000, 1, 2, 3, 10]);
    peers.loads[0] = 1 << 40;
    let seen = counts(Method::LeastConn, &peers, 4000);
    assert!(chi_square(&seen[1..], &[1, 2, 3, 10]) < 16.3, "{seen:?}");
}

#[test]
fn a_pick_looks_at_as_few_peers_among_10_000_as_among_3() {
    use std::cell::Cell;
    struct Counting(Fake, Cell<usize>);
    impl Peers for Counting {
        type Peer = usize;

        fn len(&self) -> usize {
            self.0.len()
        }
        fn is_empty(&self) -> bool {
            self.0.is_empty()
        }
        fn peer(&self, number: usize) -> usize {
            number
        }
        fn number(&self, peer: usize) -> usize {
            peer
        }
        fn weight(&self, peer: usize) -> u64 {
            self.0.weight(peer)
        }
        fn weights(&self) -> &WeightTable {
            self.0.weights()
        }
        fn schedule(&self) -> &Schedule {
            self.0.schedule()
        }
        fn is_retry(&self) -> bool {
            self.0.is_retry()
        }
        fn is_unrestricted(&self, peer: usize) -> bool {
            self.0.is_unrestricted(peer)
        }
        fn is_free(&self, peer: usize) -> bool {
            self.1.set(self.1.get() + 1);
            self.0.is_free(peer)
        }
        fn is_failed(&self, peer: usize) -> bool {
            self.0.is_failed(peer)
        }
        fn share(&self, peer: usize) -> u32 {
            self.0.share(peer)
        }
        fn load(&self, peer: usize) -> u64 {
            self.0.load(peer)
        }
        fn cost(&self, peer: usize) -> f32 {
            self.0.cost(peer)
        }
        fn keyed(&self, suits: impl Fn(usize) -> bool) -> Option<usize> {
            self.0.keyed(suits)
        }
    }
    for method in METHODS {
        for n in [3, 10_000] {
            let mut peers = Counting(Fake::new(&vec![1; n]), Cell::new(0));
            let mut rng = rng();
            let mut looks = |peers: &Counting, picks: usize| {
                let before = peers.1.get();
                (0..picks).for_each(|_| assert!(pick_from(method, peers, &mut rng).is_some()));
                (peers.1.get() - before) as f64 / picks as f64
            };
            let usual = looks(&peers, 1000);
            assert!(usual <= 2.0, "{method:?} of {n}: {usual} looks");
            // Over rounds; the first one after those that are out takes more.
            peers.0.failed = (n.div_ceil(2)..n).collect();
            let more = looks(&peers, 2 * n);
            assert!(more <= 5.0, "{method:?} of {n}, half of them out: {more} looks");
        }
    }
}
