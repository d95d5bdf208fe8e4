//! The rules of blocking queries, without any I/O: time, randomness and results come from outside.
//!
//! [`BlockingQuery::next`] says which request to send or how long to wait, and
//! [`BlockingQuery::on_result`] what the result of a request means.
//!
//! Sources: <https://developer.hashicorp.com/consul/api-docs/features/blocking> and the observed
//! behaviour of agents. An index that is too high hides changes, so it is dropped whenever it may
//! be wrong.
//!
//! | file | holds |
//! |---|---|
//! | `terms` | inputs and outputs: settings, steps, results, outcomes |
//! | `pacing` | token bucket, backoff and jitter |
//! | `failures` | failures in a row |
//! | `copies` | streamed views and agents' caches: they never overrule a server, and are verified |
//! | this one | the state of one query: index, server in use |

mod terms;
mod pacing;
mod failures;
mod copies;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use rand::Rng;

pub use self::terms::{CopyChange, FetchResult, Outcome, Settings, Step, is_outdated};

use self::copies::Copies;
use self::failures::Failures;
use self::pacing::{TokenBucket, jitter};
use self::terms::{MAX_WAIT, MIN_WAIT};
use super::query::{Fetch, ReadFrom};

/// Price in tokens of an answer that changed something, of a failure and of a closed connection.
const USEFUL: f64 = 1.0;
/// Price of an answer that came early and changed nothing: at most two of these a second.
const USELESS: f64 = 10.0;
/// Price of a MiB of body.
const PER_MIB: f64 = 1.0;
/// A blocking query that ends this much before its `wait` has still timed out: clocks differ.
const EARLY: Duration = Duration::from_millis(100);
/// Time between two probes of the first server while another one is in use, before jitter.
const RETURN: Duration = Duration::from_secs(30);
/// Length of a blocking query after a failure: it has to show that such queries are answered.
const TRIAL: Duration = MIN_WAIT;

/// The state of one query that is repeated for as long as its service is watched.
#[derive(Debug, Default)]
pub struct BlockingQuery {
    settings: Settings,
    server: usize,
    index: Option<u64>,
    digest: Option<u128>,
    /// The request under way and when it was sent.
    fetch: Option<(Fetch, Instant)>,
    not_before: Option<Instant>,
    /// Of a query that polls: when it reads next.
    next_poll: Option<Instant>,
    wait_limit: Duration,
    /// When the first server is probed next; only while another one is in use.
    return_at: Option<Instant>,
    failures: Failures,
    bucket: TokenBucket,
    copies: Copies,
    /// The next request is a read from the leader, whatever the index.
    verifies: bool,
    /// No request blocks before this time: one was rejected.
    blocks_at: Option<Instant>,
    /// The server's index that a view's lower index led to, without a change.
    bounced: Option<u64>,
    copy_change: Option<CopyChange>,
}

impl BlockingQuery {
    /// A query that knows nothing: its first step is a fetch without index.
    pub fn new(settings: Settings) -> Self {
        let settings = settings.within_bounds();
        BlockingQuery {
            settings,
            copies: Copies::new(settings.can_avoid_copies),
            wait_limit: MAX_WAIT,
            ..BlockingQuery::default()
        }
    }

    /// Limits `wait` of the next requests, for what can change without an answer of Consul.
    pub fn limit_wait(&mut self, limit: Option<Duration>) {
        self.wait_limit = limit.unwrap_or(MAX_WAIT).max(MIN_WAIT);
    }

    /// Reads at this interval from now on, or blocks (`None`). A pause that has begun stays.
    pub fn set_poll_interval(&mut self, interval: Option<Duration>) {
        self.settings.poll_interval = interval;
        match interval {
            Some(_) => (self.index, self.blocks_at) = (None, None),
            None => self.next_poll = None,
        }
    }

    /// Moves the next poll to `at`, if it would come later.
    pub fn poll_by(&mut self, at: Instant) {
        self.next_poll = self.next_poll.map(|next| next.min(at));
    }

    /// When the next request is due; `None`: now.
    pub fn due(&self) -> Option<Instant> {
        self.not_before.max(self.next_poll)
    }

    /// Whether the next request blocks.
    pub fn will_block(&self) -> bool {
        self.index.is_some() && !self.verifies
    }

