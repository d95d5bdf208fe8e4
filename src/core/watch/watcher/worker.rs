//! A thread with its connection: takes tasks from the scheduler and runs them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::{MAX_WAIT, Refused};
use super::scheduler::Scheduler;
use super::scopes::OverviewId;
use super::shared::Shared;
use super::task::Task;
use crate::consul::client::{self, Client, ConnectionFailure};
use crate::consul::endpoint::WatchedQuery;
use crate::consul::fetch::{Failure, try_new_connection};
use crate::consul::server::Server;
use crate::model::Level;
use crate::resolve::SystemResolver;
use crate::watch::overview_watch::{OverviewOutcome, OverviewWatch};
use crate::watch::subscription::{Context, QueryLoop, Subscription};

/// Pause before a concurrent read is repeated that failed, and one that panicked.
const RETRY: Duration = Duration::from_millis(250);
const AFTER_PANIC: Duration = Duration::from_secs(5);

/// Counts a thread for as long as it runs.
struct Present<'a>(&'a Shared, usize);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        let mut scheduler = self.0.scheduler.lock();
        scheduler.threads.count -= 1;
        scheduler.threads.release_number(self.1);
        self.0.note_connections(&scheduler);
        self.0.ended.notify_all();
    }
}

/// Runs tasks until the watcher stops or has too many threads.
pub(super) fn work(shared: &Arc<Shared>) {
    let number = shared.scheduler.lock().threads.take_number();
    let _present = Present(shared, number);
    let stop = &shared.stop;
    let mut client = Client::numbered(Arc::clone(stop), number);
    let resolver = SystemResolver::new(Arc::clone(stop));
    try_connection(shared, &mut client);
    let (mut last, mut done) = (None, None);
    while let Some(task) = next(shared, last, done.take()) {
        let mut context = Context {
            client: &mut client,
            resolver: &resolver,
            sink: &*shared.sink,
            outages: &shared.outages,
        };
        let goes_on = match task {
            Task::Query(id, query) => {
                last = Some(id);
                done = run_query(shared, &mut context, query).map(|query| (id, query));
                done.is_some()
            }
            Task::ConcurrentRead(id, subscription) => {
                read_concurrently(shared, &mut context, id, &subscription)
            }
            Task::Overview(id, watch) => run_overview(shared, &mut context, id, watch),
        };
        if !goes_on {
            return;
        }
        if let Some(failure) = client.take_connection_failure() {
            note_failure(shared, failure);
        }
    }
}

/// While more connections are wanted than Consul has accepted: finds out whether it answers over one
/// more.
fn try_connection(shared: &Shared, client: &mut Client) {
    let (watched, is_counted) = {
        let mut scheduler = shared.scheduler.lock();
        let (watched, to_try) = (query_to_try(&scheduler), scheduler.threads.to_try);
        scheduler.threads.to_try = to_try.saturating_sub(1);
        if watched.is_none() {
            scheduler.threads.starting -= 1;
            if to_try > 0 {
                scheduler.budget.on_failure(Instant::now());
            }
        }
        (watched, to_try > 0)
    };
    let Some(watched) = watched else { return };
    let tried = catch_unwind(AssertUnwindSafe(|| try_new_connection(client, &watched, MAX_WAIT)));
    let tried = tried.unwrap_or(Err(client::Error::Stopped));
    let (failure, now) = (client.take_connection_failure(), Instant::now());
    let mut scheduler = shared.scheduler.lock();
    scheduler.threads.starting -= 1;
    let budget = &mut scheduler.budget;
    match (tried, failure) {
        _ if !is_counted => {}
        (_, Some((server, ConnectionFailure::Refused(error)))) => {
            budget.on_trial_refused(server.to_string(), Refused::Limit(error), now);
        }
        (Err(client::Error::Silent(_)), _) => {
            let server = watched.endpoint.servers[0].to_string();
            budget.on_trial_refused(server, Refused::Silent, now);
        }
        (Ok(()) | Err(client::Error::Status { .. }), _) => budget.on_answer(),
        (Err(_), _) => budget.on_failure(now),
    }
    shared.call_supervisor(&mut scheduler);
}

/// Which query to send over a new connection: of all, one after the other.
fn query_to_try(scheduler: &Scheduler) -> Option<Arc<WatchedQuery>> {
    let which = scheduler.threads.count % scheduler.entries.len().max(1);
    let entry = scheduler.entries.values().nth(which).filter(|_| scheduler.is_growing());
    entry.map(|entry| Arc::clone(&entry.subscription.watched))
}

