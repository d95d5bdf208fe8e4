//! Results of looking up services that requests have named, so that a worker need not ask worker 0
//! again.
//!
//! The cache has a fixed size, and four cells for a name. A flood of names that don't exist replaces
//! only results of such names, and services that exist leave them one of the four. Writers have the
//! publishers' lock. Readers take none: the first word of a cell is its key XOR the second, so a cell
//! that is half written matches no key.

use std::time::Duration;

use super::layout::{
    Table,
    lookup_cache::{CELL, WAYS, WORDS_PER_ENTRY},
};
use super::platform::atomic::Ordering::Relaxed;
use crate::process::ProcessId;

/// The lower bits of a cell's second word are the kind, the others until when it is valid, in
/// milliseconds of the monotonic clock.
const KIND_BITS: u32 = 2;

/// The result of looking up a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupResult {
    /// The service is followed: it has an entry, or had one a short time ago.
    Followed = 1,
    /// Consul has no such service, or not one that is allowed.
    Absent,
    /// The lookup failed: Consul does not answer, or the zone has no room.
    Failed,
}

impl Table<'_> {
    /// The result for a key, until it expires; `now` is in milliseconds of the monotonic clock.
    pub fn lookup_result(&self, key: u128, now: u64) -> Option<LookupResult> {
        let (_, value) = self.cells(key).find(|(at, value)| self.is_of(*at, *value, key))?;
        Some(value).filter(|value| value >> KIND_BITS > now).and_then(kind_of)
    }

    /// Stores the result for a key for the time `valid`, unless a newer configuration is in force or
    /// the lock is busy.
    pub fn note_lookup_result(
        &self,
        key: u128,
        result: LookupResult,
        (now, valid): (u64, Duration),
        me: ProcessId,
    ) {
        let Some(_guard) = self.lock(me).filter(|_| !self.is_superseded()) else { return };
        let valid_ms = u64::try_from(valid.as_millis()).unwrap_or(u64::MAX);
        let until = now.saturating_add(valid_ms).min(u64::MAX >> KIND_BITS);
        let value = until << KIND_BITS | result as u64;
        // Services that exist leave the last cell to the other names, which leave the rest to them.
        let count = WAYS - usize::from(result == LookupResult::Followed);
        let rank = |(at, value): &(usize, u64)| match self.is_of(*at, *value, key) {
            true => (0, 0),
            false => (1 + u64::from(kind_of(*value) == Some(LookupResult::Followed)), *value),
        };
        let Some((chosen, _)) = self.cells(key).take(count).min_by_key(rank) else { return };
        self.clear_cells(key, Some(chosen));
        self.store_cell(chosen, key, value);
    }

    /// Removes the result for a key, if there is one.
    pub fn forget_lookup_result(&self, key: u128, me: ProcessId) {
        if let Some(_guard) = self.lock(me).filter(|_| !self.is_superseded()) {
            self.clear_cells(key, None);
        }
    }

    fn clear_cells(&self, key: u128, except: Option<usize>) {
        for (at, value) in self.cells(key) {
            if Some(at) != except && self.is_of(at, value, key) {
                self.store_cell(at, key, 0);
            }
        }
    }

    fn store_cell(&self, at: usize, key: u128, value: u64) {
        self.word(at).store(key as u64 ^ value, Relaxed);
        self.word(at + 1).store(value, Relaxed);
    }

    fn is_of(&self, at: usize, value: u64, key: u128) -> bool {
        value != 0 && self.load(at) == key as u64 ^ value
    }

    /// The cells that the key may be in, and their second words.
    fn cells(&self, key: u128) -> impl Iterator<Item = (usize, u64)> + '_ {
        let set = (key >> 64) as usize % self.layout.entry_count;
        let first = self.layout.lookup_cache + set * WORDS_PER_ENTRY;
        (0..WAYS).map(move |way| first + way * CELL).map(|at| (at, self.load(at + 1)))
    }
}

fn kind_of(value: u64) -> Option<LookupResult> {
    let kind = value & ((1 << KIND_BITS) - 1);
    [LookupResult::Followed, LookupResult::Absent, LookupResult::Failed]
        .into_iter()
        .find(|v| *v as u64 == kind)
}

