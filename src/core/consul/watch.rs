//! The rules of following a service by blocking queries, without any I/O: time, randomness and
//! answers come from outside.
//!
//! Sources: <https://developer.hashicorp.com/consul/api-docs/features/blocking> and what agents
//! were seen to do. A too high index hides changes, so it is forgotten whenever it may be wrong.

use std::time::{Duration, Instant};

use rand::Rng;

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
/// Pause after a failure at least, whatever the configuration says.
const MIN_RETRY: Duration = Duration::from_millis(10);

/// What a watch is told once.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Number of servers, at least 1.
    pub servers: usize,
    /// Length of a blocking query, 1 s to 10 min.
    pub wait: Duration,
    /// Pause after the first failed round over all servers, at least 10 ms.
    pub retry_min: Duration,
    /// Longest pause.
    pub retry_max: Duration,
    /// Ask again at this interval instead of blocking.
    pub sweep: Option<Duration>,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask, and tell [`Watch::answer`].
    Fetch(Fetch),
    /// Do nothing for this long, then ask again.
    Sleep(Duration),
}

/// A request to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Which server.
    pub server: usize,
    /// Block on this index, at least 1; `None` answers at once.
    pub index: Option<u64>,
    /// Longest time to block.
    pub wait: Duration,
    /// It only asks whether the first server is back: the connection to the server in use stays,
    /// and there is little patience.
    pub probe: bool,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A believable answer.
    Good {
        /// Its index.
        index: u64,
        /// Digest of what it says, the same for the same instances in any order.
        digest: u128,
        /// Length of the body in bytes.
        bytes: u64,
    },
    /// None, or an unbelievable one.
    Failed,
    /// Nothing was asked: the connection that gave the index is gone.
    Reconnected,
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Publish it. `outage` is the time since the first failure, if there was one.
    Publish {
        /// Whether it says something else than the last one.
        changed: bool,
        /// Length of the outage that it ends.
        outage: Option<Duration>,
    },
    /// Keep what is published.
    Failed {
        /// Failures since the last good answer, at least 1.
        failures: u32,
        /// Time to the next request.
        retry_in: Duration,
        /// Every server has failed once more: the pause is a step of the backoff.
        round: bool,
    },
    /// Go on: nothing was learned.
    Again,
}

/// State of one watch.
#[derive(Debug)]
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
            sweep: settings.sweep,
        };
        Watch {
            settings,
            server: 0,
            index: None,
            digest: None,
            fetch: None,
            not_before: None,
            paced: None,
            wait_limit: MAX_WAIT,
            return_at: None,
            failures: 0,
            failing_since: None,
            tried: 0,
            rounds: 0,
            tokens: BUCKET,
            refilled: None,
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
            Some(_) => self.index = None,
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
        self.index.is_some()
    }

    /// Digest of the last good answer.
    pub fn digest(&self) -> Option<u128> {
        self.digest
    }

    /// Asks nothing before `at`; the index stays.
    pub fn pause_until(&mut self, at: Instant) {
        self.wait_until(at);
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
        let wait = self.settings.wait.min(self.wait_limit);
        let mut fetch = Fetch { server: self.server, index: self.index, wait, probe: false };
        if let Some(at) = self.return_at.filter(|_| self.failing_since.is_none()) {
            if at <= now {
                fetch = Fetch { server: 0, index: None, wait, probe: true };
            } else {
                fetch.wait = wait.min(at - now).max(MIN_WAIT);
            }
        }
        self.fetch = Some((fetch, now));
        Step::Fetch(fetch)
    }

    /// Has the next request come at `at`, and without an index; later if requests came too often.
    pub fn read_again(&mut self, at: Instant) {
        self.index = None;
        self.paced = None;
        self.not_before = Some(at);
        if let (true, Some(since)) = (self.tokens < 0.0, self.refilled) {
            self.wait_until(since + Duration::from_secs_f64(-self.tokens / REFILL));
        }
    }

    /// Takes the answer to the last fetch.
    pub fn answer(&mut self, answer: Answer, now: Instant, rng: &mut impl Rng) -> Outcome {
        let none =
            Fetch { server: self.server, index: None, wait: self.settings.wait, probe: false };
        let (fetch, sent) = self.fetch.take().unwrap_or((none, now));
        match answer {
            Answer::Good { index, digest, bytes } => {
                let outage = self.failing_since.take().map(|since| now - since);
                let changed = self.good(fetch, sent, (index.max(1), digest, bytes), now);
                self.pace_sweep(sent, now, rng);
                self.server = fetch.server;
                if self.server == 0 {
                    self.return_at = None;
                } else if self.return_at.is_none() {
                    self.plan_return(now, rng);
                }
                Outcome::Publish { changed, outage }
            }
            Answer::Reconnected | Answer::Failed if fetch.probe => {
                self.plan_return(now, rng);
                self.pay(USEFUL, now);
                Outcome::Again
            }
            // Without an index nothing keeps a client from connecting, so this is a failure.
            Answer::Reconnected if fetch.index.is_some() => {
                self.index = None;
                self.pay(USEFUL, now);
                Outcome::Again
            }
            Answer::Reconnected | Answer::Failed => self.failed(now, rng),
        }
    }

    fn good(
        &mut self,
        fetch: Fetch,
        sent: Instant,
        (index, digest, bytes): (u64, u128, u64),
        now: Instant,
    ) -> bool {
        self.failures = 0;
        self.tried = 0;
        self.rounds = 0;
        let early = fetch.index.is_none() || now - sent + EARLY < fetch.wait;
        let changed = self.digest.replace(digest) != Some(digest);
        self.index = match fetch.index {
            _ if self.settings.sweep.is_some() => None,
            // The state was restored or lost: this index belongs to another history.
            Some(asked) if index < asked => None,
            // A restored snapshot wakes with old data and the same index; blocking on it again
            // would hide the new state.
            Some(asked) if index == asked && early => None,
            _ => Some(index),
        };
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
            self.wait_until(now + Duration::from_secs_f64(-self.tokens / REFILL));
        }
    }

    fn wait_until(&mut self, at: Instant) {
        self.not_before = Some(self.not_before.map_or(at, |other| other.max(at)));
    }

    fn plan_return(&mut self, now: Instant, rng: &mut impl Rng) {
        // Jitter: all watches have left the first server at the same time.
        self.return_at = Some(now + RETURN.mul_f64(rng.random_range(0.8..=1.2)));
    }

    fn pace_sweep(&mut self, sent: Instant, now: Instant, rng: &mut impl Rng) {
        if let Some(interval) = self.settings.sweep {
            // Jitter spreads watches that started together.
            let jitter = interval.mul_f64(rng.random_range(0.0..=0.2));
            self.paced = Some((sent + interval - jitter).max(now));
        }
    }

    fn failed(&mut self, now: Instant, rng: &mut impl Rng) -> Outcome {
        self.index = None;
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
            self.wait_until(now + pause);
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

#[cfg(test)]
mod tests;
