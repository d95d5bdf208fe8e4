//! First tries are shared by weight, whatever fails: a retry takes nothing from the next request.

use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;
use rand::Rng;

use super::*;

/// How a peer answers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Good,
    /// It fails every request, and stays in use.
    Failing,
    Down,
    /// Its failures keep it out.
    Out,
    /// It has `max_conns` requests.
    Full,
}

impl Kind {
    fn is_used(self) -> bool {
        matches!(self, Kind::Good | Kind::Failing)
    }

    fn params(self, weight: u16) -> Params {
        let params = Params { weight: NonZeroU16::new(weight), ..PLAIN };
        match self {
            Kind::Good | Kind::Out => params,
            Kind::Failing => Params { max_fails: Some(0), ..params },
            Kind::Down => Params { down: true, ..params },
            Kind::Full => Params { max_conns: Some(1), ..params },
        }
    }
}

/// A worker whose requests may wait for their retries.
struct Worker {
    scene: Scene,
    kinds: Vec<Kind>,
    weights: Vec<u64>,
    rng: SmallRng,
    waiting: Vec<Tried>,
}

impl Worker {
    fn new(method: Method, peers: &[(u16, Kind)], seed: u64) -> Worker {
        let all = peers.iter().zip(1000..);
        let first: Vec<_> = all.map(|(&(weight, kind), n)| (n, kind.params(weight))).collect();
        // One table in each thread, for there are many cases.
        thread_local!(static WORDS: &'static [AtomicU64] = words());
        let words = WORDS.with(|words| *words);
        words.iter().for_each(|word| word.store(0, Relaxed));
        let scene = Scene::over(words, method, &[&first, &[(5000, PLAIN), (5001, PLAIN)]]);
        let kinds: Vec<Kind> = peers.iter().map(|&(_, kind)| kind).chain([Kind::Good; 2]).collect();
        for (info, kind) in scene.view.infos.iter().zip(&kinds) {
            match kind {
                Kind::Out => scene.note_failed(info.number as usize),
                Kind::Full => {
                    let shard = Some(scene.shard);
                    let _stays = scene.table.begin_request(info.slot, info.owner, shard);
                }
                Kind::Good | Kind::Failing | Kind::Down => {}
            }
        }
        let weights = peers.iter().map(|&(weight, _)| weight.into()).collect();
        let rng = SmallRng::seed_from_u64(seed);
        Worker { scene, kinds, weights, rng, waiting: Vec::new() }
    }

    /// The next try of a request; it waits for a retry if the peer fails.
    fn try_once(&mut self, tried: Tried) -> Option<usize> {
        let candidates = self.scene.candidates(&tried);
        let (method, shared) = (self.scene.method, self.scene.shared());
        let admitted = pick(method, &candidates, || shared, &mut self.rng)?;
        let number = admitted.picked.info.number as usize;
        admitted.permit.into_iter().for_each(Permit::end);
        assert!(!tried.contains(number), "peer {number} was tried twice");
        assert!(self.kinds[number].is_used() || tried.count() != 0, "{:?}", self.kinds[number]);
        tried.insert(number);
        if self.kinds[number] == Kind::Failing {
            self.scene.note_failed(number);
            self.waiting.push(tried);
        }
        Some(number)
    }

    /// The peers of so many first tries, between which retries come, at most `late` requests later.
    fn first_tries(&mut self, count: usize, late: usize) -> Vec<usize> {
        let mut seen = Vec::new();
        while seen.len() < count {
            let is_retry = self.waiting.len() > late || self.rng.random_bool(0.5);
            if !self.waiting.is_empty() && is_retry {
                let at = self.rng.random_range(0..self.waiting.len());
                let tried = self.waiting.swap_remove(at);
                self.try_once(tried);
            } else {
                seen.push(self.try_once(Tried::default()).expect("a peer that is in use"));
            }
        }
        seen
    }

    /// Over some rounds, from wherever one counts them, the share of each peer in use is its weight, give
    /// or take that once.
    fn check(&mut self, late: usize) -> Result<(), TestCaseError> {
        let used = |peer: usize| self.kinds[peer].is_used();
        let all = self.weights.iter().enumerate();
        let weights: Vec<u64> = all.map(|(p, &w)| if used(p) { w } else { 0 }).collect();
        let unit = weights.iter().copied().fold(0, gcd).max(1);
        let round = (weights.iter().sum::<u64>() / unit) as usize;
        let seen = self.first_tries(6 * round, late);
        for (peer, weight) in weights.iter().map(|weight| weight / unit).enumerate() {
            let mut upto = vec![0];
            upto.extend(seen.iter().scan(0, |sum, &one| {
                *sum += u64::from(one == peer);
                Some(*sum)
            }));
            for rounds in 1..=4 {
                for (from, to) in upto.iter().zip(&upto[rounds * round..]) {
                    let (share, due) = (to - from, weight * rounds as u64);
                    prop_assert!(
                        share.abs_diff(due) <= weight,
                        "peer {} of weights {:?}: {} of {} tries in {:?}",
                        peer,
                        weights,
                        share,
                        rounds * round,
                        seen
                    );
                }
            }
        }
        Ok(())
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Blocks of peers that answer alike, as those of a rack; one at least is in use.
fn peers(
    longest: usize,
    weight: impl Strategy<Value = u16>,
) -> impl Strategy<Value = Vec<(u16, Kind)>> {
    let kind = prop_oneof![
        3 => Just(Kind::Good),
        3 => Just(Kind::Failing),
        1 => Just(Kind::Down),
        1 => Just(Kind::Out),
        1 => Just(Kind::Full),
    ];
    let block = (kind, prop::collection::vec(weight, 1..=longest));
    prop::collection::vec(block, 1..6)
        .prop_map(|blocks| {
            let each =
                |(kind, weights): (Kind, Vec<u16>)| weights.into_iter().map(move |w| (w, kind));
            blocks.into_iter().flat_map(each).collect::<Vec<_>>()
        })
        .prop_filter("a peer in use", |peers| peers.iter().any(|(_, kind)| kind.is_used()))
}

/// Round robin, and what falls back to it without a key.
fn methods() -> impl Strategy<Value = Method> {
    prop::sample::select(vec![
        Method::RoundRobin,
        Method::Hash { consistent: false },
        Method::Hash { consistent: true },
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn first_tries_of_equal_peers_are_even_whatever_fails(
        method in methods(), peers in peers(24, Just(1)), late in 0usize..8, seed: u64
    ) {
        Worker::new(method, &peers, seed).check(late)?;
    }

    #[test]
    fn first_tries_are_by_weight_whatever_fails(
        method in methods(), peers in peers(6, 1u16..20), late in 0usize..8, seed: u64
    ) {
        Worker::new(method, &peers, seed).check(late)?;
    }

    #[test]
    fn a_few_peers_have_their_shares_of_first_tries_whatever_fails(
        method in methods(), peers in peers(1, 1u16..4), late in 0usize..4, seed: u64
    ) {
        Worker::new(method, &peers, seed).check(late)?;
    }
}

#[test]
fn a_tier_whose_requests_sometimes_go_on_to_the_next_one_stays_even() {
    let narrow = Params { max_conns: Some(1), ..PLAIN };
    let scene = Scene::new(&[&[(1, narrow), (2, narrow)], &[(3, PLAIN)]]);
    let (tried, mut rng) = (Tried::default(), SmallRng::seed_from_u64(1));
    let candidates = scene.candidates(&tried);
    let mut seen = [0; 4];
    for _ in 0..100 {
        seen[usize::from(scene.pick(&candidates, &mut rng).unwrap())] += 1;
        let held = scene.view.infos[..2].iter().map(|info| {
            scene.table.begin_request(info.slot, info.owner, Some(scene.shard)).unwrap()
        });
        let held: Vec<_> = held.collect();
        assert_eq!(scene.pick(&candidates, &mut rng), Some(3), "the others are full");
        held.into_iter().for_each(crate::table::InFlight::end);
    }
    assert_eq!(seen, [0, 50, 50, 0]);
}

#[test]
fn an_order_that_is_not_stored_keeps_to_the_weights_too() {
    // Of nearly all of the weight, and of every third of the others.
    for step in [1, 3] {
        let weight = |n: u16| if n < 2 { 60_000 } else { n % 50 + 1 };
        let kind = |n: u16| match n {
            0 | 1 => Kind::Out,
            n if n % step != 0 => Kind::Down,
            n if n % 2 == 0 => Kind::Failing,
            _ => Kind::Good,
        };
        let peers: Vec<_> = (0..100).map(|n| (weight(n), kind(n))).collect();
        let mut worker = Worker::new(Method::RoundRobin, &peers, 5);
        let used = |&(_, kind): &&(u16, Kind)| kind.is_used();
        let round: usize = peers.iter().filter(used).map(|&(weight, _)| usize::from(weight)).sum();
        let mut seen = vec![0u32; peers.len()];
        for peer in worker.first_tries(4 * round, 3) {
            seen[peer] += 1;
        }
        for (n, (weight, kind)) in peers.iter().enumerate() {
            let due = if kind.is_used() { 4 * u32::from(*weight) } else { 0 };
            let off = seen[n].abs_diff(due);
            assert!(off <= u32::from(*weight).max(4), "peer {n}: {} of {due}", seen[n]);
        }
    }
}
