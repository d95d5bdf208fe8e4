//! Answers before the first request: in a child of the master, before there are workers.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::asking::{Failure, Reply, ask};
use super::engine::{Counter, spawn};
use super::names::query_name;
use super::plan::{Followed, Subject};
use super::publisher::Publisher;
use super::{Level, Mode, Plan, Report, Sink, Target};
use crate::consul::client::Client;
use crate::consul::query::View;
use crate::consul::watch::Fetch;
use crate::resolve::SystemResolver;
use crate::stop::Stop;

/// More threads are no faster: Consul is busy, or we are.
const THREADS: usize = 64;

/// What the threads share.
struct Round {
    plan: Arc<Plan>,
    sink: Arc<dyn Sink>,
    watches: Vec<usize>,
    stop: Arc<Stop>,
    /// Raised by the last thread.
    done: Stop,
    threads: usize,
    taken: Counter,
    answered: Counter,
    ended: Counter,
    /// Service and error of the first watch that no server answered.
    failure: Mutex<Option<String>>,
}

/// Asks once for each watch of `targets_needed` and publishes what comes within `timeout`.
///
/// All at the same time, over at most [`Plan::connections`] threads; each watch tries its servers
/// in order. Every thread has ended on return, so that a process may fork then (only a name lookup
/// that hangs in the system's resolver is left behind). See [`Engine`](super::Engine) for the
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
    let needed: BTreeSet<usize> = targets_needed.iter().copied().collect();
    let wanted =
        |watch: &usize| plan.watches[*watch].targets.iter().any(|(t, _)| needed.contains(t));
    let watches: Vec<usize> = (0..plan.watches.len()).filter(wanted).collect();
    if watches.is_empty() {
        return 0;
    }
    let (stop, done) = match (Stop::new(), Stop::new()) {
        (Ok(stop), Ok(done)) => (Arc::new(stop), done),
        (Err(error), _) | (_, Err(error)) => {
            sink.log(Level::Error, format!("cannot ask for first answers ({error})"));
            return 0;
        }
    };
    // Before a reload the engine of the running configuration has its share.
    let foreign = sink.foreign_connections();
    let round = Arc::new(Round {
        threads: watches.len().min(plan.connections.saturating_sub(foreign).clamp(1, THREADS)),
        plan: Arc::clone(plan),
        sink: Arc::clone(sink),
        watches,
        stop,
        done,
        taken: Counter::default(),
        answered: Counter::default(),
        ended: Counter::default(),
        failure: Mutex::default(),
    });
    run(&round, deadline);
    let (answered, all) = (round.answered.get(), round.watches.len());
    if answered < all {
        let failure = round.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        let why = failure.unwrap_or_else(|| format!("no answer within {timeout:?}"));
        let missing = all - answered;
        let line = format!("no first answer for {missing} of {all} services ({why}), going on");
        sink.log(Level::Error, line);
    }
    answered
}

fn run(round: &Arc<Round>, deadline: Instant) {
    let mut threads = Vec::new();
    for _ in 0..round.threads {
        let shared = Arc::clone(round);
        let body = move || {
            let work = AssertUnwindSafe(|| shared.work());
            if catch_unwind(work).is_err() {
                shared.fail("panic".to_owned());
            }
            if shared.ended.is_last_of(shared.threads) {
                shared.done.raise();
            }
        };
        match spawn(body) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                round.fail(format!("cannot start a thread: {error}"));
                // Those that run take all the work; this one counts as ended.
                if round.ended.is_last_of(round.threads) {
                    round.done.raise();
                }
            }
        }
    }
    round.done.sleep(deadline.saturating_duration_since(Instant::now()));
    round.stop.raise();
    for thread in threads {
        let _ = thread.join();
    }
}

impl Round {
    fn work(&self) {
        let mut client = Client::new(Arc::clone(&self.stop));
        let resolver = SystemResolver::new(Arc::clone(&self.stop));
        while let Some(&number) = self.watches.get(self.taken.next()) {
            if self.stop.is_raised() {
                return;
            }
            self.ask_once(number, &mut client, &resolver);
        }
    }

    fn ask_once(&self, number: usize, client: &mut Client, resolver: &SystemResolver) {
        let watch = &self.plan.watches[number];
        let subject: &Subject = &watch.subject;
        let followed = |(n, target): &(usize, Arc<Target>)| Followed::new(*n, Arc::clone(target));
        let targets: Vec<Followed> = watch.targets.iter().map(followed).collect();
        for server in 0..subject.endpoint.servers.len() {
            let fetch = Fetch::read(server, subject.timing.wait);
            match ask(client, subject, fetch, View::Full) {
                Ok(Some(Reply { index, instances, .. })) => {
                    let answer = (index, &instances, true);
                    let sink = &*self.sink;
                    // The engine that starts next warns of skipped instances. It also has the time
                    // to see removals confirmed, if another target of the watch has peers.
                    let mut publisher = Publisher::quiet();
                    let prepared = publisher.prepare(subject, &targets, answer, resolver, sink);
                    publisher.publish(&prepared, sink);
                    for &(target, _) in &watch.targets {
                        let (mode, pending) = (Mode::Blocking, prepared.pending(target));
                        sink.report(target, &Report::Good { index, server, mode, pending });
                    }
                    self.answered.next();
                    return;
                }
                Ok(None) => return,
                Err(Failure::Reconnected) => {}
                Err(Failure::Refused(_, error)) => {
                    let server = &subject.endpoint.servers[server];
                    let name = query_name(&subject.query);
                    self.fail(format!("{name}: {error}, server \"{server}\""));
                }
            }
        }
    }

    fn fail(&self, error: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

#[cfg(test)]
mod tests;
