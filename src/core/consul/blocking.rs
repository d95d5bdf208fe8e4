//! The rules of following a service by blocking queries, without any I/O: time, randomness and
//! answers come from outside.
//!
//! Sources: <https://developer.hashicorp.com/consul/api-docs/features/blocking> and what agents
//! were seen to do. A too high index hides changes, so it is forgotten whenever it may be wrong.
//!
//! Answers that come from a copy of the state (a streamed view, an agent's cache) never overrule a
//! server's, and are verified now and then: `copies.rs`.

use std::time::{Duration, Instant};

use rand::Rng;

pub use self::terms::{Answer, Fetch, Outcome, Settings, Step, Turn, is_outdated};

use self::copies::Copies;
use super::query::ReadFrom;

/// Tokens that a watch may save up for a burst.
const BUCKET: f64 = 20.0;
/// Tokens that come back each second.
const REFILL: f64 = 20.0;
/// Price of an answer that changed something, of a failure and of a lost connection.
const USEFUL: f64 = 1.0;
/// Price of an answer that came early and changed nothing: a storm of these is held to two a
/// second.
const USELESS: f64 = 10.0;
/// Price of a MiB of body.
const PER_MIB: f64 = 1.0;
/// A blocking query that ends this much before its `wait` has still timed out: clocks differ.
const EARLY: Duration = Duration::from_millis(100);
/// Consul's longest `wait`; shorter ones than the other would be polling.
const MAX_WAIT: Duration = Duration::from_secs(600);
const MIN_WAIT: Duration = Duration::from_secs(1);
/// How often the first server is asked whether it is back, while another one is in use.
const RETURN: Duration = Duration::from_secs(30);
/// Length of a blocking query that has to show that such queries are answered.
const TRIAL: Duration = MIN_WAIT;
/// Pause after a failure at least, whatever the configuration says.
const MIN_RETRY: Duration = Duration::from_millis(10);

/// State of one watch.
#[derive(Debug, Default)]
pub struct Watch {
    settings: Settings,
    server: usize,
    index: Option<u64>,
    digest: Option<u128>,
    fetch: Option<(Fetch, Instant)>,
    not_before: Option<Instant>,
    /// When the sweep comes round again.
    paced: Option<Instant>,
    wait_limit: Duration,
    /// When the first server is asked next; only while another one is in use.
    return_at: Option<Instant>,
    failures: u32,
    failing_since: Option<Instant>,
    /// Servers tried since the last good answer or pause.
    tried: usize,
    /// Pauses since the last good answer.
    rounds: u32,
    tokens: f64,
    refilled: Option<Instant>,
    copies: Copies,
    /// The next request is a read from the leader, whatever the index.
    verifies: bool,
    /// No query blocks before this time: one was refused.
    blocks_at: Option<Instant>,
    /// Where a view's lower index led to, without a change.
    bounced: Option<u64>,
    turn: Option<Turn>,
}

impl Watch {
    /// A watch that knows nothing: its first step is a fetch without index.
    pub fn new(settings: Settings) -> Self {
        let retry_min = settings.retry_min.max(MIN_RETRY);
        let settings = Settings {
            servers: settings.servers.max(1),
            wait: settings.wait.clamp(MIN_WAIT, MAX_WAIT),
            retry_min,
            retry_max: settings.retry_max.max(retry_min),
            poll: settings.poll.max(MIN_RETRY),
            ..settings
        };
        Watch {
            settings,
            copies: Copies::new(settings.can_avoid_copies),
            wait_limit: MAX_WAIT,
            tokens: BUCKET,
            ..Watch::default()
        }
    }

    /// Bounds `wait` of the requests to come, for what can change without Consul's knowing it.
    pub fn limit_wait(&mut self, limit: Option<Duration>) {
        self.wait_limit = limit.unwrap_or(MAX_WAIT).max(MIN_WAIT);
    }

    /// Asks at this interval from here on, or blocks. The pause that has begun stays.
    pub fn set_sweep(&mut self, sweep: Option<Duration>) {
        self.settings.sweep = sweep;
        match sweep {
            Some(_) => (self.index, self.blocks_at) = (None, None),
            None => self.paced = None,
        }
    }

    /// The next request of the sweep comes at `at`, if it would come later.
    pub fn advance(&mut self, at: Instant) {
        self.paced = self.paced.map(|paced| paced.min(at));
    }

    /// Before this time it only sleeps; `None`: it has something to ask.
    pub fn due(&self) -> Option<Instant> {
        self.not_before.max(self.paced)
    }

