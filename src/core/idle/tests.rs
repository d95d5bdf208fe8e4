use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn key(identity: u64) -> PeerKey {
    PeerKey { owner: 0, slot: None, identity, address: 0 }
}

fn kept(idle: &mut Idle<u32>, connections: &[(u64, u32)]) -> Vec<IdleRef> {
    connections.iter().map(|&(peer, connection)| idle.put(key(peer), connection).0).collect()
}

fn count(idle: &Idle<u32>, key: &PeerKey) -> usize {
    idle.peers.get(key).map_or(0, Vec::len)
}

#[test]
fn the_last_one_that_became_idle_is_taken_first() {
    let mut idle = Idle::new(8);
    kept(&mut idle, &[(1, 10), (2, 20), (1, 11)]);
    assert_eq!(idle.take(&key(1), |_| true), Some(11));
    assert_eq!(idle.take(&key(1), |_| true), Some(10));
    assert_eq!(idle.take(&key(1), |_| true), None);
    assert_eq!((idle.len(), count(&idle, &key(1)), count(&idle, &key(2))), (1, 0, 1));
}

#[test]
fn the_one_that_was_idle_longest_makes_room() {
    let mut idle = Idle::new(2);
    kept(&mut idle, &[(1, 10), (2, 20)]);
    let (_, evicted) = idle.put(key(3), 30);
    assert_eq!(evicted, Some((key(1), 10)));
    assert_eq!((idle.len(), count(&idle, &key(1))), (2, 0));
}

#[test]
fn one_that_does_not_suit_stays() {
    let mut idle = Idle::new(8);
    kept(&mut idle, &[(1, 10), (1, 11), (1, 12)]);
    assert_eq!(idle.take(&key(1), |&c| c == 11), Some(11));
    assert_eq!(idle.take(&key(1), |&c| c == 99), None);
    assert_eq!(idle.len(), 2);
}

#[test]
fn one_that_was_taken_is_not_found_at_its_spot() {
    let mut idle = Idle::new(8);
    let spots = kept(&mut idle, &[(1, 10), (1, 11)]);
    assert_eq!(idle.remove(spots[0]), Some((key(1), 10)));
    assert_eq!(idle.remove(spots[0]), None);
    assert_eq!(idle.take(&key(1), |_| true), Some(11));
}

#[test]
fn who_is_not_in_the_new_set_loses_all_connections_and_only_of_that_owner() {
    let mut idle = Idle::new(8);
    kept(&mut idle, &[(1, 10), (2, 20), (1, 11), (3, 30)]);
    let other = PeerKey { owner: 7, ..key(1) };
    idle.put(other, 70);
    // The second peer is elsewhere now.
    let set = [key(3), PeerKey { address: 1, ..key(2) }];
    let mut gone = idle.remove_owned(0, |key| !set.contains(key));
    gone.sort_by_key(|(_, c)| *c);
    assert_eq!(gone, [(key(1), 10), (key(1), 11), (key(2), 20)]);
    assert_eq!((idle.len(), count(&idle, &key(3)), count(&idle, &other)), (2, 1, 1));
}

#[test]
fn a_full_array_allocates_nothing_more() {
    let mut idle = Idle::new(64);
    let round = |idle: &mut Idle<u32>| {
        for n in 0..64 {
            idle.put(key(n), n as u32);
        }
        for n in 0..64 {
            assert_eq!(idle.take(&key(n), |_| true), Some(n as u32));
        }
    };
    for _ in 0..8 {
        round(&mut idle);
    }
    let info = allocation_counter::measure(|| round(&mut idle));
    assert_eq!(info.count_total, 0);
}

#[derive(Clone, Debug)]
enum Step {
    Put(u64),
    Take(u64),
    Remove(usize),
    Retain(Vec<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    let peer = 0..6u64;
    prop_oneof![
        6 => peer.clone().prop_map(Step::Put),
        4 => peer.clone().prop_map(Step::Take),
        2 => (0..12usize).prop_map(Step::Remove),
        1 => proptest::collection::vec(peer, 0..5).prop_map(Step::Retain),
    ]
}

proptest! {
    /// The same as a plain list that is looked through.
    #[test]
    fn it_is_a_list_that_needs_no_looking_through(
        limit in 1..8usize,
        steps in proptest::collection::vec(step(), 0..200),
    ) {
        let mut idle = Idle::new(limit);
        let mut list: VecDeque<(u64, u32, IdleRef)> = VecDeque::new();
        for (n, step) in (0u32..).zip(steps) {
            match step {
                Step::Put(peer) => {
                    let (spot, evicted) = idle.put(key(peer), n);
                    let expected = if list.len() == limit { list.pop_front() } else { None };
                    prop_assert_eq!(evicted, expected.map(|(p, c, _)| (key(p), c)));
                    list.push_back((peer, n, spot));
                }
                Step::Take(peer) => {
                    let at = list.iter().rposition(|&(p, ..)| p == peer);
                    let expected = at.and_then(|at| list.remove(at)).map(|(_, c, _)| c);
                    prop_assert_eq!(idle.take(&key(peer), |_| true), expected);
                }
                Step::Remove(at) => {
                    if let Some((peer, c, spot)) = list.remove(at) {
                        prop_assert_eq!(idle.remove(spot), Some((key(peer), c)));
                    }
                }
                Step::Retain(peers) => {
                    let gone = idle.remove_owned(0, |key| !peers.contains(&key.identity));
                    let mut gone: Vec<u32> = gone.into_iter().map(|(_, c)| c).collect();
                    gone.sort_unstable();
                    let leaves = |&(p, ..): &(u64, u32, IdleRef)| !peers.contains(&p);
                    let expected: Vec<u32> = list.iter().filter(|i| leaves(i)).map(|i| i.1).collect();
                    prop_assert_eq!(gone, expected);
                    list.retain(|item| !leaves(item));
                }
            }
            prop_assert_eq!(idle.len(), list.len());
            prop_assert_eq!(idle.oldest(), list.front().map(|(_, connection, _)| connection));
            for peer in 0..6 {
                let held = list.iter().filter(|&&(p, ..)| p == peer).count();
                prop_assert_eq!(count(&idle, &key(peer)), held);
            }
        }
    }
}
