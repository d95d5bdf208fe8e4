//! What is counted of threads.

use std::time::Instant;

/// The threads that have a connection.
#[derive(Default)]
pub(super) struct Threads {
    pub(super) count: usize,
    /// Those that have not come for work yet, and those of them that try a new connection.
    pub(super) starting: usize,
    pub(super) to_try: usize,
    /// Those that have nothing to do.
    pub(super) idle: usize,
    /// Until when one of these waits.
    pub(super) timed: Option<Instant>,
    /// Which numbers are taken.
    numbers: Vec<bool>,
}

impl Threads {
    /// The smallest number that is free.
    pub(super) fn take_number(&mut self) -> usize {
        let free = self.numbers.iter().position(|taken| !taken);
        let number = free.unwrap_or(self.numbers.len());
        self.numbers.resize(self.numbers.len().max(number + 1), false);
        self.numbers[number] = true;
        number
    }

    pub(super) fn give_number(&mut self, number: usize) {
        self.numbers[number] = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_the_smallest_first() {
        let mut threads = Threads::default();
        assert_eq!([0; 4].map(|_| threads.take_number()), [0, 1, 2, 3]);
        threads.give_number(2);
        threads.give_number(1);
        assert_eq!([0; 3].map(|_| threads.take_number()), [1, 2, 4]);
    }
}
