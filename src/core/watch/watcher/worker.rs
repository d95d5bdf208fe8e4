//! A thread of the engine, with its connection.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::budget::{PATIENCE, Refused};
use super::scheduler::{Scheduler, Task};
use crate::consul::client::{self, Client, Trouble};
use crate::consul::server::Server;
use crate::model::Level;
use crate::resolve::SystemResolver;
use crate::watch::fetch::{Failure, read_anew};
use crate::watch::log_labels::query_name;
use crate::watch::overview_watch::{OverviewOutcome, OverviewWatch};
use crate::watch::plan::WatchedQuery;
use crate::watch::subscription::{Common, Job, Tools};

/// Pause before a read that failed is repeated, and one that panicked.
const RETRY: Duration = Duration::from_millis(250);
const AFTER_PANIC: Duration = Duration::from_secs(5);

/// Counts a thread for as long as it runs.
struct Present<'a>(&'a Shared, usize);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        let mut scheduler = self.0.scheduler.lock();
        scheduler.threads.count -= 1;
        scheduler.threads.give_number(self.1);
        self.0.note(&scheduler);
        self.0.ended.notify_all();
    }
}

/// Takes and does work until the engine stops or has too many threads.
pub(super) fn work(shared: &Arc<Shared>) {
    let number = shared.scheduler.lock().threads.take_number();
    let _present = Present(shared, number);
    let stop = &shared.stop;
    let mut client = Client::numbered(Arc::clone(stop), number);
    let resolver = SystemResolver::new(Arc::clone(stop));
    try_connection(shared, &mut client);
    let (mut last, mut done) = (None, None);
    while let Some(task) = next(shared, last, done.take()) {
        let mut tools = Tools {
            client: &mut client,
            resolver: &resolver,
            sink: &*shared.sink,
            outages: &shared.outages,
        };
        let goes_on = match task {
            Task::Watch(id, job) => {
                last = Some(id);
                done = watch(shared, &mut tools, job).map(|job| (id, job));
                done.is_some()
            }
            Task::Beside(id, common) => beside(shared, &mut tools, id, &common),
            Task::Overview(place, watch) => overview(shared, &mut tools, place, watch),
        };
        if !goes_on {
            return;
        }
        if let Some(trouble) = client.take_trouble() {
            note_trouble(shared, trouble);
        }
    }
}

/// While more connections are wanted than are known to be taken: finds out whether Consul answers
/// over one more.
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
    let tried = catch_unwind(AssertUnwindSafe(|| read_anew(client, &watched, PATIENCE)));
    let tried = tried.unwrap_or(Err(client::Error::Stopped));
    let (trouble, now) = (client.take_trouble(), Instant::now());
    let mut scheduler = shared.scheduler.lock();
    scheduler.threads.starting -= 1;
    let budget = &mut scheduler.budget;
    match (tried, trouble) {
        _ if !is_counted => {}
        (_, Some((server, Trouble::Refused(error)))) => {
            budget.on_trial_refused(server.to_string(), Refused::Limit(error), now);
        }
        (Err(client::Error::Silent(_)), _) => {
            let server = watched.endpoint.servers[0].to_string();
            budget.on_trial_refused(server, Refused::Silent, now);
        }
        (Ok(()) | Err(client::Error::Status { .. }), _) => budget.on_answer(),
        (Err(_), _) => budget.on_failure(now),
    }
    shared.call(&mut scheduler);
}

/// Of the services, one after the other: whom to ask over a new connection.
fn query_to_try(scheduler: &Scheduler) -> Option<Arc<WatchedQuery>> {
    let which = scheduler.threads.count % scheduler.entries.len().max(1);
    let entry = scheduler.entries.values().nth(which).filter(|_| scheduler.is_growing());
    entry.map(|entry| Arc::clone(&entry.common.watched))
}

