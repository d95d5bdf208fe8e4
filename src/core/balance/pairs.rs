//! The difference of two sets.

use std::collections::HashMap;
use std::hash::Hash;

/// A member of one set or of both, by its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair {
    /// In both sets.
    Both {
        /// Its index in the old set.
        old: usize,
        /// Its index in the new set.
        new: usize,
    },
    /// Only in the old set.
    Gone(usize),
    /// Only in the new set.
    Come(usize),
}

/// Calls `each` once for every member of either set; members with the same `key` are the same. Members
/// before the first change and after the last, which are nearly all, are compared only once.
pub fn pairs<T, K: Eq + Hash>(
    old: &[T],
    new: &[T],
    key: impl Fn(&T) -> K,
    mut each: impl FnMut(Pair),
) {
    let is_same = |(one, other): &(&T, &T)| key(one) == key(other);
    let first = old.iter().zip(new).take_while(is_same).count();
    let (old_rest, new_rest) = (old[first..].iter().rev(), new[first..].iter().rev());
    let last = old_rest.zip(new_rest).take_while(is_same).count();
    let (old_end, new_end) = (old.len() - last, new.len() - last);
    let both = (0..first).map(|n| (n, n)).chain((0..last).map(|n| (old_end + n, new_end + n)));
    both.for_each(|(old, new)| each(Pair::Both { old, new }));
    let mut indexes: HashMap<K, usize> =
        (first..new_end).map(|index| (key(&new[index]), index)).collect();
    let mut stays = vec![false; new_end];
    for (index, member) in old[..old_end].iter().enumerate().skip(first) {
        each(match indexes.remove(&key(member)) {
            Some(new) => {
                stays[new] = true;
                Pair::Both { old: index, new }
            }
            None => Pair::Gone(index),
        });
    }
    (first..new_end).filter(|&index| !stays[index]).for_each(|index| each(Pair::Come(index)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(old: &[u64], new: &[u64]) -> Vec<Pair> {
        let mut seen = Vec::new();
        pairs(old, new, |id| *id, |pair| seen.push(pair));
        seen
    }

    proptest! {
        #[test]
        fn every_member_comes_once_and_those_in_both_sets_as_such(
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
        let mut alone = all(&old, &new);
        alone.retain(|pair| !matches!(pair, Pair::Both { old, .. } if *old >= 2));
        assert_eq!(alone[..2], [Pair::Both { old: 0, new: 102 }, Pair::Gone(1)]);
        assert_eq!(alone[2..], [Pair::Come(100), Pair::Come(101)]);
    }
}
