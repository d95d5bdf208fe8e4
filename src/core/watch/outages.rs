//! Services that fail together: one log line for all of them, and a rate limit for their reads.
//!
//! An agent that loses its servers, or all of its streams, fails every query at the same moment.

mod grouped_line;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::Rng;

use self::grouped_line::GroupedLine;
use super::sink::Sink;
use crate::consul::blocking::CopyChange;
use crate::model::Level;

/// How long the line about a recovery waits for the other services of the same outage.
const GATHER_END: Duration = Duration::from_secs(5);
/// Reads after failures that a server gets per second, and as a burst.
const RATE: u32 = 25;
const BURST: u32 = 5;
/// Longest time that a read is delayed for this.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// The outages of all servers of a watcher, by URL.
#[derive(Default)]
pub(super) struct Outages {
    state: Mutex<State>,
    has_news: AtomicBool,
}

#[derive(Default)]
struct State {
    /// When the next read of a server may be sent, apart from the burst.
    reads: HashMap<String, Instant>,
    /// By server and error.
    outages: HashMap<(String, String), Outage>,
    /// By server.
    copy_changes: HashMap<(String, CopyChange), GroupedLine<()>>,
}

/// Services that fail with the same error.
#[derive(Default)]
struct Outage {
    failing: usize,
    begun: GroupedLine<Begun>,
    ended: GroupedLine<(Recovery, bool)>,
}

/// What the line says about the first service that fails.
struct Begun {
    retry: String,
    has_data: bool,
}

/// What the line says about the first service that recovers.
pub(super) struct Recovery {
    /// See [`Outcome::Publish`](crate::consul::blocking::Outcome::Publish).
    pub(super) outage: Duration,
    /// A server answers instead of a stream.
    pub(super) without_streaming: bool,
    /// URL of the server that answers.
    pub(super) server: String,
}

/// A query that fails, until this is dropped.
pub(super) struct Failing {
    outages: Arc<Outages>,
    /// Server and error.
    key: (String, String),
    /// The line names this one.
    is_first: bool,
    /// It had an answer before.
    had_data: bool,
}

impl Outages {
    /// The query called `name` begins to fail with `error`; `retry` says what it does next, and
    /// `has_data` whether it ever had an answer.
    pub(super) fn begin(
        self: &Arc<Self>,
        server: &str,
        (name, error): (String, &str),
        (retry, has_data): (String, bool),
        now: Instant,
    ) -> Failing {
        let key = (server.to_owned(), error.to_owned());
        let mut state = self.state.lock();
        let outage = state.outages.entry(key.clone()).or_default();
        let is_first = outage.failing == 0;
        outage.failing += 1;
        outage.begun.add(name, Begun { retry, has_data }, now);
        self.has_news.store(true, Ordering::Relaxed);
        Failing { outages: Arc::clone(self), key, is_first, had_data: has_data }
    }

    /// The query called `name` avoids copies of the state from now on, or asks them again.
    pub(super) fn note_copy_change(
        &self,
        server: &str,
        name: String,
        change: CopyChange,
        now: Instant,
    ) {
        let mut state = self.state.lock();
        state.copy_changes.entry((server.to_owned(), change)).or_default().add(name, (), now);
        self.has_news.store(true, Ordering::Relaxed);
    }

    /// When a read that could be sent at `at` may be sent. Later reads take this into account.
    pub(super) fn reserve_read(&self, server: &str, at: Instant, rng: &mut impl Rng) -> Instant {
        let mut state = self.state.lock();
        let (each, saved) = (Duration::from_secs(1) / RATE, Duration::from_secs(1) * BURST / RATE);
        let next = state.reads.get(server).map_or(at, |free| at.max(*free));
        let mine = next.checked_sub(saved).map_or(at, |earliest| earliest.max(at));
        if mine > at + MAX_DELAY {
            return at + MAX_DELAY.mul_f64(rng.random_range(0.0..=1.0));
        }
        state.reads.insert(server.to_owned(), next + each);
        mine
    }

    /// Whether a query has begun or ceased to fail since the last call.
    pub(super) fn take_news(&self) -> bool {
        self.has_news.swap(false, Ordering::Relaxed)
    }

    /// Writes the lines that are due by `now`; gives the time of the next one.
    pub(super) fn write(&self, sink: &dyn Sink, now: Instant) -> Option<Instant> {
        let State { outages, copy_changes, .. } = &mut *self.state.lock();
        for ((url, error), outage) in &mut *outages {
            outage.bring_forward(now);
            if let Some((who, Begun { retry, has_data })) = outage.begun.take(now) {
                let first = if has_data { "" } else { ", no answer so far" };
                let line = format!("{who}: {error}, {retry}, server \"{url}\"{first}");
                sink.log(Level::Error, line);
            }
            if let Some((who, (recovery, had_data))) = outage.ended.take(now) {
                let Recovery { outage, without_streaming, server } = recovery;
                let how = if without_streaming { " without streaming" } else { "" };
                let after = format!("after {outage:.1?}, server \"{server}\"");
                if had_data {
                    sink.log(Level::Notice, format!("{who}: recovered{how} {after}"));
                } else {
                    sink.log(Level::Notice, format!("{who}: first answer{how} {after}"));
                }
            }
        }
        outages.retain(|_, outage| outage.failing > 0 || outage.due().is_some());
        for ((url, change), line) in &mut *copy_changes {
            match (change, line.take(now)) {
                (CopyChange::Avoided, Some((who, ()))) => {
                    let line = format!(
                        "{who}: streamed answers are outdated, blocking without streaming for \
                         some minutes, server \"{url}\""
                    );
                    sink.log(Level::Warn, line);
                }
                (CopyChange::Resumed, Some((who, ()))) => {
                    let line = format!("{who}: blocking with streaming again, server \"{url}\"");
                    sink.log(Level::Info, line);
                }
                (_, None) => {}
            }
        }
        let next = outages.values().filter_map(Outage::due);
        next.chain(copy_changes.values().filter_map(GroupedLine::due)).min()
    }
}

impl Outage {
    /// Once no query fails any more, the lines wait for no other. The failure is logged before the
    /// recovery.
    fn bring_forward(&mut self, now: Instant) {
        let is_ending = self.ended.due().is_some_and(|due| self.failing == 0 || due <= now);
        if is_ending {
            self.begun.bring_forward(now);
            self.ended.bring_forward(now);
        }
    }

    /// When the next line is to be written.
    fn due(&self) -> Option<Instant> {
        self.begun.due().into_iter().chain(self.ended.due()).min()
    }
}

impl Failing {
    /// Whether the failure was logged with the name of this query.
    pub(super) fn is_logged(&self) -> bool {
        let mut is_logged = false;
        self.with(|outage| is_logged = self.is_first && outage.begun.is_written());
        is_logged
    }

    /// The query, called `name`, is answered again.
    pub(super) fn end(self, name: String, recovery: Recovery, now: Instant) {
        let recovered = (recovery, self.had_data);
        self.with(|outage| outage.ended.add_by(name, recovered, now + GATHER_END));
        self.outages.has_news.store(true, Ordering::Relaxed);
    }

    fn with(&self, f: impl FnOnce(&mut Outage)) {
        self.outages.state.lock().outages.get_mut(&self.key).map(f);
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.with(|outage| outage.failing = outage.failing.saturating_sub(1));
        self.outages.has_news.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