/// A connection was refused, or a query cut off.
fn note_trouble(shared: &Shared, (server, trouble): (Server, Trouble)) {
    let (mut scheduler, now) = (shared.scheduler.lock(), Instant::now());
    let (number, blocking, server) =
        (scheduler.threads.count, scheduler.blocking + 1, server.to_string());
    let budget = &mut scheduler.budget;
    match trouble {
        Trouble::Refused(error) => {
            budget.on_refusal(number, server, Refused::Limit(error), now);
        }
        Trouble::Lost => budget.on_loss(blocking, now),
        Trouble::Gone => return budget.on_gone(server, now),
    }
    shared.call(&mut scheduler);
}

/// Takes a watch back, and waits for the next task; `None` if the thread is to end. No other thread
/// comes between: this one has the connection that the index of the watch is good for.
fn next(shared: &Shared, last: Option<u64>, done: Option<(u64, Box<Job>)>) -> Option<Task> {
    let mut scheduler = shared.scheduler.lock();
    if let Some((id, job)) = done {
        scheduler.put(id, job, Instant::now());
        shared.note(&scheduler);
    }
    loop {
        if scheduler.has_ended || scheduler.threads.count > scheduler.most_threads() {
            // It may have been the one to wait for the time.
            shared.work.notify_one();
            return None;
        }
        let now = Instant::now();
        if let Some(task) = scheduler.take(now, last) {
            shared.note(&scheduler);
            hand_on(shared, &mut scheduler, &task, now);
            return Some(task);
        }
        scheduler.threads.idle += 1;
        // One of the idle threads is enough to wait for the time.
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

/// Before a thread is busy, perhaps for long: somebody else has to take what is left, or to wait for
/// what comes next.
fn hand_on(shared: &Shared, scheduler: &mut Scheduler, task: &Task, now: Instant) {
    let is_due = scheduler.count_due(now, 1) > 0;
    if scheduler.threads.idle > 0 {
        let timed = scheduler.threads.timed;
        let is_timed = |due: Instant| timed.is_some_and(|timed| timed <= due);
        if is_due || scheduler.next_due(now).is_some_and(|due| !is_timed(due)) {
            shared.work.notify_one();
        }
    } else if scheduler.threads.count < scheduler.most_threads() && (is_due || task.blocks()) {
        shared.call(scheduler);
    }
}

fn watch(shared: &Shared, tools: &mut Tools<'_>, mut job: Box<Job>) -> Option<Box<Job>> {
    let ran = catch_unwind(AssertUnwindSafe(|| job.run(tools)));
    ran.unwrap_or_else(|_| {
        job.restart();
        panicked(shared, tools, &query_name(&job.watched_query().query));
        Some(())
    })?;
    if shared.outages.take_news() {
        shared.call(&mut shared.scheduler.lock());
    }
    Some(job)
}

fn beside(shared: &Shared, tools: &mut Tools<'_>, id: u64, common: &Arc<Common>) -> bool {
    let read = catch_unwind(AssertUnwindSafe(|| common.read_beside(tools)));
    let now = Instant::now();
    let again = match read {
        Ok(Ok(again)) => again,
        Ok(Err(Failure::Reconnected | Failure::Refused(..))) => Some(now + RETRY),
        Err(_) => {
            panicked(shared, tools, &query_name(&common.watched.query));
            Some(now + AFTER_PANIC)
        }
    };
    shared.scheduler.lock().put_beside(id, again, now);
    true
}

fn overview(
    shared: &Shared,
    tools: &mut Tools<'_>,
    place: (usize, usize),
    mut watch: Box<OverviewWatch>,
) -> bool {
    let was_blocking = watch.will_block();
    let ran = catch_unwind(AssertUnwindSafe(|| watch.run(tools)));
    let outcome = match ran {
        Ok(None) => return false,
        Ok(Some(outcome)) => outcome,
        Err(_) => {
            watch.restart();
            panicked(shared, tools, "overview watch of all services");
            OverviewOutcome::Failed
        }
    };
    let mut scheduler = shared.scheduler.lock();
    scheduler.blocking -= usize::from(was_blocking);
    scheduler.put_overview(place, watch, outcome, Instant::now());
    shared.note(&scheduler);
    true
}

fn panicked(shared: &Shared, tools: &mut Tools<'_>, name: &str) {
    tools.client.close();
    // The sink itself may be what panics.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        shared.sink.log(Level::Error, format!("{name}: panic in its watch, which restarts"));
    }));
}
