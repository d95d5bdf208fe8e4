//! Permits limit how many requests at a time, over all workers, may try what has failed.
//!
//! A permit is a word with the shard of its holder and the time when it was taken. The request gives
//! it back; if its worker was killed, it is cleared with the worker's shard. After its time another
//! request can take it, even if its holder still waits.

use super::layout::WorkerShard;
use super::platform::atomic::AtomicU64;
use super::platform::atomic::Ordering::{AcqRel, Acquire, Relaxed};

/// The lower bits of a word: the holder's shard plus one, 0 if nobody holds it. Above them is when
/// it was taken last, milliseconds of the monotonic clock.
const HOLDER_BITS: u32 = 16;
const HOLDER: u64 = (1 << HOLDER_BITS) - 1;

/// When a permit can be taken. Milliseconds of the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) now: u64,
    /// A permit held for longer than this can be taken by another request.
    pub(super) expires_after: u64,
    /// Shortest time from one taking to the next.
    pub(super) pace: u64,
}

/// Held by a request while it tries an instance that has failed.
#[derive(Debug)]
#[must_use = "the permit bars other requests until its end"]
pub struct Permit<'z> {
    word: &'z AtomicU64,
    value: u64,
}

impl<'z> Permit<'z> {
    /// Takes the permit in `word`, if it is free. If a worker without a shard is killed, its permit
    /// stays taken until it expires.
    pub(super) fn take(
        word: &'z AtomicU64,
        shard: Option<WorkerShard>,
        terms: Terms,
    ) -> Option<Permit<'z>> {
        let before = word.load(Acquire);
        if !is_free(before, terms) {
            return None;
        }
        let value = terms.now << HOLDER_BITS | shard.map_or(HOLDER, holder);
        word.compare_exchange(before, value, AcqRel, Acquire).ok()?;
        Some(Permit { word, value })
    }

    /// Gives the permit back. Does nothing if it has expired and another request has taken it.
    pub fn end(self) {
        let _ = self.word.compare_exchange(self.value, self.value & !HOLDER, AcqRel, Relaxed);
    }
}

/// Whether a permit could be taken.
pub(super) fn is_free_at(word: &AtomicU64, terms: Terms) -> bool {
    is_free(word.load(Relaxed), terms)
}

/// Ends the permit of a word if the shard holds it.
pub(super) fn clear(word: &AtomicU64, shard: WorkerShard) {
    let held = word.load(Relaxed);
    if held & HOLDER == holder(shard) {
        let _ = word.compare_exchange(held, held & !HOLDER, AcqRel, Relaxed);
    }
}

fn is_free(value: u64, terms: Terms) -> bool {
    let age = terms.now.saturating_sub(value >> HOLDER_BITS);
    value == 0 || (age >= terms.pace && (value & HOLDER == 0 || age > terms.expires_after))
}

/// Shards are fewer than 2¹⁶ - 1.
fn holder(shard: WorkerShard) -> u64 {
    u64::from(shard.0) + 1
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { now: 5_000, expires_after: 10_000, pace: 0 };

    fn at(now: u64) -> Terms {
        Terms { now, ..TERMS }
    }

    #[test]
    fn one_at_a_time_holds_a_permit() {
        let word = AtomicU64::new(0);
        let first = Permit::take(&word, Some(WorkerShard(3)), TERMS).unwrap();
        assert!(Permit::take(&word, Some(WorkerShard(3)), at(15_000)).is_none(), "held");
        first.end();
        assert!(Permit::take(&word, None, at(5_001)).is_some(), "given back");
    }

    #[test]
    fn a_permit_that_has_expired_bars_nobody_and_its_end_takes_nothing_from_the_next_holder() {
        let word = AtomicU64::new(0);
        let first = Permit::take(&word, Some(WorkerShard(0)), TERMS).unwrap();
        let second = Permit::take(&word, Some(WorkerShard(0)), at(15_001)).unwrap();
        first.end();
        assert!(!is_free_at(&word, at(15_002)), "the second one holds it");
        second.end();
        assert!(is_free_at(&word, at(15_002)));
    }

    #[test]
    fn a_pace_counts_from_one_taking_to_the_next() {
        let word = AtomicU64::new(0);
        let paced = |now| Terms { pace: 1_000, ..at(now) };
        Permit::take(&word, None, paced(5_000)).unwrap().end();
        assert!(!is_free_at(&word, paced(5_999)));
        assert!(is_free_at(&word, paced(6_000)));
        // Whoever waits longer than the pace is still the only one.
        let slow = Permit::take(&word, None, paced(6_000)).unwrap();
        assert!(!is_free_at(&word, paced(9_000)));
        slow.end();
        assert!(is_free_at(&word, paced(9_000)));
    }

    #[test]
    fn the_permits_of_a_shard_are_cleared_and_no_others() {
        let (own, other) = (AtomicU64::new(0), AtomicU64::new(0));
        let held = Permit::take(&own, Some(WorkerShard(7)), TERMS).unwrap();
        let kept = Permit::take(&other, Some(WorkerShard(8)), TERMS).unwrap();
        [&own, &other].into_iter().for_each(|word| clear(word, WorkerShard(7)));
        assert!(is_free_at(&own, TERMS) && !is_free_at(&other, TERMS));
        // The worker was killed, so nobody ends them; if somebody does, no harm is done.
        held.end();
        kept.end();
    }
}
