use proptest::prelude::*;

use super::*;

const STEP: Duration = Duration::from_millis(500);

/// A target with its own clock that puts in force what the guard lets through.
struct Bench {
    policy: Policy,
    guard: RemovalGuard,
    held: HashSet<u64>,
    now: Instant,
}

fn ids(ids: impl IntoIterator<Item = u64>) -> HashSet<u64> {
    ids.into_iter().collect()
}

impl Bench {
    fn new(policy: Policy, peers: u64) -> Bench {
        Bench { policy, guard: RemovalGuard::default(), held: ids(0..peers), now: Instant::now() }
    }

    /// An answer with these peers comes so long after the last one.
    fn answer(&mut self, after: Duration, next: impl IntoIterator<Item = u64>) -> Decision {
        self.now += after;
        let next = ids(next);
        let decision = self.guard.decide(&self.policy, (&self.held, &next), true, self.now);
        match decision {
            Decision::Publish { .. } => self.held = next,
            Decision::Confirmed { .. } => {
                self.held = next;
                self.guard.settle();
            }
            Decision::Hold { .. } => {}
        }
        decision
    }

    /// Answers until one is no longer held; how long that took from the first, and how many.
    fn until_published(&mut self, next: &[u64]) -> (Duration, u32) {
        let start = self.now;
        let mut after = Duration::ZERO;
        for answers in 1..100 {
            match self.answer(after, next.iter().copied()) {
                Decision::Hold { again: Some(again), .. } => after = again - self.now,
                Decision::Hold { again: None, .. } => panic!("it would be held for ever"),
                Decision::Publish { .. } | Decision::Confirmed { .. } => {
                    return (self.now - start, answers);
                }
            }
        }
        panic!("held for ever")
    }
}

fn publish() -> Decision {
    Decision::Publish { ended: None }
}

#[test]
fn an_answer_that_may_not_confirm_begins_a_removal_and_ends_it_but_never_confirms_it() {
    let mut bench = Bench::new(Policy::default(), 2);
    let copy = |bench: &mut Bench, next: &[u64]| {
        bench.now += STEP;
        let next = ids(next.iter().copied());
        bench.guard.decide(&bench.policy, (&bench.held, &next), false, bench.now)
    };
    for n in 0..20 {
        let decision = copy(&mut bench, &[]);
        let pending = Pending { removals: 2, confirmed: 0, of: 3 };
        let Decision::Hold { pending: held, is_new, again: Some(_) } = decision else {
            panic!("{decision:?}")
        };
        assert_eq!((held, is_new), (pending, n == 0));
    }
    assert!(matches!(copy(&mut bench, &[0, 1]), Decision::Publish { ended: Some(_) }));
    copy(&mut bench, &[]);
    assert_eq!(bench.until_published(&[]).1, 4, "a server's answers do");
}

#[test]
fn an_empty_answer_needs_three_more_reads_over_a_second_and_a_half() {
    let mut bench = Bench::new(Policy::default(), 2);
    let first = bench.answer(Duration::ZERO, []);
    let pending = Pending { removals: 2, confirmed: 0, of: 3 };
    assert_eq!(first, Decision::Hold { pending, is_new: true, again: Some(bench.now + STEP) });
    for confirmed in 1..=2 {
        let again = Some(bench.now + STEP * 2);
        let pending = Pending { confirmed, ..pending };
        assert_eq!(bench.answer(STEP, []), Decision::Hold { pending, is_new: false, again });
        assert_eq!(bench.held.len(), 2);
    }
    let pending = Pending { confirmed: 3, ..pending };
    assert_eq!(bench.answer(STEP, []), Decision::Confirmed { pending, after: STEP * 3 });
    assert!(bench.held.is_empty());
    assert_eq!(bench.answer(STEP, []), publish(), "an empty set stays empty");
}

#[test]
fn reads_that_come_too_soon_confirm_nothing() {
    let mut bench = Bench::new(Policy::default(), 1);
    for _ in 0..400 {
        let decision = bench.answer(Duration::from_millis(1), []);
        assert!(matches!(decision, Decision::Hold { pending: Pending { confirmed: 0, .. }, .. }));
    }
}

#[test]
fn an_answer_with_a_peer_cancels_what_was_pending() {
    let mut bench = Bench::new(Policy::default(), 2);
    bench.answer(Duration::ZERO, []);
    bench.answer(STEP, []);
    let pending = Pending { removals: 2, confirmed: 1, of: 3 };
    let ended = Some((pending, STEP * 2));
    assert_eq!(bench.answer(STEP, [1]), Decision::Publish { ended });
    assert_eq!(bench.held, ids([1]));
    let again = bench.answer(STEP, []);
    assert!(matches!(again, Decision::Hold { is_new: true, .. }), "{again:?}");
}

#[test]
fn one_of_several_leaves_at_once() {
    let mut bench = Bench::new(Policy::default(), 3);
    assert_eq!(bench.answer(STEP, [0, 1]), publish());
    assert_eq!(bench.answer(STEP, [0]), publish());
    let half = Policy { max_removal: Some(50), ..Policy::default() };
    let mut bench = Bench::new(half, 2);
    assert_eq!(bench.answer(STEP, [1]), publish(), "half is not more than half");
}