    /// Whether the next request blocks.
    pub fn will_block(&self) -> bool {
        self.index.is_some() && !self.verifies
    }

    /// Whether queries that block are refused, so that it only reads now and then.
    pub fn polls(&self) -> bool {
        self.settings.sweep.is_none() && self.blocks_at.is_some()
    }

    /// Whether a server is asked where Consul would answer from a copy of the state.
    pub fn avoids_copies(&self) -> bool {
        self.copies.are_avoided()
    }

    /// How the way to ask has changed since the last time.
    pub fn take_turn(&mut self) -> Option<Turn> {
        self.turn.take()
    }

    /// Which server is asked next.
    pub fn server(&self) -> usize {
        self.server
    }

    /// Digest of the last good answer.
    pub fn digest(&self) -> Option<u128> {
        self.digest
    }

    /// Asks nothing before `at`; the index stays.
    pub fn pause_until(&mut self, at: Instant) {
        self.not_before = self.not_before.max(Some(at));
    }

    /// What to do now. A fetch must be followed by [`answer`](Self::answer).
    pub fn next(&mut self, now: Instant) -> Step {
        if let Some(at) = self.due() {
            if at > now {
                return Step::Sleep(at - now);
            }
        }
        self.not_before = None;
        self.paced = None;
        let fetch = self.request(now);
        self.fetch = Some((fetch, now));
        Step::Fetch(fetch)
    }

    fn request(&self, now: Instant) -> Fetch {
        let wait = self.settings.wait.min(self.wait_limit);
        let from = if self.verifies { ReadFrom::Leader } else { self.copies.from(now) };
        let mut fetch = Fetch { from, ..Fetch::read(self.server, wait) };
        if let Some(at) = self.return_at.filter(|_| !self.is_failing()) {
            if at <= now {
                return Fetch { probe: true, ..Fetch::read(0, wait) };
            }
            fetch.wait = wait.min(at - now).max(MIN_WAIT);
        }
        if self.will_block() {
            fetch.index = self.index;
            let is_trial = self.is_failing() || self.copies.are_on_trial(now);
            let limit = is_trial.then_some(TRIAL).or(self.copies.due_in(now));
            fetch.wait = limit.map_or(fetch.wait, |limit| fetch.wait.min(limit).max(MIN_WAIT));
        }
        fetch
    }

    fn is_failing(&self) -> bool {
        self.failing_since.is_some()
    }

    /// Has the next request come at `at`, and without an index; later if requests came too often.
    pub fn read_again(&mut self, at: Instant) {
        self.index = None;
        self.paced = None;
        self.not_before = Some(at);
        if let (true, Some(since)) = (self.tokens < 0.0, self.refilled) {
            self.pause_until(since + Duration::from_secs_f64(-self.tokens / REFILL));
        }
    }

    /// Takes the answer to the last fetch.
    pub fn answer(&mut self, answer: Answer, now: Instant, rng: &mut impl Rng) -> Outcome {
        let none = Fetch::read(self.server, self.settings.wait);
        let (fetch, sent) = self.fetch.take().unwrap_or((none, now));
        let verifies = fetch.from == ReadFrom::Leader;
        self.verifies &= !verifies;
        let is_trial = self.copies.are_avoided() && fetch.from == ReadFrom::Anywhere;
        match answer {
            Answer::Good { index, digest, bytes, is_copy } => {
                let outage = self.end_outage(fetch, sent, now);
                let changed = self.good(fetch, sent, (index.max(1), digest, bytes, is_copy), now);
                if let Some(turn) = self.copies.judge(fetch, (is_copy, changed), now, rng) {
                    self.turn = Some(turn);
                }
                self.verifies |= is_copy && self.copies.is_due(now + MIN_WAIT);
                self.pace_sweep(sent, now, rng);
                self.pace_polls(now, rng);
                self.server = fetch.server;
                if self.server == 0 {
                    self.return_at = None;
                } else if self.return_at.is_none() {
                    self.plan_return(now, rng);
                }
                Outcome::Publish { changed, outage }
            }
            _ if fetch.probe => {
                self.plan_return(now, rng);
                self.pay(USEFUL, now);
                Outcome::Again
            }
            // The index is a server's, and still good.
            Answer::Outdated | Answer::Refused if is_trial && fetch.index.is_some() => {
                self.copies.avoid(now, rng);
                self.pay(USEFUL, now);
                Outcome::Again
            }
            Answer::Outdated => {
                (self.verifies, self.copies.are_doubted) = (true, true);
                self.pay(USEFUL, now);
                Outcome::Again
            }
            Answer::Refused if verifies && self.settings.may_lag && !self.copies.are_doubted => {
                self.copies.verify_later(now, rng);
                self.pay(USEFUL, now);
                Outcome::Again
            }
            // Without an index nothing keeps a client from connecting, so this is a failure.
            Answer::Reconnected if fetch.index.is_some() => {
                self.index = None;
                self.pay(USEFUL, now);
                Outcome::Again
            }
            Answer::Refused if fetch.index.is_some() => self.refused(now, rng),
            Answer::Reconnected | Answer::Failed | Answer::Refused => self.failed(now, rng),
        }
    }

