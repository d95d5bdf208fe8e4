//! The threads that run the queries of a [`Plan`].
//!
//! ```text
//! follow, forget ─▶ Scheduler (which task is due) ◀─▶ workers (a connection each) ─▶ Sink
//!                       ▲ supervisor: starts threads, shares connections out
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `budget` | how many connections Consul accepts |
//! | `connection_plan` | which queries get them |
//! | `reads` | how many reads are under way, and of which group |
//! | `thread_counts` | how many threads there are, and what they do |
//! | `scopes` | overview watches, and the services that each group of them covers |
//! | `task`, `scheduler` | subscriptions, and when they are due |
//! | `replan` | which subscriptions may block |
//! | `shared`, `worker`, `supervisor` | the threads |

mod budget;
mod connection_plan;
mod reads;
mod thread_counts;
mod scopes;
mod task;
mod scheduler;
mod replan;
mod shared;
mod worker;
mod supervisor;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use self::scheduler::Scheduler;
use self::shared::Shared;
use super::plan::{Followed, Plan, Target};
use super::sink::Sink;
use crate::stop::Stop;
use crate::threads::{join_all, spawn};

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

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}

impl Watcher {
    /// Starts the threads: at most [`Plan::connections`], each with one connection, and one without.
    /// The connections of earlier watchers that Consul still counts are included.
    ///
    /// While there are connections enough, each service has its own blocking query. Otherwise
    /// services are read when overview watches show a change, and at intervals. More than 64
    /// connections are tried out step by step.
    ///
    /// # Errors
    ///
    /// The system has no thread or descriptor left; the threads started so far are stopped.
    pub fn start(plan: Arc<Plan>, sink: Arc<dyn Sink>) -> io::Result<Watcher> {
        Watcher::start_within(plan, sink, None)
    }

    /// The same, within the system's limits less the descriptors for requests
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
            scheduler.add(&watch.watched, watch.name.clone(), watch.followed(), now);
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
    /// Never waits. The service is read without an index as soon as a connection is free, which is at
    /// once unless `consul_connections` is 1; so a change before the call is seen. An answer to a
    /// request sent before the call is published only if the service was followed already.
    pub fn follow(&self, target: usize, what: impl Into<Arc<Target>>) {
        self.follow_from(target, what, 0);
    }

    /// As [`Watcher::follow`], and asks this server first, which has just answered.
    pub fn follow_from(&self, target: usize, what: impl Into<Arc<Target>>, server: usize) {
        let followed = Followed::new(target, what.into());
        self.with_scheduler(|scheduler| scheduler.follow(followed, server, Instant::now()));
    }

    /// Stops following a target. Never waits: a call of the sink that is under way in another thread
    /// may still end later, but no new one begins.
    ///
    /// The query ends with its last target. If it blocks, it runs to its end: Consul would count its
    /// connection until then anyway.
    pub fn forget(&self, target: usize) {
        self.with_scheduler(|scheduler| scheduler.forget(target));
    }

    /// Reads a target's service now, without an index, even while its query blocks. Never waits.
    pub fn request_resync(&self, target: usize) {
        self.with_scheduler(|scheduler| scheduler.request_resync(target, Instant::now()));
    }

    fn with_scheduler(&self, f: impl FnOnce(&mut Scheduler)) {
        let mut scheduler = self.shared.scheduler.lock();
        f(&mut scheduler);
        self.shared.call_supervisor(&mut scheduler);
    }

    /// Stops the threads at once, whatever they wait for. Does not wait for their end.
    pub fn stop(&self) {
        self.shared.stop.raise();
        self.with_scheduler(|scheduler| scheduler.is_stopping = true);
        self.shared.work.notify_all();
    }

    /// Stops the threads and waits until all have ended; `false` if they have not within `timeout`,
    /// and then they end by themselves later.
    pub fn join(&self, timeout: Duration) -> bool {
        self.stop();
        let deadline = Instant::now() + timeout;
        if let Some(supervisor) = self.supervisor.lock().take() {
            // It ends soon.
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
        // A thread is not counted any more a moment before it has ended.
        let handles = std::mem::take(&mut *self.shared.handles.lock());
        all && join_all(handles, deadline)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop();
    }
}
