//! Which configuration is in force. nginx's reload runs the worker 0 of two configurations side by
//! side for a moment: an older one never leads, and claims, retains and books nothing.
//!
//! The master announces a configuration before it fills the zone for it, and puts it in force just
//! before it forks the workers: until then those of the configuration before work as ever.

use super::layout::{Table, header};
use super::platform::atomic::Ordering::{Acquire, Release};

impl Table<'_> {
    /// The number of the configuration that the holder acts for. They are counted from 1 on, since the
    /// zone was made; 0 is older than any.
    pub fn configuration(&self) -> u32 {
        self.configuration
    }

    /// The table for a holder that acts for the configuration of this number.
    #[must_use]
    pub fn for_configuration(self, number: u32) -> Self {
        Table { configuration: number, ..self }
    }

    /// The table for the configuration that comes after the one in force. From now on the latter
    /// retains nothing. Only for the master, when nginx can't go back any more.
    #[must_use]
    pub fn announce_configuration(self) -> Self {
        let number = self.in_force(header::CONFIGURATION) + 1;
        self.word(header::NEXT_CONFIGURATION).store(number.into(), Release);
        self.for_configuration(number)
    }

    /// The holder's configuration replaces the one in force.
    pub fn put_in_force(&self) {
        self.word(header::CONFIGURATION).store(self.configuration.into(), Release);
    }

    /// Whether a newer configuration is in force. It stays so.
    pub fn is_superseded(&self) -> bool {
        self.in_force(header::CONFIGURATION) > self.configuration
    }

    /// Whether a newer configuration is in force, or is about to be.
    pub(super) fn has_successor(&self) -> bool {
        self.in_force(header::NEXT_CONFIGURATION) > self.configuration
    }

    fn in_force(&self, word: usize) -> u32 {
        self.word(word).load(Acquire) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::zone;
    use super::*;

    #[test]
    fn a_configuration_is_superseded_once_the_next_one_is_in_force() {
        let words = zone(1 << 17);
        Table::create(words, 16).unwrap();
        let attach = || Table::attach(words).unwrap();
        let first = attach().announce_configuration();
        first.put_in_force();
        assert_eq!((first.configuration(), attach().configuration()), (1, 0));
        let second = attach().announce_configuration();
        let seen = || {
            [attach(), first, second].map(|table| (table.has_successor(), table.is_superseded()))
        };
        assert_eq!(seen(), [(true, true), (true, false), (false, false)]);
        second.put_in_force();
        assert_eq!(seen(), [(true, true), (true, true), (false, false)]);
        assert!(!attach().for_configuration(2).has_successor());
    }
}
