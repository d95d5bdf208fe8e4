//! How many connections to Consul worker 0 has, and how many of its predecessors' Consul still counts.
//!
//! Consul counts the connection of a blocking query until its `wait` is over, even if it was closed
//! long before (<https://github.com/hashicorp/consul/issues/8524>). So the next worker 0 has to know
//! of them, or a reload would use twice the number that the operator allows.

use super::layout::{Table, header};
use super::platform::atomic::Ordering::Relaxed;
use crate::model::{Connections, Limit};
use crate::process::ProcessId;

/// An old worker 0 notices within this time that it has to stop, milliseconds.
const GRACE: u64 = 1000;

/// Connections that count until some time, milliseconds of the monotonic clock, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Left {
    until: u64,
    count: u64,
}

impl Left {
    fn decode(raw: u64) -> Left {
        Left { until: raw >> 16, count: raw & 0xffff }
    }

    fn encode(self) -> u64 {
        self.until << 16 | self.count.min(0xffff)
    }

    fn at(self, now: u64) -> u64 {
        if self.until > now { self.count } else { 0 }
    }

    fn add(self, count: u64, until: u64, now: u64) -> Left {
        if count == 0 {
            return self;
        }
        Left { until: until.max(self.until), count: self.at(now) + count }
    }
}

impl Table<'_> {
    /// The caller begins to connect to Consul: the connections noted so far are those of a predecessor
    /// that stops. For an event loop: `false` if another publisher takes too long or a newer
    /// configuration is in force, and then nothing has changed.
    pub fn take_over_connections(&self, me: ProcessId, now: u64) -> bool {
        let Some(_guard) = self.lock_soon(me).filter(|_| !self.is_superseded()) else {
            return false;
        };
        let before = decode(self.word(header::CONNECTIONS).swap(0, Relaxed));
        self.word(header::CONNECTIONS_OWNER).store(me.get(), Relaxed);
        // Consul adds up to a sixteenth.
        let wait = u64::try_from(before.wait.as_millis()).unwrap_or(u64::MAX / 32);
        let until = now + GRACE + wait + wait / 16;
        let add = |word, count, until| {
            let left = Left::decode(self.load(word)).add(count, until, now);
            self.word(word).store(left.encode(), Relaxed);
        };
        add(header::CONNECTIONS_LEFT, before.blocking as u64, until);
        add(header::CONNECTIONS_ENDING, before.others as u64, now + GRACE);
        true
    }

    /// Notes the caller's connections, unless another process has taken over since.
    pub fn note_connections(&self, connections: Connections, me: ProcessId) {
        if self.load(header::CONNECTIONS_OWNER) == me.get() {
            self.word(header::CONNECTIONS).store(encode(connections), Relaxed);
            let Connections { allowed, needed, limit, .. } = connections;
            let limit = Limit::ALL.iter().position(|each| Some(*each) == limit);
            let numbers = [allowed, needed].map(|number| (number as u64).min(0xff_ffff));
            let limit = limit.map_or(0, |limit| limit as u64 + 1);
            let raw = numbers[0] << 40 | numbers[1] << 16 | limit;
            self.word(header::CONNECTIONS_PLAN).store(raw, Relaxed);
        }
    }

    /// How many connections the watcher may have, how many would give each service a blocking query of
    /// its own, and what limits them if these are too many.
    pub fn allowed_connections(&self) -> (usize, usize, Option<Limit>) {
        let raw = self.load(header::CONNECTIONS_PLAN);
        let limit = (raw as usize & 0xffff).checked_sub(1).and_then(|at| Limit::ALL.get(at));
        ((raw >> 40) as usize, (raw >> 16 & 0xff_ffff) as usize, limit.copied())
    }

    /// All connections that Consul counts.
    pub fn connections(&self, now: u64) -> usize {
        let running = decode(self.load(header::CONNECTIONS));
        self.left(now) + running.blocking + running.others
    }

    /// Those that predecessors have left.
    fn left(&self, now: u64) -> usize {
        let left = [header::CONNECTIONS_LEFT, header::CONNECTIONS_ENDING]
            .map(|word| Left::decode(self.load(word)).at(now) as usize);
        left.iter().sum()
    }

    /// Connections that Consul counts besides the caller's.
    pub fn earlier_connections(&self, me: ProcessId, now: u64) -> usize {
        let others = decode(self.load(header::CONNECTIONS));
        let is_mine = self.load(header::CONNECTIONS_OWNER) == me.get();
        let running = if is_mine { 0 } else { others.blocking + others.others };
        self.left(now) + running
    }
}

