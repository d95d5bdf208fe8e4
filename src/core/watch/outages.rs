//! What the watches of an engine have in common where a server fails them: they say so in one line,
//! and read again at a bounded rate.
//!
//! An agent that loses its servers, or all of its streams, fails every watch at the same moment.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::Rng;

use self::lines::Lines;
use super::Sink;
use crate::consul::blocking::Turn;
use crate::model::Level;

/// How long services that are answered again wait for the others of the same outage.
const GATHER_END: Duration = Duration::from_secs(5);
/// Reads after failures that a server gets a second, and at once.
const RATE: u32 = 25;
const BURST: u32 = 5;
/// Longest time that a read waits for its turn.
const MAX_TURN: Duration = Duration::from_secs(5);

/// All servers of an engine, by URL.
#[derive(Default)]
pub(super) struct Outages {
    state: Mutex<State>,
    has_news: AtomicBool,
}

#[derive(Default)]
struct State {
    /// When the next read of a server has its turn, if none is saved up.
    reads: HashMap<String, Instant>,
    /// By server and error.
    outages: HashMap<(String, String), Outage>,
    /// By server.
    turns: HashMap<(String, Turn), Lines<()>>,
}

/// Services that fail with the same error.
#[derive(Default)]
struct Outage {
    failing: usize,
    begun: Lines<Begun>,
    ended: Lines<Ended>,
}

/// What a line says of the first service that begins to fail.
struct Begun {
    retry: String,
    has_data: bool,
}

/// What a line says of the first service that is answered again.
pub(super) struct Ended {
    /// Length of its outage.
    pub(super) outage: Duration,
    /// It is answered by a server in place of a stream.
    pub(super) without_streaming: bool,
    /// URL of the server that answers.
    pub(super) server: String,
}

/// A watch that fails. Once this is dropped, it does no more.
pub(super) struct Failing {
    outages: Arc<Outages>,
    /// Server and error.
    key: (String, String),
    /// It is the one that the line names.
    is_first: bool,
}

impl Outages {
    /// A watch called `name` begins to fail with `error`; `retry` says what it does next.
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
        Failing { outages: Arc::clone(self), key, is_first }
    }

    /// A watch called `name` asks another way from now on.
    pub(super) fn note_turn(&self, server: &str, name: String, turn: Turn, now: Instant) {
        let mut state = self.state.lock();
        state.turns.entry((server.to_owned(), turn)).or_default().add(name, (), now);
        self.has_news.store(true, Ordering::Relaxed);
    }

    /// When a read that could come at `at` is to come.
    pub(super) fn turn(&self, server: &str, at: Instant, rng: &mut impl Rng) -> Instant {
        let mut state = self.state.lock();
        let (each, saved) = (Duration::from_secs(1) / RATE, Duration::from_secs(1) * BURST / RATE);
        let next = state.reads.get(server).map_or(at, |turn| at.max(*turn));
        let mine = next.checked_sub(saved).map_or(at, |earliest| earliest.max(at));
        if mine > at + MAX_TURN {
            return at + MAX_TURN.mul_f64(rng.random_range(0.0..=1.0));
        }
        state.reads.insert(server.to_owned(), next + each);
        mine
    }

    /// Whether something has begun or ended since the last time.
    pub(super) fn take_news(&self) -> bool {
        self.has_news.swap(false, Ordering::Relaxed)
    }

    /// Writes the lines that are due by `now`; gives the time of the next.
    pub(super) fn write(&self, sink: &dyn Sink, now: Instant) -> Option<Instant> {
        let State { outages, turns, .. } = &mut *self.state.lock();
        for ((url, error), outage) in &mut *outages {
            outage.hasten(now);
            if let Some((who, Begun { retry, has_data })) = outage.begun.take(now) {
                let first = if has_data { "" } else { ", it has never answered" };
                let line = format!("{who}: {error}, {retry}, server \"{url}\"{first}");
                sink.log(Level::Error, line);
            }
            if let Some((who, ended)) = outage.ended.take(now) {
                let Ended { outage, without_streaming, server } = ended;
                let how = if without_streaming { " without streaming" } else { "" };
                let line =
                    format!("{who}: answers again after {outage:.1?}{how}, server \"{server}\"");
                sink.log(Level::Notice, line);
            }
        }
        outages.retain(|_, outage| outage.failing > 0 || outage.due().is_some());
        for ((url, turn), lines) in &mut *turns {
            match (turn, lines.take(now)) {
                (Turn::CopiesLag, Some((who, ()))) => {
                    let line = format!(
                        "{who}: streamed answers are outdated, blocking without streaming for \
                         some minutes, server \"{url}\""
                    );
                    sink.log(Level::Warn, line);
                }
                (Turn::CopiesAreBack, Some((who, ()))) => {
                    let line = format!("{who}: blocking with streaming again, server \"{url}\"");
                    sink.log(Level::Info, line);
                }
                (_, None) => {}
            }
        }
        let next = outages.values().filter_map(Outage::due);
        next.chain(turns.values().filter_map(Lines::due)).min()
    }
}

impl Outage {
    /// Once nobody fails any more, there is nobody to wait for. The beginning is told before the
    /// end.
    fn hasten(&mut self, now: Instant) {
        let is_ending = self.ended.due().is_some_and(|due| self.failing == 0 || due <= now);
        if is_ending {
            self.begun.hasten(now);
            self.ended.hasten(now);
        }
    }

    /// When the next line is to be written.
    fn due(&self) -> Option<Instant> {
        self.begun.due().into_iter().chain(self.ended.due()).min()
    }
}

impl Failing {
    /// Whether what follows is worth a line: the first is written, and names this watch.
    pub(super) fn is_told(&self) -> bool {
        let mut told = false;
        self.with(|outage| told = self.is_first && outage.begun.is_written());
        told
    }

    /// The watch, called `name`, is answered again.
    pub(super) fn end(self, name: String, ended: Ended, now: Instant) {
        self.with(|outage| outage.ended.add_by(name, ended, now + GATHER_END));
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

mod lines;
#[cfg(test)]
mod tests;