    /// Whether it only reads now and then because blocking queries are rejected.
    pub fn polls(&self) -> bool {
        self.settings.poll_interval.is_none() && self.blocks_at.is_some()
    }

    /// Whether a server is asked where Consul would answer from a copy of the state.
    pub fn avoids_copies(&self) -> bool {
        self.copies.are_avoided()
    }

    /// Takes the latest change of whether copies are asked.
    pub fn take_copy_change(&mut self) -> Option<CopyChange> {
        self.copy_change.take()
    }

    /// Asks this server first, if there is one of that number.
    pub fn begin_with(&mut self, server: usize) {
        self.server = server.min(self.settings.servers - 1);
    }

    /// Which server is asked next.
    pub fn server(&self) -> usize {
        self.server
    }

    /// Digest of the last good answer.
    pub fn digest(&self) -> Option<u128> {
        self.digest
    }

    /// Sends no request before `at`; the index stays.
    pub fn pause_until(&mut self, at: Instant) {
        self.not_before = self.not_before.max(Some(at));
    }

    /// What to do next. A fetch must be followed by [`on_result`](Self::on_result).
    pub fn next(&mut self, now: Instant) -> Step {
        if let Some(at) = self.due() {
            if at > now {
                return Step::Sleep(at - now);
            }
        }
        self.not_before = None;
        self.next_poll = None;
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
        self.failures.are_going_on()
    }

    /// Sends the next request at `at`, without an index; later if tokens are owed.
    pub fn read_again(&mut self, at: Instant) {
        self.index = None;
        self.next_poll = None;
        self.not_before = Some(at);
        if let Some(at) = self.bucket.debt_until() {
            self.pause_until(at);
        }
    }

    /// Takes the result of the last fetch.
    pub fn on_result(&mut self, result: FetchResult, now: Instant, rng: &mut impl Rng) -> Outcome {
        let none = Fetch::read(self.server, self.settings.wait);
        let (fetch, sent) = self.fetch.take().unwrap_or((none, now));
        let verifies = fetch.from == ReadFrom::Leader;
        self.verifies &= !verifies;
        let is_trial = self.copies.are_avoided() && fetch.from == ReadFrom::Anywhere;
        match result {
            FetchResult::Good { index, digest, bytes, is_copy } => {
                let answer = (index.max(1), digest, bytes, is_copy);
                self.on_good((fetch, sent), answer, now, rng)
            }
            _ if fetch.probe => {
                self.schedule_probe(now, rng);
                self.take_tokens(USEFUL, now);
                Outcome::Again
            }
            // The index came from a server and stays valid.
            FetchResult::Outdated | FetchResult::Rejected if is_trial && fetch.index.is_some() => {
                self.copies.avoid(now, rng);
                self.take_tokens(USEFUL, now);
                Outcome::Again
            }
            FetchResult::Outdated => {
                (self.verifies, self.copies.was_outdated) = (true, true);
                self.take_tokens(USEFUL, now);
                Outcome::Again
            }
            FetchResult::Rejected
                if verifies && self.settings.may_lag && !self.copies.was_outdated =>
            {
                self.copies.verify_later(now, rng);
                self.take_tokens(USEFUL, now);
                Outcome::Again
            }
            // Without an index the client could have connected, so the next arm counts a failure.
            FetchResult::Reconnected if fetch.index.is_some() => {
                self.index = None;
                self.take_tokens(USEFUL, now);
                Outcome::Again
            }
            FetchResult::Rejected if fetch.index.is_some() => self.on_rejected(now, rng),
            FetchResult::Reconnected | FetchResult::Failed | FetchResult::Rejected => {
                self.on_failed(now, rng)
            }
        }
    }

    fn on_good(
        &mut self,
        (fetch, sent): (Fetch, Instant),
        answer: (u64, u128, u64, bool),
        now: Instant,
        rng: &mut impl Rng,
    ) -> Outcome {
        let (.., is_copy) = answer;
        let outage = self.end_outage(fetch, sent, now);
        let changed = self.take_answer(fetch, sent, answer, now);
        let copy_change = self.copies.on_good(fetch, (is_copy, changed), now, rng);
        self.copy_change = copy_change.or(self.copy_change);
        self.verifies |= is_copy && self.copies.is_due(now + MIN_WAIT);
        self.schedule_poll(sent, now, rng);
        self.schedule_fallback_read(now, rng);
        self.server = fetch.server;
        if self.server == 0 {
            self.return_at = None;
        } else if self.return_at.is_none() {
            self.schedule_probe(now, rng);
        }
        Outcome::Publish { changed, outage }
    }