/// A connection was refused, or a query cut off.
fn note_failure(shared: &Shared, (server, failure): (Server, ConnectionFailure)) {
    let (mut scheduler, now) = (shared.scheduler.lock(), Instant::now());
    let (number, blocking, server) =
        (scheduler.threads.count, scheduler.blocking + 1, server.to_string());
    let budget = &mut scheduler.budget;
    match failure {
        ConnectionFailure::Refused(error) => {
            budget.on_refusal(number, server, Refused::Limit(error), now);
        }
        ConnectionFailure::CutOff => budget.on_cut_off(blocking, now),
        ConnectionFailure::Unreachable => return budget.on_unreachable(server, now),
    }
    shared.call_supervisor(&mut scheduler);
}

/// Gives a query back, and waits for the next task; `None` if the thread is to end. No other thread
/// takes the query in between: its index is good for this thread's connection.
fn next(shared: &Shared, last: Option<u64>, done: Option<(u64, Box<QueryLoop>)>) -> Option<Task> {
    let mut scheduler = shared.scheduler.lock();
    if let Some((id, query)) = done {
        scheduler.put(id, query, Instant::now());
        shared.note_connections(&scheduler);
    }
    loop {
        if scheduler.is_stopping || scheduler.threads.count > scheduler.most_threads() {
            // It may have been the one that waits for the next due time.
            shared.work.notify_one();
            return None;
        }
        let now = Instant::now();
        if let Some(task) = scheduler.take(now, last) {
            shared.note_connections(&scheduler);
            delegate(shared, &mut scheduler, &task, now);
            return Some(task);
        }
        scheduler.threads.idle += 1;
        // One idle thread is enough to wait for the next due time.
        let timed = scheduler.threads.timed;
        match scheduler.next_due(now).filter(|due| timed.is_none_or(|timed| *due < timed)) {
            Some(due) => {
                scheduler.threads.timed = Some(due);
                shared.work.wait_until(&mut scheduler, due);
                scheduler.threads.timed = scheduler.threads.timed.filter(|timed| *timed != due);
            }
            None => shared.work.wait(&mut scheduler),
        }
        scheduler.threads.idle -= 1;
    }
}

/// Before a thread is busy, perhaps for long: another one has to take the remaining tasks, or to wait
/// for the next due time.
fn delegate(shared: &Shared, scheduler: &mut Scheduler, task: &Task, now: Instant) {
    let is_due = scheduler.count_due(now, 1) > 0;
    if scheduler.threads.idle > 0 {
        let timed = scheduler.threads.timed;
        let is_timed = |due: Instant| timed.is_some_and(|timed| timed <= due);
        if is_due || scheduler.next_due(now).is_some_and(|due| !is_timed(due)) {
            shared.work.notify_one();
        }
    } else if scheduler.threads.count < scheduler.most_threads() && (is_due || task.blocks()) {
        shared.call_supervisor(scheduler);
    }
}

fn run_query(
    shared: &Shared,
    context: &mut Context<'_>,
    mut query: Box<QueryLoop>,
) -> Option<Box<QueryLoop>> {
    let ran = catch_unwind(AssertUnwindSafe(|| query.run(context)));
    ran.unwrap_or_else(|_| {
        query.restart();
        log_panic(shared, context, &query.name());
        Some(())
    })?;
    if shared.outages.take_news() {
        shared.call_supervisor(&mut shared.scheduler.lock());
    }
    Some(query)
}

fn read_concurrently(
    shared: &Shared,
    context: &mut Context<'_>,
    id: u64,
    subscription: &Arc<Subscription>,
) -> bool {
    let read = catch_unwind(AssertUnwindSafe(|| subscription.read_concurrently(context)));
    let now = Instant::now();
    let again = match read {
        Ok(Ok(again)) => again,
        Ok(Err(Failure::Reconnected | Failure::Failed(..))) => Some(now + RETRY),
        Err(_) => {
            log_panic(shared, context, &subscription.name);
            Some(now + AFTER_PANIC)
        }
    };
    let read = (id, &*subscription.watched);
    shared.scheduler.lock().end_concurrent_read(read, again, now);
    true
}

fn run_overview(
    shared: &Shared,
    context: &mut Context<'_>,
    id: OverviewId,
    mut watch: Box<OverviewWatch>,
) -> bool {
    let was_blocking = watch.will_block();
    let ran = catch_unwind(AssertUnwindSafe(|| watch.run(context)));
    let outcome = match ran {
        Ok(None) => return false,
        Ok(Some(outcome)) => outcome,
        Err(_) => {
            watch.restart();
            log_panic(shared, context, "overview watch of all services");
            OverviewOutcome::Failed
        }
    };
    let mut scheduler = shared.scheduler.lock();
    scheduler.blocking -= usize::from(was_blocking);
    scheduler.put_overview(id, watch, outcome, Instant::now());
    shared.note_connections(&scheduler);
    true
}

fn log_panic(shared: &Shared, context: &mut Context<'_>, name: &str) {
    context.client.close();
    // The sink itself may be what panics.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        shared.sink.log(Level::Error, format!("{name}: its watch panicked and restarts"));
    }));
}
