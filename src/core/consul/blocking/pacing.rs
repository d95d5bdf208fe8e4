//! How often requests may be sent: a token bucket, and the pauses after failures.

use std::time::{Duration, Instant};

use rand::Rng;

/// Tokens that a watch may save up for a burst.
pub(super) const BUCKET: f64 = 20.0;
/// Tokens that come back each second.
pub(super) const REFILL: f64 = 20.0;

/// Token bucket: requests wait while tokens are owed.
#[derive(Debug)]
pub(super) struct TokenBucket {
    pub(super) tokens: f64,
    refilled: Option<Instant>,
}

impl Default for TokenBucket {
    /// Full.
    fn default() -> Self {
        TokenBucket { tokens: BUCKET, refilled: None }
    }
}

impl TokenBucket {
    /// Takes tokens.
    pub(super) fn take(&mut self, tokens: f64, now: Instant) {
        let since = self.refilled.replace(now).map_or(Duration::ZERO, |last| now - last);
        self.tokens = (self.tokens + since.as_secs_f64() * REFILL).min(BUCKET) - tokens;
    }

    /// When no token is owed any more; `None`: none is.
    pub(super) fn debt_until(&self) -> Option<Instant> {
        let debt = Duration::from_secs_f64((-self.tokens).max(0.0) / REFILL);
        self.refilled.filter(|_| self.tokens < 0.0).map(|since| since + debt)
    }
}

/// Exponential backoff with full jitter: somewhere between `min` and a pause that doubles with
/// every round, up to `max`.
pub(super) fn backoff(
    rounds: u32,
    (min, max): (Duration, Duration),
    rng: &mut impl Rng,
) -> Duration {
    let factor = 2u32.checked_pow(rounds.saturating_add(1)).unwrap_or(u32::MAX);
    let ceiling = min.saturating_mul(factor).min(max);
    min + (ceiling - min).mul_f64(rng.random_range(0.0..=1.0))
}

/// `time`, up to `share` of it sooner or later.
pub(super) fn jitter(time: Duration, share: f64, rng: &mut impl Rng) -> Duration {
    time.mul_f64(rng.random_range(1.0 - share..=1.0 + share))
}