fn encode(connections: Connections) -> u64 {
    let Connections { blocking, others, wait, .. } = connections;
    let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
    wait << 32 | (others as u64).min(0xffff) << 16 | (blocking as u64).min(0xffff)
}

fn decode(raw: u64) -> Connections {
    Connections {
        blocking: (raw & 0xffff) as usize,
        others: (raw >> 16 & 0xffff) as usize,
        wait: std::time::Duration::from_millis(raw >> 32),
        ..Connections::default()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::super::testing::zone;
    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn of(blocking: usize, others: usize) -> Connections {
        let wait = Duration::from_secs(16);
        Connections { blocking, others, wait, ..Connections::default() }
    }

    #[test]
    fn closed_queries_count_until_their_wait_is_over_and_other_connections_for_a_moment() {
        let table = Table::create(zone(1 << 17), 16).unwrap();
        let (old, new) = (ProcessId::own(), ProcessId::from_raw(7));
        table.take_over_connections(old, NOW);
        table.note_connections(of(50, 4), old);
        assert_eq!(table.earlier_connections(old, NOW), 0);
        assert_eq!(table.earlier_connections(new, NOW), 54, "before it takes over");
        table.take_over_connections(new, NOW);
        table.note_connections(of(60, 9), old);
        table.note_connections(of(1, 2), new);
        assert_eq!(table.connections(NOW), 57);
        assert_eq!(table.earlier_connections(new, NOW), 54, "the old one is not heard any more");
        assert_eq!(table.earlier_connections(new, NOW + 1000), 50);
        assert_eq!(table.earlier_connections(new, NOW + 17_999), 50);
        assert_eq!(table.earlier_connections(new, NOW + 18_000), 0);
    }

    #[test]
    fn what_several_reloads_leave_adds_up() {
        let table = Table::create(zone(1 << 17), 16).unwrap();
        let me = ProcessId::own();
        for reload in 0..3 {
            table.take_over_connections(me, NOW + reload * 5000);
            table.note_connections(of(10, 1), me);
        }
        assert_eq!(table.earlier_connections(me, NOW + 10_500), 21);
        // The last to take over counts its own.
        assert_eq!(table.earlier_connections(me, NOW + 27_999), 20);
        assert_eq!(table.earlier_connections(me, NOW + 28_000), 0);
    }

    #[test]
    fn an_older_configuration_takes_nothing_over_and_notes_its_own_until_that_is_taken_over() {
        let old = Table::create(zone(1 << 17), 16).unwrap().announce_configuration();
        old.put_in_force();
        let (before, after) = (ProcessId::own(), ProcessId::from_raw(7));
        assert!(old.take_over_connections(before, NOW));
        let new = old.announce_configuration();
        new.put_in_force();
        old.note_connections(of(5, 1), before);
        assert!(new.take_over_connections(after, NOW));
        new.note_connections(of(3, 0), after);
        assert!(!old.take_over_connections(before, NOW));
        old.note_connections(of(9, 9), before);
        assert_eq!((old.connections(NOW), old.earlier_connections(after, NOW)), (9, 6));
    }

    #[test]
    fn what_the_status_says_of_them_is_kept() {
        let table = Table::create(zone(1 << 17), 16).unwrap();
        assert_eq!(table.allowed_connections(), (0, 0, None));
        let me = ProcessId::own();
        table.take_over_connections(me, NOW);
        for limit in Limit::ALL.map(Some).into_iter().chain([None]) {
            let noted = Connections { allowed: 64, needed: 2016, limit, ..of(3, 1) };
            table.note_connections(noted, me);
            assert_eq!(table.allowed_connections(), (64, 2016, limit));
        }
    }

    #[test]
    fn numbers_too_large_for_a_word_are_bounded() {
        let (blocking, others, wait) = (1 << 20, 1 << 20, Duration::MAX);
        let huge = Connections { blocking, others, wait, ..Connections::default() };
        let seen = decode(encode(huge));
        assert_eq!((seen.blocking, seen.others), (65_535, 65_535));
        assert_eq!(seen.wait, Duration::from_millis(u32::MAX.into()));
    }
}
