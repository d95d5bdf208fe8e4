//! The initial fetch: first answers before there are workers, in a child of the master.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

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

/// More threads would not be faster: Consul or this machine is busy.
const THREADS: usize = 64;

/// What the threads share.
struct InitialFetch<'a> {
    sink: &'a dyn Sink,
    watches: Vec<&'a WatchPlan>,
    stop: Arc<Stop>,
    /// How many queries were taken.
    taken: AtomicUsize,
    progress: Mutex<Progress>,
    /// The last thread has ended.
    done: Condvar,
}

#[derive(Default)]
struct Progress {
    running: usize,
    answered: usize,
    /// Service and error of the first query that no server answered.
    failure: Option<String>,
}

/// Sends each query of `targets_needed` once and publishes the answers that arrive within `timeout`.
///
/// The queries run in parallel, in at most [`Plan::connections`] threads; each tries its servers in
/// order. Every thread has ended on return, so the process may fork (only a name lookup that hangs in
/// the system's resolver may still run). See [`Watcher`](super::Watcher) for the signals to block.
/// Never panics; failures are logged in one line at error level.
///
/// Returns the number of queries answered.
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
    // Before a reload the watcher of the running configuration has connections too.
    let most = plan.connections.saturating_sub(sink.earlier_connections()).clamp(1, THREADS);
    let (threads, all) = (watches.len().min(most), watches.len());
    let progress = Progress { running: threads, ..Progress::default() };
    let shared = InitialFetch {
        sink: &**sink,
        watches,
        stop,
        taken: AtomicUsize::new(0),
        progress: Mutex::new(progress),
        done: Condvar::new(),
    };
    shared.run(threads, deadline);
    let Progress { answered, failure, .. } = shared.progress.into_inner();
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

impl InitialFetch<'_> {
    /// Runs the threads until all queries were sent, or the deadline has passed.
    fn run(&self, threads: usize, deadline: Instant) {
        thread::scope(|scope| {
            for _ in 0..threads {
                if let Err(error) = threads::builder().spawn_scoped(scope, || self.work()) {
                    // The other threads run all queries.
                    self.end(Some(format!("cannot start a thread: {error}")));
                }
            }
            let mut progress = self.progress.lock();
            let is_running = |progress: &mut Progress| progress.running > 0;
            self.done.wait_while_until(&mut progress, is_running, deadline);
            self.stop.raise();
        });
    }

    /// Body of a thread.
    fn work(&self) {
        let fetched = catch_unwind(AssertUnwindSafe(|| self.fetch_all()));
        self.end(fetched.is_err().then(|| "panic".to_owned()));
    }

    fn end(&self, failure: Option<String>) {
        let mut progress = self.progress.lock();
        progress.running -= 1;
        progress.failure = progress.failure.take().or(failure);
        self.done.notify_one();
    }

    fn fetch_all(&self) {
        let mut client = Client::new(Arc::clone(&self.stop));
        let resolver = SystemResolver::new(Arc::clone(&self.stop));
        while let Some(watch) = self.watches.get(self.taken.fetch_add(1, Ordering::Relaxed)) {
            let failure = self.fetch_one(watch, &mut client, &resolver).err();
            if self.stop.is_raised() {
                return;
            }
            let mut progress = self.progress.lock();
            progress.answered += usize::from(failure.is_none());
            progress.failure = progress.failure.take().or(failure);
        }
    }

    /// Asks the servers in order until one answers.
    fn fetch_one(
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
                // Without an index a client always opens a connection.
                Ok(None) | Err(Failure::Reconnected) => break,
                Err(Failure::Failed(..)) if self.stop.is_raised() => break,
                Err(Failure::Failed(_, error)) => {
                    failure = format!("{}: {error}, server \"{name}\"", watch.name);
                }
            }
        }
        Err(failure)
    }

    /// Publishes the answer of a server to the targets of a query.
    fn publish(
        &self,
        watch: &WatchPlan,
        server: usize,
        answer: &Answer,
        resolver: &SystemResolver,
    ) {
        let targets = watch.followed();
        // The watcher that follows logs skipped instances and refused sets.
        let mut publisher = Publisher::quiet();
        let found = (answer.index, &answer.instances, true);
        let prepared = publisher.prepare(&watch.watched, &targets, found, resolver, self.sink);
        publisher.publish(&prepared, self.sink);
        report_good((answer.index, server, Mode::Blocking), prepared.targets(), self.sink);
    }
}

#[cfg(test)]
mod tests;
