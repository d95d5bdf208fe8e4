//! The thread that starts the others, shares the connections out and writes log lines about all of
//! them. It has no connection itself.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::{Finding, Refused, START};
use super::scheduler::Scheduler;
use super::shared::Shared;
use super::worker;
use crate::model::{Level, Limit};
use crate::threads;
use crate::watch::limits::Limits;

/// How often it runs at least.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two reads of the system's limits.
const LIMITS_TICKS: u64 = 30;
/// Shortest time between two log lines about the plan.
const NOTICE: Duration = Duration::from_secs(5);
/// Shortest time between two runs.
const SHORTEST: Duration = Duration::from_millis(1);
/// Pause after a thread could not be started.
const NO_THREAD: Duration = Duration::from_secs(1);
/// Longer than a log line ever waits.
const HOUR: Duration = Duration::from_secs(3600);

/// What it remembers between two runs.
struct State {
    ticks: u64,
    tick_at: Instant,
    limits: Limits,
    logged: Option<LoggedPlan>,
    /// It has logged that no thread can be started.
    is_short: bool,
    /// The sink knows that this watcher has started.
    has_started: bool,
}

impl State {
    /// Begins a tick; some of them read the system's limits.
    fn tick(&mut self, now: Instant, worker_connections: Option<usize>, threads: usize) {
        self.tick_at = now + TICK;
        if let Some(kept) = worker_connections.filter(|_| self.ticks % LIMITS_TICKS == 0) {
            self.limits = Limits::of_process(threads, kept);
        }
        self.ticks += 1;
    }
}

/// Runs until the watcher stops.
pub(super) fn supervise(shared: &Arc<Shared>) {
    let (tick_at, limits) = (Instant::now(), Limits::default());
    let mut state =
        State { ticks: 0, tick_at, limits, logged: None, is_short: false, has_started: false };
    loop {
        // The sink may panic.
        let round = AssertUnwindSafe(|| round(shared, &mut state));
        let until = catch_unwind(round).unwrap_or_else(|_| Instant::now() + TICK);
        let mut scheduler = shared.scheduler.lock();
        let is_waiting = |scheduler: &mut Scheduler| !scheduler.is_stopping && !scheduler.is_called;
        let left = until.saturating_duration_since(Instant::now());
        shared.called.wait_while_for(&mut scheduler, is_waiting, left);
        scheduler.is_called = false;
        if scheduler.is_stopping {
            break;
        }
    }
    // Lines that wait for other services.
    let write = || shared.outages.write(&*shared.sink, Instant::now() + HOUR);
    let _ = catch_unwind(AssertUnwindSafe(write));
}

/// Runs once; gives the time of the next run.
fn round(shared: &Arc<Shared>, state: &mut State) -> Instant {
    let now = Instant::now();
    let is_tick = state.tick_at <= now;
    state.has_started = state.has_started || shared.sink.watcher_starts();
    let earlier = shared.sink.earlier_connections();
    let mut scheduler = shared.scheduler.lock();
    if is_tick {
        state.tick(now, shared.worker_connections, scheduler.threads.count);
    }
    let finding = scheduler.budget.check(now);
    let is_full =
        scheduler.plan.all_block && scheduler.entries.len() > scheduler.plan.blocking_queries;
    let has_grown = scheduler.is_growing() && scheduler.budget.allowed() > scheduler.plan.budget;
    if is_tick || is_full || has_grown || finding.is_some() {
        let before = scheduler.plan.clone();
        scheduler.replan(most(shared.connections, state.limits), earlier, now);
        if before != scheduler.plan {
            shared.work.notify_all();
        }
    }
    take_step(&mut scheduler, now);
    shared.note_connections(&scheduler);
    let missing = missing(&mut scheduler, now);
    if scheduler.threads.idle > 0 && scheduler.count_due(now, 1) > 0 {
        shared.work.notify_one();
    }
    let check_at = scheduler.budget.check_at();
    let is_short =
        scheduler.threads.idle == 0 && scheduler.threads.count < scheduler.most_threads();
    let due = scheduler.next_due(now).filter(|_| is_short);
    if let Some(line) = notice(&scheduler, &mut state.logged, now) {
        shared.sink.log(Level::Notice, line);
    }
    drop(scheduler);
    if let Some(finding) = finding {
        log_refusal(shared, finding);
    }
    if let Err(error) = start(shared, missing) {
        if !std::mem::replace(&mut state.is_short, true) {
            let line =
                format!("cannot start another watch thread ({error}), continuing with fewer");
            shared.sink.log(Level::Error, line);
        }
        return now + NO_THREAD;
    }
    state.is_short &= missing == 0;
    let line = shared.outages.write(&*shared.sink, now);
    let next = due.into_iter().chain(line).chain(check_at).min();
    next.map_or(state.tick_at, |next| next.max(now + SHORTEST).min(state.tick_at))
}