#[cfg(test)]
mod tests {
    use super::super::testing::zone;
    use super::*;
    use crate::clock::Clock;

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    fn table() -> Table<'static> {
        Table::create(zone(1 << 17), 16).unwrap()
    }

    fn note(table: Table<'_>, key: u128, result: LookupResult, now: u64, valid: Duration) {
        table.note_lookup_result(key, result, (now, valid), ProcessId::from_raw(7));
    }

    #[test]
    fn a_result_holds_until_it_expires() {
        let table = table();
        assert_eq!(table.lookup_result(7, 0), None);
        note(table, 7, LookupResult::Absent, 0, ms(1_000));
        assert_eq!(table.lookup_result(7, 999), Some(LookupResult::Absent));
        assert_eq!(table.lookup_result(7, 1_000), None);
        assert_eq!(table.lookup_result(8, 999), None, "another key of the same set");
        note(table, 7, LookupResult::Followed, 1_000, ms(4_000));
        assert_eq!(table.lookup_result(7, 1_000), Some(LookupResult::Followed));
    }

    #[test]
    fn a_million_absent_names_drive_out_no_name_that_exists() {
        let table = table();
        let names = 0..20u128;
        // All keys of a set differ in their lower half.
        let key = |n: u128| (n % 3) << 64 | (n + 1);
        for n in names.clone().take(6) {
            note(table, key(n), LookupResult::Followed, 10_000, ms(n as u64));
        }
        for n in 100..1_000_100 {
            note(table, key(n), LookupResult::Absent, 20_000, ms(n as u64));
        }
        for n in names.take(6) {
            assert_eq!(table.lookup_result(key(n), 9_000), Some(LookupResult::Followed), "{n}");
        }
        assert_eq!(table.lookup_result(key(1_000_099), 9_000), Some(LookupResult::Absent));
    }

    #[test]
    fn names_that_exist_and_others_leave_room_for_each_other() {
        let table = table();
        for n in 1..=6 {
            note(table, n, LookupResult::Followed, 0, Duration::MAX);
            note(table, 100 + n, LookupResult::Absent, 0, ms(1_000));
        }
        let kept = |result| (1..200).filter(|n| table.lookup_result(*n, 0) == Some(result)).count();
        assert_eq!((kept(LookupResult::Followed), kept(LookupResult::Absent)), (3, 1));
    }

    #[test]
    fn a_name_has_one_result_whatever_it_was_before() {
        let table = table();
        (1..=3).for_each(|n| note(table, n, LookupResult::Followed, 0, Duration::MAX));
        note(table, 9, LookupResult::Absent, 0, ms(1_000));
        note(table, 9, LookupResult::Followed, 0, Duration::MAX);
        assert_eq!(table.lookup_result(9, 0), Some(LookupResult::Followed));
        table.forget_lookup_result(9, ProcessId::from_raw(7));
        assert_eq!(table.lookup_result(9, 0), None);
        table.forget_lookup_result(10, ProcessId::from_raw(7));
        assert_eq!(table.lookup_result(3, 0), Some(LookupResult::Followed));
    }

    #[test]
    fn an_older_configuration_notes_and_forgets_nothing() {
        let old = table();
        let new = old.announce_configuration();
        new.put_in_force();
        note(new, 7, LookupResult::Followed, 0, Duration::MAX);
        note(old, 7, LookupResult::Absent, 0, ms(1_000));
        old.forget_lookup_result(7, ProcessId::from_raw(7));
        assert_eq!(new.lookup_result(7, 0), Some(LookupResult::Followed));
    }

    #[test]
    fn results_touch_nothing_else() {
        let table = table();
        let me = crate::process::ProcessId::own();
        let shard = table.claim_shard(me).unwrap();
        for n in 0..100_000u128 {
            note(table, n << 64 | (n + 1), LookupResult::Absent, 0, Duration::MAX);
        }
        let entry = table.claim(7, me).unwrap();
        table.publish((entry, 7), &super::super::testing::set([1, 2]), Clock::at(1), me).unwrap();
        let before = table.read(entry, 7).unwrap();
        table.clear_dead_shards();
        let mut others: Vec<_> = std::iter::from_fn(|| table.claim_shard(me)).collect();
        assert_eq!(others.len(), 15, "one is taken");
        others.push(shard);
        for shard in others {
            table.clear_shard(shard);
            table.release_shard(shard);
        }
        assert_eq!(table.read(entry, 7).unwrap().records, before.records);
        assert_eq!(table.lookup_result(99_999 << 64 | 100_000, 0), Some(LookupResult::Absent));
    }

    #[test]
    fn words_of_two_writers_are_no_result() {
        let table = table();
        note(table, 7, LookupResult::Followed, 0, ms(1_000));
        let (at, _) = table.cells(7).find(|(_, value)| *value != 0).unwrap();
        table.word(at + 1).store(2_000 << KIND_BITS | LookupResult::Absent as u64, Relaxed);
        assert_eq!(table.lookup_result(7, 0), None);
    }
}
