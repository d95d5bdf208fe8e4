//! What a failure leads to.

use std::time::{Duration, Instant};

use rand::Rng;

use super::{Outcome, Settings, USEFUL, Watch};

impl Watch {
    /// A query that blocks was refused: reads at once, and blocks after a pause.
    pub(super) fn refused(&mut self, now: Instant, rng: &mut impl Rng) -> Outcome {
        self.index = None;
        self.failing_since.get_or_insert(now);
        self.failures = self.failures.saturating_add(1);
        self.pay(USEFUL, now);
        let pause = if self.copies.refused(now, rng) { Duration::ZERO } else { self.backoff(rng) };
        self.rounds = self.rounds.saturating_add(1);
        self.blocks_at = Some(now + pause);
        Outcome::Failed { failures: self.failures, retry_in: pause, round: true }
    }

    pub(super) fn failed(&mut self, now: Instant, rng: &mut impl Rng) -> Outcome {
        self.index = None;
        self.copies.failed();
        self.failing_since.get_or_insert(now);
        self.failures = self.failures.saturating_add(1);
        self.server = (self.server + 1) % self.settings.servers;
        self.tried += 1;
        self.pay(USEFUL, now);
        let round = self.tried >= self.settings.servers;
        if round {
            self.tried = 0;
            let pause = self.backoff(rng);
            self.rounds = self.rounds.saturating_add(1);
            self.pause_until(now + pause);
        }
        let retry_in = self.not_before.map_or(Duration::ZERO, |at| at - now);
        Outcome::Failed { failures: self.failures, retry_in, round }
    }

    /// Somewhere between the shortest pause and one that doubles with every round.
    fn backoff(&self, rng: &mut impl Rng) -> Duration {
        let Settings { retry_min: min, retry_max: max, .. } = self.settings;
        let factor = 2u32.checked_pow(self.rounds.saturating_add(1)).unwrap_or(u32::MAX);
        let ceiling = min.saturating_mul(factor).min(max);
        min + (ceiling - min).mul_f64(rng.random_range(0.0..=1.0))
    }
}
