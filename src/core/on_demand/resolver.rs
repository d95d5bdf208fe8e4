//! The threads that find out which services exist, and follow them.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::PollFlags;

use super::channel::Channel;
use super::lookup::{Asked, Shared, State};
use super::reads::ReadThreads;
use super::store::ServiceStore;
use super::template::Templates;
use crate::stop::Stop;
use crate::threads::{join_all, spawn};
use crate::watch::{Plan, Watcher};

/// How long the thread that has started the others waits for their end.
const END: Duration = Duration::from_secs(1);
/// How often the followed services are compared with those in the table.
const RECONCILE: Duration = Duration::from_secs(1);

/// The running threads: one that reads the channel and starts those that read catalogs. Dropping it
/// stops them, without waiting.
pub struct ServiceResolver {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

impl ServiceResolver {
    /// Starts the threads; the services that an earlier configuration followed are taken over. See
    /// [`Watcher`] for the signals to block.
    ///
    /// # Errors
    ///
    /// No thread or descriptor is left.
    pub fn start(
        templates: Arc<Templates>,
        plan: Arc<Plan>,
        store: Arc<dyn ServiceStore>,
        watcher: Arc<Watcher>,
    ) -> io::Result<ServiceResolver> {
        let channel = Channel::get().ok_or(io::ErrorKind::NotConnected)?;
        let count = templates.catalogs().len();
        let shared = Arc::new(Shared {
            templates,
            plan,
            channel,
            store,
            watcher,
            stop: Arc::new(Stop::new()?),
            state: Mutex::new(State::new(count)),
            wanted: Condvar::new(),
        });
        let reading = Arc::clone(&shared);
        let reader = spawn(move || {
            let threads = Mutex::new(ReadThreads::default());
            reading.catch_panics(|| reading.read_channel(&mut threads.lock()));
            reading.stop.sleep(Duration::MAX);
            join_all(threads.into_inner().into_handles(), Instant::now() + END);
        })?;
        Ok(ServiceResolver { shared, reader: Some(reader) })
    }

    /// Stops the threads, whatever they wait for, without waiting for their end.
    pub fn stop(&self) {
        self.shared.stop.raise();
        // A thread that has just found it not raised is waiting by now, or reads.
        let state = self.shared.state.lock();
        let reading = state.catalogs.iter().filter_map(|known| known.reading.as_ref());
        reading.for_each(|stop| stop.raise());
        drop(state);
        self.shared.wanted.notify_all();
    }

    /// Stops the threads and waits until they have ended; `false` if they have not within `timeout`,
    /// and then they end by themselves later.
    pub fn join(mut self, timeout: Duration) -> bool {
        self.stop();
        join_all(self.reader.take().into_iter().collect(), Instant::now() + timeout)
    }
}

impl Drop for ServiceResolver {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Takes the names from the workers, until there is a newer configuration: its resolver gets the
    /// names that wait, and those of the old workers too.
    fn read_channel(self: &Arc<Self>, threads: &mut ReadThreads) {
        let mut reconciled = None::<Instant>;
        while !self.is_over() {
            if reconciled.is_none_or(|last| last.elapsed() >= RECONCILE) {
                reconciled = Some(Instant::now());
                self.start_reads(threads);
                let mut state = self.state.lock();
                self.end_unwanted(&mut state);
                self.reconcile(&mut state);
            }
            if let Some(service) = self.channel.take() {
                self.resolve(&mut self.state.lock(), service, Asked::now());
                continue;
            }
            let deadline = Some(Instant::now() + RECONCILE);
            if self.stop.wait(self.channel.as_fd(), PollFlags::IN, deadline).is_err() {
                self.stop.sleep(RECONCILE);
            }
        }
        let pending = std::mem::take(&mut self.state.lock().pending);
        pending.keys().for_each(|service| self.give_back(service));
    }
}