#[test]
fn keep_never_empties_and_drop_always_does() {
    let mut keep = Bench::new(Policy { on_empty: OnEmpty::Keep, max_removal: None }, 2);
    for n in 0..100 {
        let pending = Pending { removals: 2, confirmed: 0, of: 0 };
        let decision = keep.answer(STEP * 100, []);
        assert_eq!(decision, Decision::Hold { pending, is_new: n == 0, again: None });
    }
    assert!(matches!(keep.answer(STEP, [7]), Decision::Publish { ended: Some(_) }));
    assert_eq!(keep.held, ids([7]), "anything else is followed");
    let drop = Policy { on_empty: OnEmpty::Drop, max_removal: Some(10) };
    assert_eq!(Bench::new(drop, 2).answer(STEP, []), publish());
}

#[test]
fn a_removal_above_the_share_is_confirmed_too() {
    let half = Policy { max_removal: Some(50), ..Policy::default() };
    let mut bench = Bench::new(half, 10);
    assert_eq!(bench.until_published(&[0, 1, 2, 3]), (STEP * 3, 4));
    // The others of `consul_empty` have no number of reads.
    for on_empty in [OnEmpty::Keep, OnEmpty::Drop] {
        let mut bench = Bench::new(Policy { on_empty, ..half }, 10);
        assert_eq!(bench.until_published(&[0]), (STEP * 3, 4));
    }
}

#[test]
fn reads_that_lack_other_peers_each_time_confirm_nothing() {
    let half = Policy { max_removal: Some(50), ..Policy::default() };
    let mut bench = Bench::new(half, 10);
    for n in 0..20u64 {
        let from = n % 2 * 5;
        let decision = bench.answer(STEP, from..from + 4);
        let Decision::Hold { pending, is_new, again } = decision else {
            panic!("{n}: {decision:?}")
        };
        assert_eq!((pending.confirmed, is_new, again), (0, n == 0, Some(bench.now + STEP)));
    }
    // None at all is not what few peers confirm.
    bench.answer(STEP, [0]);
    let pending = Pending { removals: 10, confirmed: 0, of: 3 };
    let again = Some(bench.now + STEP * 2);
    assert_eq!(bench.answer(STEP, []), Decision::Hold { pending, is_new: false, again });
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let confirm = (0..6u32, 0..4000u64).prop_map(|(reads, over)| {
        OnEmpty::Confirm(Confirm { reads, over: Duration::from_millis(over) })
    });
    let on_empty = prop_oneof![Just(OnEmpty::Keep), Just(OnEmpty::Drop), confirm];
    (on_empty, proptest::option::of(0..=100u8))
        .prop_map(|(on_empty, max_removal)| Policy { on_empty, max_removal })
}

proptest! {
    #[test]
    fn nothing_large_leaves_before_its_time(
        policy in any_policy(),
        answers in proptest::collection::vec(
            (0..2000u64, proptest::collection::hash_set(0..6u64, 0..6)), 1..80),
    ) {
        let mut bench = Bench::new(policy, 6);
        // Since when, and in how many answers in a row, each held peer was missing.
        let mut missing: std::collections::HashMap<u64, (Instant, u32)> = Default::default();
        for (after, next) in answers {
            let held = bench.held.clone();
            let decision = bench.answer(Duration::from_millis(after), next.iter().copied());
            let removed: Vec<u64> = held.difference(&next).copied().collect();
            missing.retain(|peer, _| removed.contains(peer));
            for peer in &removed {
                missing.entry(*peer).or_insert((bench.now, 0)).1 += 1;
            }
            let large = match policy.on_empty {
                _ if !next.is_empty() => {
                    policy.max_removal.is_some_and(|most| removed.len() * 100 > held.len() * most as usize)
                }
                OnEmpty::Drop => false,
                _ => !held.is_empty(),
            };
            match decision {
                Decision::Publish { .. } => prop_assert!(!large),
                Decision::Hold { .. } => prop_assert!(large && bench.held == held),
                Decision::Confirmed { after, .. } => {
                    prop_assert!(large);
                    prop_assert!(!(next.is_empty() && policy.on_empty == OnEmpty::Keep));
                    let confirm = policy.confirm(next.is_empty()).unwrap();
                    prop_assert!(after >= confirm.over);
                    // What was confirmed was missing all the time, in every answer.
                    let proven = removed.iter().filter(|peer| {
                        let (since, times) = missing[peer];
                        bench.now - since >= confirm.over && times > confirm.reads.max(1)
                    });
                    let proven = proven.count();
                    prop_assert!(next.is_empty() || !policy.allows(proven, held.len()));
                    prop_assert!(!next.is_empty() || proven == held.len());
                }
            }
            if bench.held != held {
                missing.clear();
            }
        }
    }

    #[test]
    fn an_answer_that_stays_is_put_in_force_in_the_stated_time(
        policy in any_policy(),
        next in proptest::collection::hash_set(0..6u64, 0..6),
    ) {
        prop_assume!(!(next.is_empty() && policy.on_empty == OnEmpty::Keep));
        let mut bench = Bench::new(policy, 6);
        let next: Vec<u64> = next.into_iter().collect();
        let (took, answers) = bench.until_published(&next);
        let confirm = policy.confirm(next.is_empty()).unwrap();
        prop_assert!(took == Duration::ZERO || took == confirm.over, "{took:?}");
        prop_assert!(answers == 1 || answers == confirm.reads.max(1) + 1);
    }
}
