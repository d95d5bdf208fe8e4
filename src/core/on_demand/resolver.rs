//! The threads that find out which services exist, and follow them.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::PollFlags;

use super::channel::Channel;
use super::lookup::{KnownCatalog, PACE, Shared, State};
use super::store::ServiceStore;
use super::template::Templates;
use crate::consul::client::Client;
use crate::model::Level;
use crate::stop::Stop;
use crate::threads::{join_all, spawn};
use crate::watch::{Plan, Watcher};

/// Between the starts of two reads of a catalog there are at least [`PACE`] and this many times the
/// duration of the first, but not more than [`MAX_PACE`].
const SHARE: u32 = 4;
const MAX_PACE: Duration = Duration::from_secs(1);
/// How often the followed services are compared with those in the table.
const RECONCILE: Duration = Duration::from_secs(1);

/// The running threads: one that reads the channel, and one for each catalog, so that a slow
/// datacenter delays no other. Dropping it stops them, without waiting.
pub struct ServiceResolver {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
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
        let mut resolver = ServiceResolver { shared: Arc::clone(&shared), threads: Vec::new() };
        let reader = Arc::clone(&shared);
        resolver.threads.push(spawn(move || reader.catch_panics(|| reader.read_channel()))?);
        for number in 0..count {
            let shared = Arc::clone(&shared);
            let read = move || shared.catch_panics(|| shared.read_catalog(number));
            resolver.threads.push(spawn(read)?);
        }
        Ok(resolver)
    }

    /// Stops the threads, whatever they wait for, without waiting for their end.
    pub fn stop(&self) {
        self.shared.stop.raise();
        // A thread that has just found it not raised is waiting by now.
        drop(self.shared.state.lock());
        self.shared.wanted.notify_all();
    }

    /// Stops the threads and waits until they have ended; `false` if they have not within `timeout`,
    /// and then they end by themselves later.
    pub fn join(mut self, timeout: Duration) -> bool {
        self.stop();
        join_all(std::mem::take(&mut self.threads), Instant::now() + timeout)
    }
}

impl Drop for ServiceResolver {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Runs a thread's body until it ends without a panic.
    fn catch_panics(&self, body: impl Fn()) {
        while catch_unwind(AssertUnwindSafe(&body)).is_err() {
            let line = "panic while resolving a service, continuing".to_owned();
            let _ = catch_unwind(AssertUnwindSafe(|| self.store.log(Level::Error, line)));
            self.stop.sleep(RECONCILE);
        }
    }

    /// Takes the names from the workers, until there is a newer configuration: its resolver gets the
    /// names that wait, and those of the old workers too.
    fn read_channel(&self) {
        let mut reconciled = None::<Instant>;
        while !self.is_over() {
            if reconciled.is_none_or(|last| last.elapsed() >= RECONCILE) {
                reconciled = Some(Instant::now());
                self.reconcile(&mut self.state.lock());
            }
            if let Some(service) = self.channel.take() {
                self.resolve(&mut self.state.lock(), service, Instant::now());
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

    /// Reads a catalog whenever a service waits for it.
    fn read_catalog(&self, number: usize) {
        let Some(catalog) = self.templates.catalogs().get(number) else { return };
        let mut client = Client::new(Arc::clone(&self.stop));
        while self.until_wanted(number) {
            let began = Instant::now();
            let read = catalog.read(&mut client);
            if self.stop.is_raised() {
                return;
            }
            let mut state = self.state.lock();
            let has_failed = matches!(state.catalogs[number].names, Some(Err(_)));
            let names = read.map_err(|error| {
                if !has_failed {
                    let line = format!("cannot read the catalog of services ({error})");
                    self.store.log(Level::Error, line);
                }
                began
            });
            state.catalogs[number] = KnownCatalog { names: Some(names), is_wanted: false };
            for (service, since) in std::mem::take(&mut state.pending) {
                self.resolve(&mut state, service, since);
            }
            drop(state);
            let took = began.elapsed();
            self.stop.sleep((took * SHARE).clamp(PACE, MAX_PACE).saturating_sub(took));
        }
    }

    /// Waits until a service needs the catalog; `false` if the threads stop.
    fn until_wanted(&self, number: usize) -> bool {
        let mut state = self.state.lock();
        while !state.catalogs[number].is_wanted && !self.stop.is_raised() {
            self.wanted.wait(&mut state);
        }
        !self.stop.is_raised()
    }
}
