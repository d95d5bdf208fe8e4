//! The thread that keeps the others: it starts them, takes what is to be followed and forgotten,
//! and shares the connections out. It has no connection itself.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Shared;
use super::board::Board;
use super::worker;
use crate::sync::Level;
use crate::sync::plan::Followed;

/// How often it looks around.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two measurements of traffic, and between two looks for idle threads.
const HEAT_TICKS: u64 = 5;
const IDLE_TICKS: u64 = 15;
/// Shortest time between two notices of how services are followed.
const NOTICE: Duration = Duration::from_secs(5);
/// Shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(1);
/// Pause after the system had no thread to give.
const NO_THREAD: Duration = Duration::from_secs(1);

/// Longer than a line of the log ever waits.
const HOUR: Duration = Duration::from_secs(3600);

/// What the keeper is told.
pub(super) enum Command {
    Follow(Followed),
    Forget(usize),
    AskAgain(usize),
}

#[derive(Default)]
struct Inbox {
    commands: Vec<Command>,
    poked: bool,
    ended: bool,
}

/// How the keeper is told.
#[derive(Default)]
pub(super) struct Keeper {
    inbox: Mutex<Inbox>,
    called: Condvar,
}

impl Keeper {
    /// Never waits for anything that takes long.
    pub(super) fn tell(&self, command: Command) {
        self.inbox.lock().commands.push(command);
        self.called.notify_one();
    }

    /// Has it look whether there are threads enough.
    pub(super) fn poke(&self) {
        self.inbox.lock().poked = true;
        self.called.notify_one();
    }

    pub(super) fn end(&self) {
        self.inbox.lock().ended = true;
        self.called.notify_one();
    }

    /// Waits until it is called or until then; `None` if it is to end.
    fn wait(&self, until: Instant) -> Option<Vec<Command>> {
        let mut inbox = self.inbox.lock();
        while !inbox.ended && !inbox.poked && inbox.commands.is_empty() {
            if self.called.wait_until(&mut inbox, until).timed_out() {
                break;
            }
        }
        inbox.poked = false;
        (!inbox.ended).then(|| std::mem::take(&mut inbox.commands))
    }
}

/// What was last said of how services are followed.
#[derive(Default)]
struct Said {
    /// Whether each has a query of its own, and the budget.
    regime: Option<(bool, usize)>,
    at: Option<Instant>,
}

/// What the keeper remembers.
struct Memory {
    said: Said,
    ticks: u64,
    tick_at: Instant,
    /// It has said that there are no threads to be had.
    short: bool,
}

/// Runs until the engine stops.
pub(super) fn keep(shared: &Arc<Shared>) {
    let mut until = Instant::now();
    let mut memory = Memory { said: Said::default(), ticks: 0, tick_at: until, short: false };
    while let Some(commands) = shared.keeper.wait(until) {
        // The sink's is code of others.
        let round = AssertUnwindSafe(|| round(shared, &mut memory, commands));
        until = catch_unwind(round).unwrap_or_else(|_| Instant::now() + TICK);
    }
    // Whatever waits for others to say it with.
    let write = || shared.outages.write(&*shared.sink, Instant::now() + HOUR);
    let _ = catch_unwind(AssertUnwindSafe(write));
}

/// Looks around once; says when to do so again.
fn round(shared: &Arc<Shared>, memory: &mut Memory, commands: Vec<Command>) -> Instant {
    let now = Instant::now();
    let is_tick = memory.tick_at <= now;
    obey(&mut shared.board.lock(), commands, now);
    if is_tick {
        memory.tick_at = now + TICK;
        memory.ticks += 1;
        if memory.ticks % HEAT_TICKS == 0 {
            measure(shared, HEAT_TICKS as u32 * TICK);
        }
    }
    let foreign = shared.sink.foreign_connections();
    let mut board = shared.board.lock();
    let is_full = board.share.all_block && board.entries.len() > board.share.polls;
    if is_tick || is_full {
        board.plan(foreign, now);
        board.settle_doubts(now);
        tell(shared, &board, &mut memory.said, now);
    }
    if is_tick && memory.ticks % IDLE_TICKS == 0 {
        board.surplus = board.least_idle.saturating_sub(1);
        board.least_idle = board.idle;
        shared.work.notify_one();
    }
    let missing = shared.missing(&mut board, now);
    let is_short = board.idle == 0 && board.threads < board.share.budget;
    let due = board.next_due().filter(|_| is_short);
    drop(board);
    if let Err(error) = spawn(shared, missing) {
        if !std::mem::replace(&mut memory.short, true) {
            let line = format!("can't start another watch thread ({error}), going on");
            shared.sink.log(Level::Error, line);
        }
        return now + NO_THREAD;
    }
    memory.short &= missing == 0;
    let line = shared.outages.write(&*shared.sink, now);
    let next = due.into_iter().chain(line).min();
    next.map_or(memory.tick_at, |next| next.max(now + SHORTEST).min(memory.tick_at))
}

fn obey(board: &mut Board, commands: Vec<Command>, now: Instant) {
    for command in commands {
        match command {
            Command::Follow(followed) => board.follow(followed, now),
            Command::Forget(target) => board.forget(target),
            Command::AskAgain(target) => board.ask_again(target, now),
        }
    }
}

fn spawn(shared: &Arc<Shared>, missing: usize) -> io::Result<()> {
    for left in (1..=missing).rev() {
        let body = Arc::clone(shared);
        match super::spawn(move || worker::work(&body)) {
            Ok(handle) => {
                let mut handles = shared.handles.lock();
                handles.retain(|handle| !handle.is_finished());
                handles.push(handle);
            }
            Err(error) => {
                let mut board = shared.board.lock();
                board.threads -= left;
                board.starting -= left;
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Asks the sink how much each service is used, where that decides who has a blocking query.
fn measure(shared: &Shared, over: Duration) {
    let all: Vec<_> = {
        let board = shared.board.lock();
        if board.share.all_block {
            return;
        }
        board.entries.iter().map(|(id, entry)| (*id, Arc::clone(&entry.common))).collect()
    };
    let picks = |common: &crate::sync::runner::Common| {
        common.targets().iter().map(|target| shared.sink.traffic(target.number)).sum()
    };
    let all: Vec<(u64, u64)> = all.iter().map(|(id, common)| (*id, picks(common))).collect();
    let mut board = shared.board.lock();
    for (id, picks) in all {
        if let Some(entry) = board.entries.get_mut(&id) {
            entry.heat.measure(picks, over);
        }
    }
}

/// Says how services are followed, when that has changed.
fn tell(shared: &Shared, board: &Board, said: &mut Said, now: Instant) {
    let regime = (board.share.all_block, board.share.budget);
    // That all is as it should be need not be said at the beginning, nor of how many then.
    let is_news = match said.regime {
        None => !regime.0,
        Some((all_block, _)) if regime.0 => !all_block,
        Some(before) => before != regime,
    };
    if said.at.is_some_and(|at| is_news && now < at + NOTICE) {
        return;
    }
    if is_news {
        said.at = Some(now);
        shared.sink.log(Level::Notice, board.share.notice(board.count_polled()));
    }
    said.regime = Some(regime);
}
