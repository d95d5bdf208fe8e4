//! What the engine knows of one watch.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::share::Share;
use crate::consul::overview;
use crate::sync::runner::{Common, Job, poll};

/// Requests a second that a change of a service counts as: whatever changes often is worth a
/// blocking query.
const CHANGE: f64 = 5.0;
/// A service with less than this is not worth one.
const LUKEWARM: f64 = 0.05;
/// What has a blocking query keeps it unless another service is this much hotter.
const HYSTERESIS: f64 = 1.5;
/// Heat that is left after each interval.
const COOLING: f64 = 0.8;

/// One watch.
pub(super) struct Entry {
    pub(super) common: Arc<Common>,
    /// Of the service, by [`overview::key`].
    pub(super) name: u64,
    /// `None` while a thread has it.
    pub(super) job: Option<Box<Job>>,
    /// Its place in the queue, while the job is here.
    pub(super) due: Instant,
    /// The length of the query while a thread has the job and it blocks.
    pub(super) out: Option<Duration>,
    /// A read beside the query that is under way, for targets that have joined: when.
    pub(super) beside: Option<Instant>,
    /// It is to have a blocking query.
    pub(super) polled: bool,
    /// What it is to be read for has happened while a thread had the job.
    pub(super) again: Option<Again>,
    /// When it was last asked for.
    pub(super) asked: Option<Instant>,
    /// It has its place in a sweep that is going on.
    pub(super) swept: bool,
    /// Which scope's lookouts speak for it.
    pub(super) scope: Option<usize>,
    /// It is not polled before.
    pub(super) settled: Instant,
    pub(super) heat: Heat,
}

/// Why a service is read once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Again {
    /// Something may have changed.
    Perhaps,
    /// It has changed, or there is a new target.
    Surely,
}

/// How much a service is used and changed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heat {
    picks: Option<u64>,
    changes: u32,
    pub(super) value: f64,
}

impl Heat {
    pub(super) fn note_change(&mut self) {
        self.changes += 1;
    }

    /// `picks` so far; `over`: since the last time.
    pub(super) fn measure(&mut self, picks: u64, over: Duration) {
        let before = self.picks.replace(picks).unwrap_or(picks);
        let new = picks.saturating_sub(before) as f64 + CHANGE * f64::from(self.changes);
        self.changes = 0;
        let rate = new / over.as_secs_f64().max(0.1);
        self.value = self.value * COOLING + rate * (1.0 - COOLING);
    }
}

impl Entry {
    pub(super) fn new(common: Arc<Common>, scope: Option<usize>, now: Instant) -> Self {
        let job = Some(Box::new(Job::new(&common)));
        let name = overview::key(&common.subject.query.service);
        Entry {
            common,
            name,
            job,
            due: now,
            out: None,
            beside: None,
            polled: false,
            again: None,
            asked: None,
            swept: false,
            scope,
            settled: now,
            heat: Heat::default(),
        }
    }

    /// Whether it can block at all.
    pub(super) fn can_block(&self) -> bool {
        poll(&self.common.subject).is_none()
    }

    /// How much it wants a blocking query, if it does. Where no lookout speaks for a service, its
    /// changes are late otherwise, so every one is better than none.
    pub(super) fn claim(&self, gated: bool, now: Instant) -> Option<f64> {
        if !self.can_block() || self.settled > now {
            return None;
        }
        let heat = if self.polled { self.heat.value * HYSTERESIS } else { self.heat.value };
        let heat = if gated { heat } else { heat + 2.0 * LUKEWARM };
        (heat >= LUKEWARM).then_some(heat)
    }

    /// Time between two reads while it has no blocking query.
    pub(super) fn interval(&self, share: &Share, gated: bool) -> Duration {
        match poll(&self.common.subject) {
            Some(interval) => interval,
            None if gated => super::share::GATED,
            None => share.interval,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::testing::{endpoint, target};

    const OVER: Duration = Duration::from_secs(5);

    fn entry() -> Entry {
        let target = target(&Arc::new(endpoint("http://127.0.0.1:1")), "web");
        let common = Common::new(Arc::new(target.subject()), Vec::new());
        Entry::new(common, None, Instant::now())
    }

    #[test]
    fn traffic_and_changes_make_hot_and_time_cools() {
        let mut heat = Heat::default();
        heat.measure(1_000_000, OVER);
        assert!(heat.value < 1e-9, "what was before it looked says nothing");
        heat.measure(1_000_500, OVER);
        let hot = heat.value;
        assert!(hot > 10.0, "{hot}");
        heat.measure(1_000_500, OVER);
        assert!(heat.value < hot && heat.value > hot / 2.0);
        let mut changed = Heat::default();
        changed.note_change();
        changed.measure(0, OVER);
        assert!(changed.value > LUKEWARM);
        // A zone that was made anew counts from zero.
        heat.measure(0, OVER);
        assert!(heat.value < hot);
    }

    #[test]
    fn a_cold_service_claims_no_query_where_a_lookout_speaks_for_it() {
        let now = Instant::now() + OVER;
        let mut entry = entry();
        assert_eq!(entry.claim(true, now), None);
        assert!(entry.claim(false, now).is_some());
        entry.heat.value = 1.0;
        let cold = entry.claim(true, now).unwrap();
        entry.polled = true;
        assert!(entry.claim(true, now).unwrap() > cold, "who has one keeps it");
        entry.settled = now + OVER;
        assert_eq!(entry.claim(true, now), None, "it may be gone in a second");
    }
}
