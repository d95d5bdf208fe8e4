//! Numbers of targets that requests have named.

use std::collections::HashMap;

/// The targets of services that requests have named: entry and key by number, and number by entry
/// and key. The numbers of the plan's targets come first. No number is used twice, or a late answer
/// for a dropped service would be published for the next service in the same entry.
#[derive(Default)]
pub(super) struct TargetNumbers {
    targets: HashMap<usize, (usize, u128)>,
    numbers: HashMap<(usize, u128), usize>,
    given: usize,
}

impl TargetNumbers {
    /// The number of the key that has this entry; `plan`: how many targets the plan has.
    pub(super) fn number(&mut self, entry: usize, key: u128, plan: usize) -> usize {
        *self.numbers.entry((entry, key)).or_insert_with(|| {
            self.given += 1;
            let number = plan + self.given - 1;
            self.targets.insert(number, (entry, key));
            number
        })
    }

    /// Entry and key of the target of this number.
    pub(super) fn get(&self, number: usize) -> Option<(usize, u128)> {
        self.targets.get(&number).copied()
    }

    /// The number of the target of this key that has this entry, if it has one.
    pub(super) fn find(&self, entry: usize, key: u128) -> Option<usize> {
        self.numbers.get(&(entry, key)).copied()
    }

    /// The target is dropped; its number is not given again.
    pub(super) fn remove(&mut self, number: usize) {
        if let Some(target) = self.targets.remove(&number) {
            self.numbers.remove(&target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_given_once_and_the_plan_s_come_first() {
        let mut numbers = TargetNumbers::default();
        let first = numbers.number(7, 70, 3);
        assert_eq!((first, numbers.number(7, 70, 3), numbers.number(8, 80, 3)), (3, 3, 4));
        assert_eq!((numbers.get(3), numbers.find(7, 70)), (Some((7, 70)), Some(3)));
        numbers.remove(first);
        assert_eq!((numbers.get(3), numbers.find(7, 70)), (None, None));
        assert_eq!(numbers.number(7, 71, 3), 5, "the next service in the same entry");
    }
}