fn log_refusal(shared: &Shared, finding: Finding) {
    let Finding::Refused { number, allowed, how, server } = finding else { return };
    let (error, raise) = match how {
        Refused::Limit(error) => (error, "limits.http_max_conns_per_client"),
        Refused::Silent => ("no answer within 1s".to_owned(), "LimitNOFILE"),
    };
    let line = format!(
        "Consul refused connection {number} ({error}), using {allowed} now and fewer than {number} \
         for an hour: raise {raise} of Consul, or lower consul_connections, server \"{server}\""
    );
    shared.sink.log(Level::Warn, line);
}

/// Most connections, and what limits them.
fn most(configured: usize, limits: Limits) -> (usize, Limit) {
    let all = [
        (configured, Limit::Configured),
        (limits.threads, Limit::Threads),
        // The first connections are few, and most configurations set worker_connections higher than
        // they need.
        (limits.descriptors.max(START), Limit::Descriptors),
    ];
    all.into_iter().min_by_key(|(most, _)| *most).unwrap_or(all[0])
}

/// Tries more connections, once all allowed ones are open.
fn take_step(scheduler: &mut Scheduler, now: Instant) {
    let (wanted, threads) = (scheduler.plan.wanted(), &scheduler.threads);
    let are_open = threads.starting == 0 && threads.count >= scheduler.budget.allowed();
    if !scheduler.is_growing() || are_open {
        scheduler.threads.to_try = scheduler.budget.next_step(wanted, now);
    }
}

/// How many more threads the tasks or the new connections need; they are counted from now on.
fn missing(scheduler: &mut Scheduler, now: Instant) -> usize {
    let room = scheduler.most_threads().saturating_sub(scheduler.threads.count);
    let ready = scheduler.threads.idle + scheduler.threads.starting;
    let due = scheduler.count_due(now, room + ready).saturating_sub(ready);
    let missing = if scheduler.is_growing() { room } else { due.min(room) };
    scheduler.threads.count += missing;
    scheduler.threads.starting += missing;
    missing
}

fn start(shared: &Arc<Shared>, missing: usize) -> io::Result<()> {
    for left in (1..=missing).rev() {
        let body = Arc::clone(shared);
        match threads::spawn(move || worker::work(&body)) {
            Ok(handle) => {
                let mut handles = shared.handles.lock();
                handles.retain(|handle| !handle.is_finished());
                handles.push(handle);
            }
            Err(error) => {
                let mut scheduler = shared.scheduler.lock();
                scheduler.threads.count -= left;
                scheduler.threads.starting -= left;
                if std::mem::take(&mut scheduler.threads.to_try) > 0 {
                    scheduler.budget.on_failure(Instant::now());
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

/// What the last log line about the plan was based on.
struct LoggedPlan {
    /// When it was logged; `None`: it is as expected at the start, so there was no line.
    at: Option<Instant>,
    all_block: bool,
    budget: usize,
}

/// The log line about the plan, if that has changed.
fn notice(scheduler: &Scheduler, logged: &mut Option<LoggedPlan>, now: Instant) -> Option<String> {
    let plan = &scheduler.plan;
    // While more connections are tried out, the plan changes soon.
    if scheduler.is_growing() {
        return None;
    }
    let (at, is_news) = match logged {
        None => (None, !plan.all_block),
        Some(last) if plan.all_block => (last.at, !last.all_block),
        Some(last) => (last.at, last.all_block || last.budget != plan.budget),
    };
    if is_news && at.is_some_and(|at| now < at + NOTICE) {
        return None;
    }
    let at = if is_news { Some(now) } else { at };
    *logged = Some(LoggedPlan { at, all_block: plan.all_block, budget: plan.budget });
    is_news.then(|| plan.notice())
}
