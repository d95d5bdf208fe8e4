//! Threads of the watches.
//!
//! ```text
//! follow, forget ─▶ keeper ─▶ board (what is due) ◀─▶ workers (a connection each) ─▶ Sink
//! ```

mod board;
mod counts;
mod entry;
mod gated;
mod keeper;
mod share;
mod worker;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use self::board::Board;
use self::keeper::{Command, Keeper};
use super::outages::Outages;
use super::plan::Followed;
use super::{Connections, Plan, Sink, Target};
use crate::stop::Stop;

/// A TLS handshake needs most of it; the pages of an idle thread are few.
const STACK: usize = 256 * 1024;

/// The running threads of a plan, all named `consul-watch`.
///
/// A thread inherits the signal mask of the one that starts it: the **caller must block all
/// signals** around [`Engine::start`] and [`first_answers`](super::first_answers), since the
/// threads would otherwise run nginx's signal handlers.
///
/// Dropping it stops the threads without waiting for them.
pub struct Engine {
    shared: Arc<Shared>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    /// Targets that were followed later.
    followed: Mutex<std::collections::HashMap<usize, Followed>>,
    fixed: usize,
}

/// What the threads share.
struct Shared {
    stop: Arc<Stop>,
    sink: Arc<dyn Sink>,
    board: Mutex<Board>,
    /// There is work, or a change of who waits for it.
    work: Condvar,
    /// A thread has ended.
    ended: Condvar,
    keeper: Keeper,
    /// Of the threads that have a connection, some of which may have ended.
    handles: Mutex<Vec<JoinHandle<()>>>,
    noted: Mutex<Connections>,
    outages: Arc<Outages>,
}

impl Shared {
    /// Tells the sink of the connections, if they have changed.
    fn note(&self, board: &mut Board) {
        let connections = board.connections();
        let mut noted = self.noted.lock();
        if *noted != connections {
            *noted = connections;
            self.sink.note_connections(connections);
        }
    }

    /// How many more threads the work needs; they count from now on.
    fn missing(&self, board: &mut Board, now: Instant) -> usize {
        let room = board.share.budget.saturating_sub(board.threads);
        let ready = board.idle + board.starting;
        let due = board.count_due(now, room + ready);
        let missing = due.saturating_sub(ready).min(room);
        if due > 0 && board.idle > 0 {
            self.work.notify_one();
        }
        board.threads += missing;
        board.starting += missing;
        missing
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

impl Engine {
    /// Starts the threads: at most [`Plan::connections`], each with one connection, and one that
    /// has none. The connections that an earlier engine still has at Consul count too.
    ///
    /// While there are connections enough, each service has a blocking query of its own. Otherwise
    /// the services that are used or changed most have one; the others are read when queries about
    /// all services say that something has changed, and now and then.
    ///
    /// # Errors
    ///
    /// No thread or descriptor is left; what was started is stopped again.
    pub fn start(plan: Arc<Plan>, sink: Arc<dyn Sink>) -> io::Result<Engine> {
        sink.engine_starts();
        let (now, foreign) = (Instant::now(), sink.foreign_connections());
        let mut board = Board::new(plan.connections, foreign, now);
        for watch in &plan.watches {
            let followed = |(number, target): &(usize, Arc<Target>)| {
                Followed::new(*number, Arc::clone(target))
            };
            board.add(&watch.subject, watch.targets.iter().map(followed).collect(), now);
        }
        let shared = Arc::new(Shared {
            stop: Arc::new(Stop::new()?),
            sink,
            board: Mutex::new(board),
            work: Condvar::new(),
            ended: Condvar::new(),
            keeper: Keeper::default(),
            handles: Mutex::default(),
            noted: Mutex::default(),
            outages: Arc::default(),
        });
        let kept = Arc::clone(&shared);
        let keeper = Mutex::new(Some(spawn(move || keeper::keep(&kept))?));
        Ok(Engine { shared, keeper, followed: Mutex::default(), fixed: plan.targets.len() })
    }

    /// Follows one more target until [`forget`](Self::forget). Its number must not be one of the
    /// plan's, nor of another target that is followed.
    ///
    /// Never waits. The service is asked anew, without an index, as soon as a connection is free for
    /// that, which is at once but for a `consul_connections` of 1; so whatever changed before the
    /// call is seen. What is published comes from answers to requests of before the call at most if
    /// the service was followed already.
    pub fn follow(&self, target: usize, what: impl Into<Arc<Target>>) {
        debug_assert!(target >= self.fixed, "numbers of the plan are taken");
        let followed = Followed::new(target, what.into());
        let before = self.followed.lock().insert(target, followed.clone());
        debug_assert!(before.is_none(), "the number is in use");
        if let Some(before) = before {
            before.forget();
            self.shared.keeper.tell(Command::Forget(target));
        }
        self.shared.keeper.tell(Command::Follow(followed));
    }

    /// Stops following a target. Never waits: a publication or report that another thread is just
    /// handing to the sink may still come, none that begins later.
    ///
    /// The watch ends with its last target. A blocking query that is under way runs to its end:
    /// Consul would count a connection that is closed before until then too.
    pub fn forget(&self, target: usize) {
        if let Some(followed) = self.followed.lock().remove(&target) {
            followed.forget();
            self.shared.keeper.tell(Command::Forget(target));
        }
    }

    /// Asks Consul about a target now, without an index: beside the query that is under way, if there
    /// is one. Never waits.
    pub fn ask_again(&self, target: usize) {
        self.shared.keeper.tell(Command::AskAgain(target));
    }

    /// Tells the threads to end: at once, whatever they wait for. Needs no waiting itself.
    pub fn stop(&self) {
        self.shared.stop.raise();
        self.shared.keeper.end();
        self.shared.board.lock().ended = true;
        self.shared.work.notify_all();
    }

    /// Waits until all threads have ended; `false` if that takes longer than `timeout`, and then
    /// they are left to end by themselves. Stops them first.
    pub fn join(&self, timeout: Duration) -> bool {
        self.stop();
        let deadline = Instant::now() + timeout;
        if let Some(keeper) = self.keeper.lock().take() {
            // It never does anything that takes long.
            let _ = keeper.join();
        }
        let mut board = self.shared.board.lock();
        while board.threads > 0 {
            if self.shared.ended.wait_until(&mut board, deadline).timed_out() {
                break;
            }
        }
        let all = board.threads == 0;
        drop(board);
        // A thread counts itself out a moment before it is gone.
        let handles = std::mem::take(&mut *self.shared.handles.lock());
        all && join_all(handles, deadline)
    }
}

/// Waits for threads that are about to end; `false` if that takes too long.
pub(crate) fn join_all(handles: Vec<JoinHandle<()>>, deadline: Instant) -> bool {
    handles.into_iter().all(|handle| {
        while !handle.is_finished() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_micros(200));
        }
        // Panics are caught within.
        let _ = handle.join();
        true
    })
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A thread of the engine.
pub(crate) fn spawn(body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("consul-watch".to_owned()).stack_size(STACK).spawn(body)
}

/// Hands out numbers to threads that share work.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicUsize);

impl Counter {
    pub(super) fn next(&self) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// Whether this was the last of `all`.
    pub(super) fn is_last_of(&self, all: usize) -> bool {
        self.0.fetch_add(1, Ordering::SeqCst) + 1 == all
    }
}

#[cfg(test)]
mod tests;
