//! Threads of the watches.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::runner::Job;
use super::{Level, Plan, Sink};
use crate::consul::client::Client;
use crate::resolve::SystemResolver;
use crate::stop::Stop;

/// A TLS handshake needs most of it; the pages of an idle thread are few.
const STACK: usize = 256 * 1024;
/// How often a service is asked for in sweep mode, at least.
const SWEEP: Duration = Duration::from_secs(5);
/// What one request of a sweep is expected to take at most, on average.
const SWEEP_REQUEST: Duration = Duration::from_millis(20);

/// The running threads of a plan, all named `consul-watch`.
///
/// A thread inherits the signal mask of the one that starts it: the **caller must block all
/// signals** around [`Engine::start`] and [`first_answers`](super::first_answers), since the
/// threads would otherwise run nginx's signal handlers.
///
/// Dropping it stops the threads without waiting for them.
#[derive(Debug)]
pub struct Engine {
    stop: Arc<Stop>,
    running: Arc<Running>,
    threads: Vec<JoinHandle<()>>,
}

/// Counts running threads.
#[derive(Debug, Default)]
struct Running {
    count: Mutex<usize>,
    ended: Condvar,
}

/// Ends a thread's count however it ends.
struct Present(Arc<Running>);

impl Present {
    fn new(running: &Arc<Running>) -> Self {
        *running.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Present(Arc::clone(running))
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.ended.notify_all();
    }
}

impl Engine {
    /// Starts the threads, at most [`Plan::connections`], each with one connection.
    ///
    /// While there are no more watches than that, each has its own thread and blocks. Otherwise
    /// the last quarter of the threads shares the watches that are left over, in a sweep: every
    /// service about once in 5 s.
    ///
    /// # Errors
    ///
    /// No thread or descriptor is left; what was started is stopped again.
    pub fn start(plan: Arc<Plan>, sink: Arc<dyn Sink>) -> io::Result<Engine> {
        let mut engine =
            Engine { stop: Arc::new(Stop::new()?), running: Arc::default(), threads: Vec::new() };
        let queues = share(&plan);
        if let Some(notice) = queues.notice() {
            sink.log(Level::Notice, notice);
        }
        for (watches, sweep) in queues.0 {
            let jobs = watches.iter().map(|&watch| Job::new(&plan, watch, sweep)).collect();
            engine.spawn(jobs, Arc::clone(&sink))?;
        }
        Ok(engine)
    }

    /// Tells the threads to end: at once, whatever they wait for. Needs no waiting itself.
    pub fn stop(&self) {
        self.stop.raise();
    }

    /// Waits until all threads have ended; `false` if that takes longer than `timeout`, and then
    /// they are left to end by themselves. Stops them first.
    pub fn join(mut self, timeout: Duration) -> bool {
        self.stop();
        let count = self.running.count.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, _) = self
            .running
            .ended
            .wait_timeout_while(count, timeout, |count| *count > 0)
            .unwrap_or_else(PoisonError::into_inner);
        let all = *count == 0;
        drop(count);
        if all {
            for thread in self.threads.drain(..) {
                // Each has left its loop, and panics are caught there.
                let _ = thread.join();
            }
        }
        all
    }

    fn spawn(&mut self, jobs: Vec<Job>, sink: Arc<dyn Sink>) -> io::Result<()> {
        let present = Present::new(&self.running);
        let stop = Arc::clone(&self.stop);
        let thread = spawn(move || {
            let _present = present;
            follow(jobs, &stop, &*sink);
        })?;
        self.threads.push(thread);
        Ok(())
    }
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

/// Runs the jobs of one thread, always the one that is due first, until the engine stops.
fn follow(mut jobs: Vec<Job>, stop: &Arc<Stop>, sink: &dyn Sink) {
    let mut client = Client::new(Arc::clone(stop));
    let resolver = SystemResolver::new(Arc::clone(stop));
    loop {
        let Some(job) = jobs.iter_mut().min_by_key(|job| job.due) else { return };
        let pause = job.due.saturating_duration_since(Instant::now());
        if !stop.sleep(pause) {
            return;
        }
        let run = AssertUnwindSafe(|| job.run(&mut client, &resolver, sink));
        match catch_unwind(run) {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => {
                client.close();
                job.restart();
                let name = job.name();
                // The sink itself may be what panics.
                let _ = catch_unwind(AssertUnwindSafe(|| {
                    sink.log(Level::Error, format!("{name}: panic in its watch, which restarts"));
                }));
            }
        }
    }
}

/// The watches of each thread, with the interval of a sweep.
#[derive(Debug, PartialEq, Eq)]
struct Queues(Vec<(Vec<usize>, Option<Duration>)>);

fn share(plan: &Plan) -> Queues {
    let (watches, connections) = (plan.watches.len(), plan.connections);
    if watches <= connections {
        return Queues((0..watches).map(|watch| (vec![watch], None)).collect());
    }
    let sweepers = (connections / 4).max(1);
    let blocking = connections - sweepers;
    let mut queues: Vec<_> = (0..blocking).map(|watch| (vec![watch], None)).collect();
    let mut swept: Vec<usize> = (blocking..watches).collect();
    // A thread keeps its connection from one watch to the next if they have the same endpoint.
    swept.sort_by_key(|&watch| Arc::as_ptr(&plan.watches[watch].endpoint));
    let share = swept.len().div_ceil(sweepers);
    let interval = SWEEP.max(SWEEP_REQUEST * u32::try_from(share).unwrap_or(u32::MAX));
    queues.extend(swept.chunks(share).map(|watches| (watches.to_vec(), Some(interval))));
    Queues(queues)
}

impl Queues {
    /// What the operator should know if not every service is followed by blocking queries.
    fn notice(&self) -> Option<String> {
        let swept = self.0.iter().filter_map(|(watches, sweep)| Some((watches.len(), (*sweep)?)));
        let (services, threads) =
            swept.clone().fold((0, 0), |(sum, threads), (share, _)| (sum + share, threads + 1));
        let delay = swept.map(|(_, interval)| interval).max()?;
        let blocking = self.0.len() - threads;
        Some(format!(
            "more services than consul_connections: {blocking} are watched, {services} share \
             {threads} connection{} in a sweep and see changes within {}s",
            if threads == 1 { "" } else { "s" },
            delay.as_secs_f64().ceil()
        ))
    }
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
