//! Answers before the first request: in a child of the master, before there are workers.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::log_labels::query_name;
use super::plan::{Plan, WatchPlan};
use super::publisher::Publisher;
use super::sink::Sink;
use super::subscription::report_good;
use crate::consul::client::Client;
use crate::consul::fetch::{Answer, Failure, fetch};
use crate::consul::query::{Fetch, View};
use crate::model::{Level, Mode};
use crate::resolve::SystemResolver;
use crate::stop::Stop;
use crate::threads;

/// More threads are no faster: Consul is busy, or we are.
const THREADS: usize = 64;

/// What the threads share.
struct Round<'a> {
    sink: &'a dyn Sink,
    watches: Vec<&'a WatchPlan>,
    stop: Arc<Stop>,
    /// How many watches were taken.
    taken: AtomicUsize,
    progress: Mutex<Progress>,
    /// The last thread has ended.
    done: Condvar,
}

#[derive(Default)]
struct Progress {
    running: usize,
    answered: usize,
    /// Service and error of the first watch that no server answered.
    failure: Option<String>,
}

/// Asks once for each watch of `targets_needed` and publishes what comes within `timeout`.
///
/// All at the same time, over at most [`Plan::connections`] threads; each watch tries its servers
/// in order. Every thread has ended on return, so that a process may fork then (only a name lookup
/// that hangs in the system's resolver is left behind). See [`Watcher`](super::Watcher) for the
/// signals to block. Never panics; what fails is logged in one line at error level.
///
/// Gives the number of watches answered.
pub fn first_answers(
    plan: &Arc<Plan>,
    sink: &Arc<dyn Sink>,
    targets_needed: &[usize],
    timeout: Duration,
) -> usize {
    let deadline = Instant::now() + timeout;
    let needed: HashSet<usize> = targets_needed.iter().copied().collect();
    let is_needed = |watch: &&WatchPlan| watch.targets.iter().any(|(t, _)| needed.contains(t));
    let watches: Vec<&WatchPlan> = plan.watches.iter().filter(is_needed).collect();
    if watches.is_empty() {
        return 0;
    }
    let stop = match Stop::new() {
        Ok(stop) => Arc::new(stop),
        Err(error) => {
            sink.log(Level::Error, format!("initial fetch failed ({error})"));
            return 0;
        }
    };
    // Before a reload the engine of the running configuration has its share.
    let most = plan.connections.saturating_sub(sink.earlier_connections()).clamp(1, THREADS);
    let (threads, all) = (watches.len().min(most), watches.len());
    let progress = Progress { running: threads, ..Progress::default() };
    let round = Round {
        sink: &**sink,
        watches,
        stop,
        taken: AtomicUsize::new(0),
        progress: Mutex::new(progress),
        done: Condvar::new(),
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            if let Err(error) = threads::builder().spawn_scoped(scope, || round.work()) {
                // Those that run take all the work.
                round.end(Some(format!("cannot start a thread: {error}")));
            }
        }
        let mut progress = round.progress.lock();
        let is_running = |progress: &mut Progress| progress.running > 0;
        round.done.wait_while_until(&mut progress, is_running, deadline);
        round.stop.raise();
    });
    let Progress { answered, failure, .. } = round.progress.into_inner();
    if answered < all {
        let why = failure.unwrap_or_else(|| format!("no answer within {timeout:?}"));
        let missing = all - answered;
        let line = format!(
            "initial fetch failed for {missing} of {all} queries ({why}), starting without"
        );
        sink.log(Level::Error, line);
    }
    answered
}

impl Round<'_> {
    /// A thread.
    fn work(&self) {
        let asked = catch_unwind(AssertUnwindSafe(|| self.ask_all()));
        self.end(asked.is_err().then(|| "panic".to_owned()));
    }

    fn end(&self, failure: Option<String>) {
        let mut progress = self.progress.lock();
        progress.running -= 1;
        progress.failure = progress.failure.take().or(failure);
        self.done.notify_one();
    }

    fn ask_all(&self) {
        let mut client = Client::new(Arc::clone(&self.stop));
        let resolver = SystemResolver::new(Arc::clone(&self.stop));
        while let Some(watch) = self.watches.get(self.taken.fetch_add(1, Ordering::Relaxed)) {
            let failure = self.ask(watch, &mut client, &resolver).err();
            if self.stop.is_raised() {
                return;
            }
            let mut progress = self.progress.lock();
            progress.answered += usize::from(failure.is_none());
            progress.failure = progress.failure.take().or(failure);
        }
    }

    /// Asks the servers in their order until one answers.
    fn ask(
        &self,
        watch: &WatchPlan,
        client: &mut Client,
        resolver: &SystemResolver,
    ) -> Result<(), String> {
        let watched = &watch.watched;
        let mut failure = String::new();
        for (server, name) in watched.endpoint.servers.iter().enumerate() {
            match fetch(client, watched, Fetch::read(server, Duration::ZERO), View::Full) {
                Ok(Some(answer)) => {
                    self.publish(watch, server, &answer, resolver);
                    return Ok(());
                }
                // Without an index nothing keeps a client from connecting.
                Ok(None) | Err(Failure::Reconnected) => break,
                Err(Failure::Failed(..)) if self.stop.is_raised() => break,
                Err(Failure::Failed(_, error)) => {
                    failure = format!("{}: {error}, server \"{name}\"", query_name(&watched.query));
                }
            }
        }
        Err(failure)
    }

    /// Puts the answer of a server in force for the targets of a watch.
    fn publish(
        &self,
        watch: &WatchPlan,
        server: usize,
        answer: &Answer,
        resolver: &SystemResolver,
    ) {
        let targets = watch.followed();
        // The engine that follows them next warns of skipped instances, and if there is no room.
        let mut publisher = Publisher::quiet();
        let found = (answer.index, &answer.instances, true);
        let prepared = publisher.prepare(&watch.watched, &targets, found, resolver, self.sink);
        publisher.publish(&prepared, self.sink);
        report_good((answer.index, server, Mode::Blocking), prepared.targets(), self.sink);
    }
}

#[cfg(test)]
mod tests;
