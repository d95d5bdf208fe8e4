//! What is counted of threads and their queries.

use std::collections::BTreeMap;
use std::time::Duration;

/// Numbers of things that come and go, as small as possible.
#[derive(Default)]
pub(super) struct Numbers(Vec<bool>);

impl Numbers {
    /// The smallest number that is free.
    pub(super) fn take(&mut self) -> usize {
        let free = self.0.iter().position(|taken| !taken);
        let number = free.unwrap_or(self.0.len());
        self.0.resize(self.0.len().max(number + 1), false);
        self.0[number] = true;
        number
    }

    pub(super) fn give(&mut self, number: usize) {
        self.0[number] = false;
    }
}

/// The lengths of all blocking queries that are under way.
#[derive(Default)]
pub(super) struct Waits(BTreeMap<Duration, usize>);

impl Waits {
    pub(super) fn add(&mut self, wait: Duration) {
        *self.0.entry(wait).or_default() += 1;
    }

    pub(super) fn remove(&mut self, wait: Duration) {
        if let Some(count) = self.0.get_mut(&wait) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&wait);
            }
        }
    }

    pub(super) fn count(&self) -> usize {
        self.0.values().sum()
    }

    /// Zero if there is none.
    pub(super) fn longest(&self) -> Duration {
        self.0.last_key_value().map_or(Duration::ZERO, |(wait, _)| *wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_the_smallest_first() {
        let mut numbers = Numbers::default();
        assert_eq!([0; 4].map(|_| numbers.take()), [0, 1, 2, 3]);
        numbers.give(2);
        numbers.give(1);
        assert_eq!([0; 3].map(|_| numbers.take()), [1, 2, 4]);
    }

    #[test]
    fn the_longest_wait_is_known_until_it_ends() {
        let mut waits = Waits::default();
        let [short, long] = [10, 60].map(Duration::from_secs);
        [short, long, long].into_iter().for_each(|wait| waits.add(wait));
        assert_eq!((waits.count(), waits.longest()), (3, long));
        waits.remove(long);
        assert_eq!((waits.count(), waits.longest()), (2, long));
        waits.remove(long);
        assert_eq!((waits.count(), waits.longest()), (1, short));
        waits.remove(short);
        waits.remove(short);
        assert_eq!((waits.count(), waits.longest()), (0, Duration::ZERO));
    }
}
