//! How many threads there are, and what they do.

use std::time::Instant;

/// The threads that have a connection.
#[derive(Default)]
pub(super) struct ThreadCounts {
    pub(super) count: usize,
    /// Threads that have not taken work yet, and how many of them try a new connection.
    pub(super) starting: usize,
    pub(super) to_try: usize,
    /// Threads without work.
    pub(super) idle: usize,
    /// Until when one of these waits.
    pub(super) timed: Option<Instant>,
    /// Which numbers are in use.
    numbers: Vec<bool>,
}

impl ThreadCounts {
    /// Takes the smallest free number.
    pub(super) fn take_number(&mut self) -> usize {
        let free = self.numbers.iter().position(|taken| !taken);
        let number = free.unwrap_or(self.numbers.len());
        self.numbers.resize(self.numbers.len().max(number + 1), false);
        self.numbers[number] = true;
        number
    }

    /// Makes a number free.
    pub(super) fn release_number(&mut self, number: usize) {
        self.numbers[number] = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_the_smallest_first() {
        let mut threads = ThreadCounts::default();
        assert_eq!([0; 4].map(|_| threads.take_number()), [0, 1, 2, 3]);
        threads.release_number(2);
        threads.release_number(1);
        assert_eq!([0; 3].map(|_| threads.take_number()), [1, 2, 4]);
    }
}