    fn end_outage(&mut self, fetch: Fetch, sent: Instant, now: Instant) -> Option<Duration> {
        self.tried = 0;
        let until = match (fetch.index, self.settings.sweep) {
            (Some(_), _) => sent,
            (None, Some(_)) => now,
            (None, None) => return None,
        };
        (self.failures, self.rounds, self.blocks_at) = (0, 0, None);
        self.copies.answered();
        self.failing_since.take().map(|since| until.saturating_duration_since(since))
    }

    fn good(
        &mut self,
        fetch: Fetch,
        sent: Instant,
        (index, digest, bytes, is_copy): (u64, u128, u64, bool),
        now: Instant,
    ) -> bool {
        let early = fetch.index.is_none() || now - sent + EARLY < fetch.wait;
        let changed = self.digest.replace(digest) != Some(digest);
        self.index = match fetch.index {
            _ if self.settings.sweep.is_some() => None,
            // The index of a view has a history of its own, and may be below the servers'. Where
            // that only leads back to this one at once, it is of no use.
            Some(asked) if is_copy && !early && self.bounced == Some(asked) => Some(asked),
            Some(_) if is_copy && !early => Some(index),
            // The state was restored or lost: this index belongs to another history.
            Some(asked) if index < asked => None,
            // A restored snapshot wakes with old data and the same index; blocking on it again
            // would hide the new state.
            Some(asked) if index == asked && early => None,
            _ => Some(index),
        };
        if is_copy && early && !changed && fetch.index.is_some_and(|asked| asked < index) {
            self.bounced = Some(index);
        }
        let mib = bytes as f64 / f64::from(1 << 20);
        if changed {
            self.pay(USEFUL + mib * PER_MIB, now);
        } else if early {
            self.pay(USELESS + mib * PER_MIB, now);
        }
        changed
    }

    /// Takes tokens; the next request waits until none is owed.
    fn pay(&mut self, tokens: f64, now: Instant) {
        let since = self.refilled.replace(now).map_or(Duration::ZERO, |last| now - last);
        self.tokens = (self.tokens + since.as_secs_f64() * REFILL).min(BUCKET) - tokens;
        if self.tokens < 0.0 {
            self.pause_until(now + Duration::from_secs_f64(-self.tokens / REFILL));
        }
    }

    fn plan_return(&mut self, now: Instant, rng: &mut impl Rng) {
        // Jitter: all watches have left the first server at the same time.
        self.return_at = Some(now + jitter(RETURN, 0.2, rng));
    }

    fn pace_sweep(&mut self, sent: Instant, now: Instant, rng: &mut impl Rng) {
        if let Some(interval) = self.settings.sweep {
            // Jitter spreads watches that started together.
            let jitter = interval.mul_f64(rng.random_range(0.0..=0.2));
            self.paced = Some((sent + interval - jitter).max(now));
        }
    }

    /// While queries that block are refused and reads are not: reads often enough until one that
    /// blocks is tried again.
    fn pace_polls(&mut self, now: Instant, rng: &mut impl Rng) {
        let Some(at) = self.blocks_at.filter(|at| *at > now) else { return };
        let poll = jitter(self.settings.poll.mul_f64(0.9), 0.1, rng);
        if at <= now + poll {
            self.pause_until(at);
        } else {
            self.index = None;
            self.pause_until(now + poll);
        }
    }
}

/// `time`, up to `share` of it sooner or later.
fn jitter(time: Duration, share: f64, rng: &mut impl Rng) -> Duration {
    time.mul_f64(rng.random_range(1.0 - share..=1.0 + share))
}

mod copies;
mod failures;
mod terms;
#[cfg(test)]
mod tests;
