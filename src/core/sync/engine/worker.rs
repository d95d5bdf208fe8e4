//! A thread of the engine, with its connection.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::board::{Board, Last, Task};
use crate::consul::client::Client;
use crate::resolve::SystemResolver;
use crate::sync::Level;
use crate::sync::asking::Failure;
use crate::sync::lookout::{Looked, Lookout};
use crate::sync::names::query_name;
use crate::sync::runner::{Common, Job, Ran, Tools};

/// Shortest time between two looks at a queue whose work has to wait for other threads.
const BUSY: Duration = Duration::from_millis(20);
/// Pause before a read that failed is repeated.
const RETRY: Duration = Duration::from_millis(250);

/// Counts a thread for as long as it runs.
struct Present<'a>(&'a Shared, usize);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        let mut board = self.0.board.lock();
        board.threads -= 1;
        board.numbers.give(self.1);
        self.0.note(&mut board);
        self.0.ended.notify_all();
    }
}

/// Takes and does work until the engine stops or has too many threads.
pub(super) fn work(shared: &Arc<Shared>) {
    let number = {
        let mut board = shared.board.lock();
        board.starting -= 1;
        board.numbers.take()
    };
    let _present = Present(shared, number);
    let stop = &shared.stop;
    let mut client = Client::numbered(Arc::clone(stop), number);
    let resolver = SystemResolver::new(Arc::clone(stop));
    let (mut last, mut done) = (Last::default(), None);
    while let Some(task) = next(shared, &last, done.take()) {
        let mut tools = Tools {
            client: &mut client,
            resolver: &resolver,
            sink: &*shared.sink,
            outages: &shared.outages,
        };
        let goes_on = match task {
            Task::Watch(id, job) => {
                done = watch(shared, &mut tools, &mut last, id, job);
                done.is_some()
            }
            Task::Beside(id, common) => beside(shared, &mut tools, id, &common),
            Task::Look(place, lookout) => look(shared, &mut tools, place, lookout),
        };
        if !goes_on {
            return;
        }
    }
}

/// A watch whose request has ended.
struct Done {
    id: u64,
    job: Box<Job>,
    changed: bool,
}

/// Takes a watch back, and waits for the next task; `None` if the thread is to end. No other thread
/// comes between: this one has the connection that the index of the watch is good for.
fn next(shared: &Shared, last: &Last, done: Option<Done>) -> Option<Task> {
    let mut board = shared.board.lock();
    if let Some(Done { id, job, changed }) = done {
        board.put(id, job, changed, Instant::now());
        shared.note(&mut board);
    }
    loop {
        if board.ended {
            return None;
        }
        let now = Instant::now();
        if let Some(task) = board.take(now, last) {
            shared.note(&mut board);
            hand_on(shared, &board, &task, now);
            return Some(task);
        }
        if board.surplus > 0 {
            board.surplus -= 1;
            shared.work.notify_one();
            return None;
        }
        board.idle += 1;
        // What is due already waits for a thread that reads.
        let due = board.next_due().map(|due| if due <= now { now + BUSY } else { due });
        // One of the idle threads is enough to wait for the time.
        match due.filter(|due| board.timed.is_none_or(|timed| *due < timed)) {
            Some(due) => {
                board.timed = Some(due);
                shared.work.wait_until(&mut board, due);
                board.timed = board.timed.filter(|timed| *timed != due);
            }
            None => shared.work.wait(&mut board),
        }
        board.idle -= 1;
        board.least_idle = board.least_idle.min(board.idle);
    }
}

/// Before a thread is busy, perhaps for long: somebody else has to take what is left, or to wait for
/// what comes next.
fn hand_on(shared: &Shared, board: &Board, task: &Task, now: Instant) {
    let due = board.next_due();
    let is_due = due.is_some_and(|due| due <= now);
    if board.idle > 0 {
        let is_timed = due.is_none_or(|due| board.timed.is_some_and(|timed| timed <= due));
        if is_due || !is_timed {
            shared.work.notify_one();
        }
    } else if board.threads < board.share.budget && (is_due || task.blocks()) {
        shared.keeper.poke();
    }
}

fn watch(
    shared: &Shared,
    tools: &mut Tools<'_>,
    last: &mut Last,
    id: u64,
    mut job: Box<Job>,
) -> Option<Done> {
    let subject = job.subject();
    let ran = catch_unwind(AssertUnwindSafe(|| job.run(tools)));
    let changed = match ran {
        Ok(Ran::Stopped) => return None,
        Ok(Ran::Done { changed }) => changed,
        Err(_) => {
            job.restart();
            panicked(shared, tools, &query_name(&subject.query));
            false
        }
    };
    *last = Last { watch: Some(id), endpoint: Some(Arc::clone(&subject.endpoint)) };
    if shared.outages.take_news() {
        shared.keeper.poke();
    }
    Some(Done { id, job, changed })
}

fn beside(shared: &Shared, tools: &mut Tools<'_>, id: u64, common: &Arc<Common>) -> bool {
    let read = catch_unwind(AssertUnwindSafe(|| common.read_beside(tools)));
    let now = Instant::now();
    let again = match read {
        Ok(Ok(again)) => again,
        Ok(Err(Failure::Reconnected | Failure::Refused(..))) => Some(now + RETRY),
        Err(_) => {
            panicked(shared, tools, &query_name(&common.subject.query));
            Some(now + Duration::from_secs(5))
        }
    };
    let mut board = shared.board.lock();
    board.put_beside(id, again, now);
    true
}

fn look(
    shared: &Shared,
    tools: &mut Tools<'_>,
    place: (usize, usize),
    mut lookout: Box<Lookout>,
) -> bool {
    let wait = lookout.blocks_for();
    let looked = catch_unwind(AssertUnwindSafe(|| lookout.run(tools)));
    let looked = match looked {
        Ok(Looked::Stopped) => return false,
        Ok(looked) => looked,
        Err(_) => {
            lookout.restart();
            panicked(shared, tools, "a look at all services");
            Looked::Failed
        }
    };
    let mut board = shared.board.lock();
    board.release_wait(wait);
    board.put_lookout(place, lookout, looked, Instant::now());
    shared.note(&mut board);
    true
}

fn panicked(shared: &Shared, tools: &mut Tools<'_>, name: &str) {
    tools.client.close();
    // The sink itself may be what panics.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        shared.sink.log(Level::Error, format!("{name}: panic in its watch, which restarts"));
    }));
}
