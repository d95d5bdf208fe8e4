//! The thread that starts the others and shares the connections out. It has no connection itself.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::{Judgement, Refused, START};
use super::scheduler::Scheduler;
use super::{Shared, worker};
use crate::model::{Level, Limit};
use crate::watch::limits::Limits;

/// How often it looks around.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two looks at the system's limits.
const LIMITS_TICKS: u64 = 30;
/// Shortest time between two notices of how services are followed.
const NOTICE: Duration = Duration::from_secs(5);
/// Shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(1);
/// Pause after the system had no thread to give.
const NO_THREAD: Duration = Duration::from_secs(1);
/// Longer than a line of the log ever waits.
const HOUR: Duration = Duration::from_secs(3600);

/// What it remembers.
struct Memory {
    ticks: u64,
    tick_at: Instant,
    limits: Limits,
    /// The last notice: its time, whether each service has a query of its own, and the budget.
    said: Option<(Option<Instant>, bool, usize)>,
    /// It has said that there are no threads to be had.
    is_short: bool,
    /// The sink knows that this engine has begun.
    has_begun: bool,
}

/// Runs until the engine stops.
pub(super) fn supervise(shared: &Arc<Shared>) {
    let (tick_at, limits) = (Instant::now(), Limits::default());
    let mut memory =
        Memory { ticks: 0, tick_at, limits, said: None, is_short: false, has_begun: false };
    loop {
        // The sink's is code of others.
        let round = AssertUnwindSafe(|| round(shared, &mut memory));
        let until = catch_unwind(round).unwrap_or_else(|_| Instant::now() + TICK);
        let mut scheduler = shared.scheduler.lock();
        let is_waiting = |scheduler: &mut Scheduler| !scheduler.has_ended && !scheduler.is_called;
        let left = until.saturating_duration_since(Instant::now());
        shared.called.wait_while_for(&mut scheduler, is_waiting, left);
        scheduler.is_called = false;
        if scheduler.has_ended {
            break;
        }
    }
    // Whatever waits for others to say it with.
    let write = || shared.outages.write(&*shared.sink, Instant::now() + HOUR);
    let _ = catch_unwind(AssertUnwindSafe(write));
}

/// Looks around once; says when to do so again.
fn round(shared: &Arc<Shared>, memory: &mut Memory) -> Instant {
    let now = Instant::now();
    let is_tick = memory.tick_at <= now;
    memory.has_begun = memory.has_begun || shared.sink.engine_starts();
    let foreign = shared.sink.foreign_connections();
    let mut scheduler = shared.scheduler.lock();
    if is_tick {
        memory.tick_at = now + TICK;
        if let Some(kept) = shared.worker_connections.filter(|_| memory.ticks % LIMITS_TICKS == 0) {
            memory.limits = Limits::of_process(scheduler.threads.count, kept);
        }
        memory.ticks += 1;
    }
    let judgement = scheduler.budget.judge(now);
    let is_full = scheduler.plan.all_block && scheduler.entries.len() > scheduler.plan.polls;
    let has_grown = scheduler.is_growing() && scheduler.budget.allowed() > scheduler.plan.budget;
    if is_tick || is_full || has_grown || judgement.is_some() {
        let before = scheduler.plan.clone();
        scheduler.replan(most(shared.connections, memory.limits), foreign, now);
        if before != scheduler.plan {
            shared.work.notify_all();
        }
    }
    take_step(&mut scheduler, now);
    shared.note(&scheduler);
    let missing = missing(&mut scheduler, now);
    if scheduler.threads.idle > 0 && scheduler.count_due(now, 1) > 0 {
        shared.work.notify_one();
    }
    let judged_at = scheduler.budget.judged_at();
    let is_short =
        scheduler.threads.idle == 0 && scheduler.threads.count < scheduler.most_threads();
    let due = scheduler.next_due(now).filter(|_| is_short);
    if let Some(line) = notice(&scheduler, &mut memory.said, now) {
        shared.sink.log(Level::Notice, line);
    }
    drop(scheduler);
    if let Some(Judgement::Refused { number, allowed, how, server }) = judgement {
        let (error, raise) = match how {
            Refused::Limit(error) => (error, "limits.http_max_conns_per_client"),
            Refused::Silent => ("no answer within 1s".to_owned(), "LimitNOFILE"),
        };
        let line = format!(
            "Consul refused connection {number} ({error}), going on with {allowed} and fewer than \
             {number} for an hour: raise {raise} of Consul, or lower consul_connections, server \
             \"{server}\""
        );
        shared.sink.log(Level::Warn, line);
    }
    if let Err(error) = start(shared, missing) {
        if !std::mem::replace(&mut memory.is_short, true) {
            let line = format!("can't start another watch thread ({error}), going on");
            shared.sink.log(Level::Error, line);
        }
        return now + NO_THREAD;
    }
    memory.is_short &= missing == 0;
    let line = shared.outages.write(&*shared.sink, now);
    let next = due.into_iter().chain(line).chain(judged_at).min();
    next.map_or(memory.tick_at, |next| next.max(now + SHORTEST).min(memory.tick_at))
}

/// Most connections, and what bounds them.
fn most(configured: usize, limits: Limits) -> (usize, Limit) {
    let all = [
        (configured, Limit::Configured),
        (limits.threads, Limit::Threads),
        // The first ones are few, and most configurations promise more than there is.
        (limits.descriptors.max(START), Limit::Descriptors),
    ];
    all.into_iter().min_by_key(|(most, _)| *most).unwrap_or(all[0])
}

/// Has more connections tried out, once all that are allowed are there.
fn take_step(scheduler: &mut Scheduler, now: Instant) {
    let (wanted, threads) = (scheduler.plan.wanted(), &scheduler.threads);
    let are_there = threads.starting == 0 && threads.count >= scheduler.budget.allowed();
    if !scheduler.is_growing() || are_there {
        scheduler.threads.to_try = scheduler.budget.next_step(wanted, now);
    }
}

/// How many more threads the work needs, or new connections; they count from now on.
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
        match super::spawn(move || worker::work(&body)) {
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

/// How services are followed, if that has changed.
fn notice(
    scheduler: &Scheduler,
    said: &mut Option<(Option<Instant>, bool, usize)>,
    now: Instant,
) -> Option<String> {
    let plan = &scheduler.plan;
    // While more connections are tried out, what holds now is soon over.
    if scheduler.is_growing() {
        return None;
    }
    // That all is as it should be need not be said at the beginning, nor of how many then.
    let (at, is_news) = match *said {
        None => (None, !plan.all_block),
        Some((at, all_block, _)) if plan.all_block => (at, !all_block),
        Some((at, all_block, budget)) => (at, all_block || budget != plan.budget),
    };
    if is_news && at.is_some_and(|at| now < at + NOTICE) {
        return None;
    }
    *said = Some((if is_news { Some(now) } else { at }, plan.all_block, plan.budget));
    is_news.then(|| plan.notice())
}
