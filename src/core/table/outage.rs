//! The outage of a target: state that the requests of all workers share while its instances have failed.

use super::layout::{Table, WorkerShard, entry as word, header};
use super::permits::{self, Permit, Terms};
use super::platform::atomic::AtomicU64;
use super::platform::atomic::Ordering::{Relaxed, SeqCst};

/// Most requests at a time that may try instances before an outage is confirmed.
pub const PERMITS: usize = word::PERMITS;

/// The outage of a target, in its entry. Times are milliseconds of the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Outage<'z> {
    words: &'z [AtomicU64],
}

impl<'z> Table<'z> {
    /// The outage of a target.
    pub fn outage(&self, entry: usize) -> Outage<'z> {
        let words = word::OUTAGE..word::OUTAGE + word::OUTAGE_WORDS;
        Outage { words: self.entry_words(entry, words) }
    }

    /// Counts the recovery of an instance that was marked as failed. Workers then forget that they
    /// found no usable peer.
    pub fn note_recovered(&self) {
        self.word(header::RECOVERIES).fetch_add(1, Relaxed);
    }

    /// Recoveries so far.
    #[inline]
    pub fn recoveries(&self) -> u64 {
        self.load(header::RECOVERIES)
    }

    pub(super) fn clear_permits(&self, shard: WorkerShard) {
        for entry in 0..self.layout.entry_count {
            for word in &self.outage(entry).words[word::OUTAGE_WORDS - PERMITS..] {
                permits::clear(word, shard);
            }
        }
    }
}

impl<'z> Outage<'z> {
    /// Notes that an instance is marked as failed now.
    pub fn note_marked(&self, now: u64) {
        self.words[word::O_MARKED_AT].fetch_max(now, SeqCst);
    }

    /// Notes that an attempt that began at `from` has failed.
    pub fn note_failed(&self, from: u64) {
        self.words[word::O_FAILED_FROM].fetch_max(from, SeqCst);
    }

    /// Whether an attempt has failed that began after the last instance was marked. Before that, a
    /// burst of slow requests may have marked them all.
    pub fn is_confirmed(&self) -> bool {
        self.words[word::O_FAILED_FROM].load(SeqCst) > self.words[word::O_MARKED_AT].load(SeqCst)
    }

    /// Takes one of the [`PERMITS`], if one is free or was taken more than `expires_after`
    /// milliseconds ago.
    pub fn take_permit(
        &self,
        shard: Option<WorkerShard>,
        now: u64,
        expires_after: u64,
    ) -> Option<Permit<'z>> {
        let terms = Terms { now, expires_after, pace: 0 };
        self.words[word::OUTAGE_WORDS - PERMITS..]
            .iter()
            .find_map(|word| Permit::take(word, shard, terms))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::testing::zone;
    use super::*;
    use crate::process::ProcessId;

    fn table() -> (Table<'static>, usize) {
        let table = Table::create(zone(1 << 17), 16).unwrap();
        let entry = table.claim(7, ProcessId::own()).unwrap();
        (table, entry)
    }

    #[test]
    fn an_attempt_that_began_before_the_last_mark_confirms_nothing() {
        let (table, entry) = table();
        let outage = table.outage(entry);
        assert!(!outage.is_confirmed());
        outage.note_marked(1_000);
        for from in [0, 999, 1_000] {
            outage.note_failed(from);
            assert!(!outage.is_confirmed(), "from {from}");
        }
        outage.note_failed(1_001);
        assert!(outage.is_confirmed());
        outage.note_failed(1);
        assert!(outage.is_confirmed(), "an older attempt that fails later changes nothing");
        outage.note_marked(2_000);
        assert!(!outage.is_confirmed(), "another instance has served meanwhile");
    }

    #[test]
    fn sixteen_requests_hold_a_permit_at_a_time() {
        let (table, entry) = table();
        let shard = table.claim_shard(ProcessId::own()).unwrap();
        let outage = table.outage(entry);
        let take = |now| outage.take_permit(Some(shard), now, 10_000);
        let mut held: Vec<_> = (0..PERMITS).map(|_| take(5_000).unwrap()).collect();
        assert!(take(15_000).is_none());
        held.pop().unwrap().end();
        held.push(take(15_000).unwrap());
        assert!(take(15_000).is_none());
        // All but the last have waited too long by now.
        assert_eq!((0..PERMITS).filter_map(|_| take(15_001)).count(), PERMITS - 1);
    }

    #[test]
    fn the_permits_of_a_killed_worker_are_free_again() {
        let (table, entry) = table();
        let shard = table.claim_shard(ProcessId::own()).unwrap();
        let outage = table.outage(entry);
        while outage.take_permit(Some(shard), 5_000, 10_000).is_some() {}
        table.clear_shard(shard);
        assert_eq!(
            (0..20).filter_map(|_| outage.take_permit(None, 5_000, 10_000)).count(),
            PERMITS
        );
    }
}