    /// A request was answered; gives the length of the outage that this ends.
    fn end_outage(&mut self, fetch: Fetch, sent: Instant, now: Instant) -> Option<Duration> {
        let until = match (fetch.index, self.settings.poll_interval) {
            (Some(_), _) => sent,
            (None, Some(_)) => now,
            (None, None) => {
                self.failures.note_good(now);
                return None;
            }
        };
        self.blocks_at = None;
        self.copies.on_blocking_answer();
        self.failures.end(until, now)
    }

    /// Notes an answer (index, digest, bytes, whether a copy gave it), and decides which index to
    /// block on; `true` if the digest differs from the last one.
    fn take_answer(
        &mut self,
        fetch: Fetch,
        sent: Instant,
        (index, digest, bytes, is_copy): (u64, u128, u64, bool),
        now: Instant,
    ) -> bool {
        let early = fetch.index.is_none() || now - sent + EARLY < fetch.wait;
        let changed = self.digest.replace(digest) != Some(digest);
        self.index = match fetch.index {
            _ if self.settings.poll_interval.is_some() => None,
            // The indices of a view are separate, and may be below the servers'. One that only leads
            // back to the present index at once is not used.
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
            self.take_tokens(USEFUL + mib * PER_MIB, now);
        } else if early {
            self.take_tokens(USELESS + mib * PER_MIB, now);
        }
        changed
    }

    /// Takes tokens; the next request waits until none is owed.
    fn take_tokens(&mut self, tokens: f64, now: Instant) {
        self.bucket.take(tokens, now);
        if let Some(at) = self.bucket.debt_until() {
            self.pause_until(at);
        }
    }

    /// A blocking query was rejected: reads at once, and blocks after a pause.
    fn on_rejected(&mut self, now: Instant, rng: &mut impl Rng) -> Outcome {
        self.count_failure(now);
        let pause = if self.copies.on_rejected(now, rng) {
            self.failures.skip_pause();
            Duration::ZERO
        } else {
            self.failures.next_pause(&self.settings, rng)
        };
        self.blocks_at = Some(now + pause);
        Outcome::Failed { failures: self.failures.count, retry_in: pause, round: true }
    }

    /// A request had no answer, or a read was rejected: asks the next server, with a pause after
    /// each round over all of them.
    fn on_failed(&mut self, now: Instant, rng: &mut impl Rng) -> Outcome {
        self.count_failure(now);
        self.copies.on_failed();
        self.server = (self.server + 1) % self.settings.servers;
        self.failures.tried += 1;
        let round = self.failures.tried >= self.settings.servers;
        if round {
            self.failures.tried = 0;
            let pause = self.failures.next_pause(&self.settings, rng);
            self.pause_until(now + pause);
        }
        let retry_in = self.not_before.map_or(Duration::ZERO, |at| at - now);
        Outcome::Failed { failures: self.failures.count, retry_in, round }
    }

    fn count_failure(&mut self, now: Instant) {
        self.index = None;
        self.failures.add(now);
        self.take_tokens(USEFUL, now);
    }

    fn schedule_probe(&mut self, now: Instant, rng: &mut impl Rng) {
        // Jitter: all queries have left the first server at the same time.
        self.return_at = Some(now + jitter(RETURN, 0.2, rng));
    }

    fn schedule_poll(&mut self, sent: Instant, now: Instant, rng: &mut impl Rng) {
        if let Some(interval) = self.settings.poll_interval {
            // Jitter spreads queries that started together.
            let jitter = interval.mul_f64(rng.random_range(0.0..=0.2));
            self.next_poll = Some((sent + interval - jitter).max(now));
        }
    }

    /// While blocking queries are rejected and reads are not: reads often enough until the next
    /// blocking query is tried.
    fn schedule_fallback_read(&mut self, now: Instant, rng: &mut impl Rng) {
        let Some(at) = self.blocks_at.filter(|at| *at > now) else { return };
        let poll = jitter(self.settings.fallback_interval.mul_f64(0.9), 0.1, rng);
        if at <= now + poll {
            self.pause_until(at);
        } else {
            self.index = None;
            self.pause_until(now + poll);
        }
    }
}
