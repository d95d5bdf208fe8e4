//! Failures in a row, from the first one to the answer that ends them.

use std::time::{Duration, Instant};

use rand::Rng;

use super::pacing::backoff;
use super::terms::Settings;

/// The failures since the last good answer.
#[derive(Debug, Default)]
pub(super) struct Failures {
    pub(super) count: u32,
    /// The last good answer that ended an outage or came without one.
    last_good: Option<Instant>,
    /// While requests fail: the last good answer before, or the first failure.
    since: Option<Instant>,
    /// Servers tried since the last good answer or pause.
    pub(super) tried: usize,
    /// Pauses since the last good answer.
    rounds: u32,
}

impl Failures {
    /// Whether requests fail.
    pub(super) fn are_going_on(&self) -> bool {
        self.since.is_some()
    }

    /// One more.
    pub(super) fn add(&mut self, now: Instant) {
        self.since.get_or_insert(self.last_good.unwrap_or(now));
        self.count = self.count.saturating_add(1);
    }

    /// The pause after a round over all servers.
    pub(super) fn next_pause(&mut self, settings: &Settings, rng: &mut impl Rng) -> Duration {
        let pause = backoff(self.rounds, (settings.retry_min, settings.retry_max), rng);
        self.skip_pause();
        pause
    }

    /// A round ends without a pause.
    pub(super) fn skip_pause(&mut self) {
        self.rounds = self.rounds.saturating_add(1);
    }

    /// A good answer that can't end an outage.
    pub(super) fn note_good(&mut self, now: Instant) {
        self.tried = 0;
        if !self.are_going_on() {
            self.last_good = Some(now);
        }
    }

    /// A good answer that ends the outage, if there is one: gives its length up to `until`.
    pub(super) fn end(&mut self, until: Instant, now: Instant) -> Option<Duration> {
        let since = self.since;
        *self = Failures { last_good: Some(now), ..Failures::default() };
        since.map(|since| until.saturating_duration_since(since))
    }
}
