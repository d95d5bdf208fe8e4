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
use super::{Level, Sink};
use crate::consul::watch::Turn;

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
    servers: Mutex<HashMap<String, Server>>,
    has_news: AtomicBool,
}

#[derive(Default)]
struct Server {
    /// When the next read has its turn, if none is saved up.
    turn: Option<Instant>,
    /// By error.
    outages: HashMap<String, Outage>,
    turns: HashMap<Turn, Lines<()>>,
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
    server: String,
    error: String,
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
        let mut servers = self.servers.lock();
        let outages = &mut servers.entry(server.to_owned()).or_default().outages;
        let outage = outages.entry(error.to_owned()).or_default();
        let is_first = outage.failing == 0;
        outage.failing += 1;
        outage.begun.add(name, Begun { retry, has_data }, now);
        self.has_news.store(true, Ordering::Relaxed);
        let (server, error) = (server.to_owned(), error.to_owned());
        Failing { outages: Arc::clone(self), server, error, is_first }
    }

    /// A watch called `name` asks another way from now on.
    pub(super) fn note_turn(&self, server: &str, name: String, turn: Turn, now: Instant) {
        let mut servers = self.servers.lock();
        let turns = &mut servers.entry(server.to_owned()).or_default().turns;
        turns.entry(turn).or_default().add(name, (), now);
        self.has_news.store(true, Ordering::Relaxed);
    }

    /// When a read that could come at `at` is to come.
    pub(super) fn turn(&self, server: &str, at: Instant, rng: &mut impl Rng) -> Instant {
        let mut servers = self.servers.lock();
        let turn = &mut servers.entry(server.to_owned()).or_default().turn;
        let (each, saved) = (Duration::from_secs(1) / RATE, Duration::from_secs(1) * BURST / RATE);
        let next = turn.map_or(at, |turn| turn.max(at));
        let mine = next.checked_sub(saved).map_or(at, |earliest| earliest.max(at));
        if mine > at + MAX_TURN {
            return at + MAX_TURN.mul_f64(rng.random_range(0.0..=1.0));
        }
        *turn = Some(next + each);
        mine
    }

    /// Whether something has begun or ended since the last time.
    pub(super) fn take_news(&self) -> bool {
        self.has_news.swap(false, Ordering::Relaxed)
    }

    /// Writes the lines that are due by `now`; gives the time of the next.
    pub(super) fn write(&self, sink: &dyn Sink, now: Instant) -> Option<Instant> {
        let (mut begun, mut ended, mut turns) = (Vec::new(), Vec::new(), Vec::new());
        let mut next = None::<Instant>;
        for (url, server) in &mut *self.servers.lock() {
            for (error, outage) in &mut server.outages {
                outage.hasten(now);
                begun.extend(outage.begun.take(now).map(|line| (line, error.clone(), url.clone())));
                ended.extend(outage.ended.take(now));
                next = next.into_iter().chain(outage.begun.due()).chain(outage.ended.due()).min();
            }
            server.outages.retain(|_, outage| !outage.is_over());
            for (turn, lines) in &mut server.turns {
                turns.extend(lines.take(now).map(|(who, ())| (who, *turn, url.clone())));
                next = next.into_iter().chain(lines.due()).min();
            }
        }
        for ((who, Begun { retry, has_data }), error, url) in begun {
            let first = if has_data { "" } else { ", it has never answered" };
            let line = format!("{who}: {error}, {retry}, server \"{url}\"{first}");
            sink.log(Level::Error, line);
        }
        for (who, Ended { outage, without_streaming, server }) in ended {
            let how = if without_streaming { " without streaming" } else { "" };
            let line = format!("{who}: answers again after {outage:.1?}{how}, server \"{server}\"");
            sink.log(Level::Notice, line);
        }
        for (who, turn, url) in turns {
            match turn {
                Turn::CopiesLag => {
                    let line = format!(
                        "{who}: streamed answers are outdated, blocking without streaming for \
                         some minutes, server \"{url}\""
                    );
                    sink.log(Level::Warn, line);
                }
                Turn::CopiesAreBack => {
                    let line = format!("{who}: blocking with streaming again, server \"{url}\"");
                    sink.log(Level::Info, line);
                }
            }
        }
        next
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

    fn is_over(&self) -> bool {
        self.failing == 0 && self.begun.due().is_none() && self.ended.due().is_none()
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
        let mut servers = self.outages.servers.lock();
        let server = servers.get_mut(&self.server);
        if let Some(outage) = server.and_then(|server| server.outages.get_mut(&self.error)) {
            f(outage);
        }
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
