//! Requests of workers that worker 0 query Consul now, and the changes it holds back while a target
//! is frozen.

use super::layout::{Table, entry as word, header};
use super::platform::atomic::Ordering::{AcqRel, Acquire, Relaxed};

/// What the last answer would change if the target were not frozen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrozenDiff {
    /// Instances that would join.
    pub joined: u32,
    /// Instances that would leave.
    pub left: u32,
}

impl Table<'_> {
    /// Asks worker 0 to query Consul for the target now.
    pub fn request_resync(&self, entry: usize) {
        self.entry_word(entry, word::RESYNC).store(1, Relaxed);
        self.word(header::RESYNCS).fetch_add(1, AcqRel);
    }

    /// Number of requests so far: when it moves, [`Table::take_resyncs`] may return some.
    pub fn resync_requests(&self) -> u64 {
        self.word(header::RESYNCS).load(Acquire)
    }

    /// Entries and keys of the targets to query now. Each request is returned once.
    pub fn take_resyncs(&self) -> Vec<(usize, u128)> {
        let is_requested = |entry: &usize| {
            let word = self.entry_word(*entry, word::RESYNC);
            word.load(Relaxed) != 0 && word.swap(0, AcqRel) != 0
        };
        let requested = (0..self.entry_capacity()).filter(is_requested);
        requested.map(|entry| (entry, self.key(entry))).filter(|(_, key)| *key != 0).collect()
    }

    /// Notes what the last answer would change; `true` if the difference itself has changed.
    pub fn note_frozen_diff(&self, entry: usize, diff: FrozenDiff) -> bool {
        let raw = u64::from(diff.joined) << 32 | u64::from(diff.left);
        self.entry_word(entry, word::FROZEN_DIFF).swap(raw, Relaxed) != raw
    }

    /// What the last answer would change.
    pub fn frozen_diff(&self, entry: usize) -> FrozenDiff {
        let raw = self.entry_word(entry, word::FROZEN_DIFF).load(Relaxed);
        FrozenDiff { joined: (raw >> 32) as u32, left: raw as u32 }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::testing::zone;
    use super::*;
    use crate::process::ProcessId;

    #[test]
    fn a_resync_is_returned_once_and_only_while_there_is_a_target() {
        let (table, me) = (Table::create(zone(1 << 17), 16).unwrap(), ProcessId::own());
        table.acquire_leadership(me);
        let entries = [5, 6].map(|key| table.claim(key, me).unwrap());
        let before = table.resync_requests();
        assert_eq!(table.take_resyncs(), []);
        entries.iter().for_each(|entry| table.request_resync(*entry));
        table.request_resync(entries[0]);
        assert_ne!(table.resync_requests(), before);
        table.release(entries[1], 6, me);
        assert_eq!(table.take_resyncs(), [(entries[0], 5)]);
        assert_eq!(table.take_resyncs(), []);
    }

    #[test]
    fn a_change_of_the_frozen_diff_is_noticed() {
        let table = Table::create(zone(1 << 17), 16).unwrap();
        let entry = table.claim(5, ProcessId::own()).unwrap();
        let diff = FrozenDiff { joined: u32::MAX, left: 2 };
        assert!(table.note_frozen_diff(entry, diff));
        assert!(!table.note_frozen_diff(entry, diff));
        assert_eq!(table.frozen_diff(entry), diff);
        assert!(table.note_frozen_diff(entry, FrozenDiff::default()));
    }
}
