//! Threads of the watches.
//!
//! ```text
//! follow, forget ─▶ scheduler (what is due) ◀─▶ workers (a connection each) ─▶ Sink
//!                       ▲ supervisor: starts threads, shares connections out
//! ```

mod budget;
mod connection_plan;
mod scheduler;
mod supervisor;
mod threads;
mod triggered;
mod worker;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use self::scheduler::Scheduler;
use super::outages::Outages;
use super::plan::Followed;
use super::{Plan, Sink, Target};
use crate::model::Connections;
use crate::stop::Stop;

/// A TLS handshake with a client certificate needs most of it: 48 KiB were used, and between 96 and
/// 128 without optimization.
const STACK: usize = if cfg!(debug_assertions) { 256 * 1024 } else { 96 * 1024 };

/// The running threads of a plan, all named `consul-watch`.
///
/// A thread inherits the signal mask of the one that starts it: the **caller must block all
/// signals** around [`Watcher::start`] and [`first_answers`](super::first_answers), since the
/// threads would otherwise run nginx's signal handlers.
///
/// Dropping it stops the threads without waiting for them.
pub struct Watcher {
    shared: Arc<Shared>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

/// What the threads share.
struct Shared {
    stop: Arc<Stop>,
    sink: Arc<dyn Sink>,
    /// `consul_connections`.
    connections: usize,
    /// Descriptors that are for requests; `None`: the system's limits don't matter.
    worker_connections: Option<usize>,
    scheduler: Mutex<Scheduler>,
    /// There is work, or a change of who waits for it.
    work: Condvar,
    /// The supervisor is to look around.
    called: Condvar,
    /// A thread has ended.
    ended: Condvar,
    /// Of the threads that have a connection, some of which may have ended.
    handles: Mutex<Vec<JoinHandle<()>>>,
    noted: Mutex<Connections>,
    outages: Arc<Outages>,
}

impl Shared {
    /// Tells the sink of the connections, if they have changed.
    fn note(&self, scheduler: &Scheduler) {
        let connections = scheduler.connections();
        let mut noted = self.noted.lock();
        if *noted != connections {
            *noted = connections;
            self.sink.note_connections(connections);
        }
    }

    /// Has the supervisor look whether there are threads enough, among others.
    fn call(&self, scheduler: &mut Scheduler) {
        scheduler.is_called = true;
        self.called.notify_one();
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}

impl Watcher {
    /// Starts the threads: at most [`Plan::connections`], each with one connection, and one that
    /// has none. The connections that an earlier engine still has at Consul count too.
    ///
    /// While there are connections enough, each service has a blocking query of its own. Otherwise
    /// services are read when queries about all of them say that something has changed, and now and
    /// then. More than 64 connections are tried out step by step.
    ///
    /// # Errors
    ///
    /// No thread or descriptor is left; what was started is stopped again.
    pub fn start(plan: Arc<Plan>, sink: Arc<dyn Sink>) -> io::Result<Watcher> {
        Watcher::start_within(plan, sink, None)
    }

    /// The same, within what the system's limits leave if so many descriptors are for requests
    /// (`worker_connections`).
    ///
    /// # Errors
    ///
    /// As of [`start`](Self::start).
    pub fn start_within(
        plan: Arc<Plan>,
        sink: Arc<dyn Sink>,
        worker_connections: Option<usize>,
    ) -> io::Result<Watcher> {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(now);
        for watch in &plan.watches {
            scheduler.add(&watch.subject, watch.followed(), now);
        }
        let shared = Arc::new(Shared {
            stop: Arc::new(Stop::new()?),
            sink,
            connections: plan.connections,
            worker_connections,
            scheduler: Mutex::new(scheduler),
            work: Condvar::new(),
            called: Condvar::new(),
            ended: Condvar::new(),
            handles: Mutex::default(),
            noted: Mutex::default(),
            outages: Arc::default(),
        });
        let supervised = Arc::clone(&shared);
        let supervisor = spawn(move || supervisor::supervise(&supervised))?;
        Ok(Watcher { shared, supervisor: Mutex::new(Some(supervisor)) })
    }

    /// Follows one more target until [`forget`](Self::forget). Its number must not be one of the
    /// plan's, nor of another target that is followed.
    ///
    /// Never waits. The service is asked anew, without an index, as soon as a connection is free for
    /// that, which is at once but for a `consul_connections` of 1; so whatever changed before the
    /// call is seen. What is published comes from answers to requests of before the call at most if
    /// the service was followed already.
    pub fn follow(&self, target: usize, what: impl Into<Arc<Target>>) {
        let followed = Followed::new(target, what.into());
        self.with_scheduler(|scheduler| scheduler.follow(followed, Instant::now()));
    }

    /// Stops following a target. Never waits: a publication or report that another thread is just
    /// handing to the sink may still come, none that begins later.
    ///
    /// The watch ends with its last target. A blocking query that is under way runs to its end:
    /// Consul would count a connection that is closed before until then too.
    pub fn forget(&self, target: usize) {
        self.with_scheduler(|scheduler| scheduler.forget(target));
    }

    /// Asks Consul about a target now, without an index: beside the query that is under way, if there
    /// is one. Never waits.
    pub fn request_resync(&self, target: usize) {
        self.with_scheduler(|scheduler| scheduler.request_resync(target, Instant::now()));
    }

    fn with_scheduler(&self, f: impl FnOnce(&mut Scheduler)) {
        let mut scheduler = self.shared.scheduler.lock();
        f(&mut scheduler);
        self.shared.call(&mut scheduler);
    }

    /// Tells the threads to end: at once, whatever they wait for. Needs no waiting itself.
    pub fn stop(&self) {
        self.shared.stop.raise();
        self.with_scheduler(|scheduler| scheduler.has_ended = true);
        self.shared.work.notify_all();
    }

    /// Waits until all threads have ended; `false` if that takes longer than `timeout`, and then
    /// they are left to end by themselves. Stops them first.
    pub fn join(&self, timeout: Duration) -> bool {
        self.stop();
        let deadline = Instant::now() + timeout;
        if let Some(supervisor) = self.supervisor.lock().take() {
            // It never does anything that takes long.
            let _ = supervisor.join();
        }
        let mut scheduler = self.shared.scheduler.lock();
        while scheduler.threads.count > 0 {
            if self.shared.ended.wait_until(&mut scheduler, deadline).timed_out() {
                break;
            }
        }
        let all = scheduler.threads.count == 0;
        drop(scheduler);
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

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A thread of the engine.
pub(crate) fn spawn(body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread_builder().spawn(body)
}

pub(super) fn thread_builder() -> thread::Builder {
    thread::Builder::new().name("consul-watch".to_owned()).stack_size(STACK)
}

#[cfg(test)]
mod tests;
