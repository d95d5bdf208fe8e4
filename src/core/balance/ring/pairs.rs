//! Which members of a set are those of the set before.

use std::collections::HashMap;

use super::Member;

/// How many members to look ahead for the one that comes next.
const AHEAD: usize = 64;

/// A member of both sets, or of one: its places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pair {
    Both { old: usize, new: usize },
    Gone(usize),
    Come(usize),
}

/// Tells `each` every member of either set, once. Takes one look at each where the order of those
/// that stay is the same, as it is for sets from Consul, and is right for any.
pub(super) fn pairs<T: Member>(old: &[T], new: &[T], mut each: impl FnMut(Pair)) {
    let id = |list: &[T], at: usize| list[at].identity();
    let (mut i, mut j) = (0, 0);
    // Not found nearby: most likely in one set only.
    let (mut alone, mut others) = (Vec::new(), Vec::new());
    while i < old.len() && j < new.len() {
        if id(old, i) == id(new, j) {
            each(Pair::Both { old: i, new: j });
            (i, j) = (i + 1, j + 1);
            continue;
        }
        let (mine, theirs) = (id(old, i), id(new, j));
        let found = (1..=AHEAD).find_map(|k| {
            let gone = i + k < old.len() && id(old, i + k) == theirs;
            let come = j + k < new.len() && id(new, j + k) == mine;
            (gone || come).then_some((if gone { k } else { 0 }, if come { k } else { 0 }))
        });
        let (gone, come) = match found {
            // Two that changed places: only one of them can be said to be in order.
            Some((gone, come)) if gone > 0 && come > 0 => (gone, 0),
            Some(steps) => steps,
            None => (1, 1),
        };
        alone.extend(i..i + gone);
        others.extend(j..j + come);
        (i, j) = (i + gone, j + come);
    }
    alone.extend(i..old.len());
    others.extend(j..new.len());
    let mut places: HashMap<u64, usize> = others.iter().map(|&j| (id(new, j), j)).collect();
    let mut stays = Vec::new();
    for i in alone {
        match places.remove(&id(old, i)) {
            Some(j) => {
                each(Pair::Both { old: i, new: j });
                stays.push(j);
            }
            None => each(Pair::Gone(i)),
        }
    }
    stays.sort_unstable();
    let is_new = |j: &usize| stays.binary_search(j).is_err();
    others.into_iter().filter(is_new).for_each(|j| each(Pair::Come(j)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Member for u64 {
        fn identity(&self) -> u64 {
            *self
        }

        fn weight(&self) -> u32 {
            1
        }

        fn name(&self) -> impl AsRef<[u8]> {
            ""
        }

        fn is_named_as(&self, _: &u64) -> bool {
            true
        }
    }

    fn all(old: &[u64], new: &[u64]) -> Vec<Pair> {
        let mut seen = Vec::new();
        pairs(old, new, |pair| seen.push(pair));
        seen
    }

    proptest! {
        #[test]
        fn every_member_is_told_once_and_those_in_both_sets_as_such(
            old in prop::collection::vec(0u64..300, 0..200),
            new in prop::collection::vec(0u64..300, 0..200),
            same in prop::collection::vec(300u64..400, 0..100),
        ) {
            let unique = |lists: [&[u64]; 3]| {
                let mut seen = std::collections::HashSet::new();
                lists.concat().into_iter().filter(|id| seen.insert(*id)).collect::<Vec<u64>>()
            };
            let (half, rest) = same.split_at(same.len() / 2);
            let (old, new) = (unique([half, &old, rest]), unique([half, &new, rest]));
            let (mut olds, mut news) = (Vec::new(), Vec::new());
            for pair in all(&old, &new) {
                match pair {
                    Pair::Both { old: i, new: j } => {
                        prop_assert_eq!(old[i], new[j]);
                        olds.push(i);
                        news.push(j);
                    }
                    Pair::Gone(i) => {
                        prop_assert!(!new.contains(&old[i]));
                        olds.push(i);
                    }
                    Pair::Come(j) => {
                        prop_assert!(!old.contains(&new[j]));
                        news.push(j);
                    }
                }
            }
            olds.sort_unstable();
            news.sort_unstable();
            prop_assert!(olds.into_iter().eq(0..old.len()));
            prop_assert!(news.into_iter().eq(0..new.len()));
        }
    }

    #[test]
    fn an_identity_that_comes_twice_is_two_members() {
        let others: Vec<u64> = (100..200).collect();
        let (old, new) = ([&[1, 1][..], &others].concat(), [&others[..], &[1, 1, 1]].concat());
        let alone: Vec<Pair> = all(&old, &new).split_off(others.len());
        assert_eq!(alone[..2], [Pair::Both { old: 0, new: 102 }, Pair::Gone(1)]);
        assert_eq!(alone[2..], [Pair::Come(100), Pair::Come(101)]);
    }
}
