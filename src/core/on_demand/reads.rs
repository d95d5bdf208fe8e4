//! The threads that read catalogs: two for each, so that a datacenter that doesn't answer delays no
//! other. One reads the names whenever a service waits for them. The other waits for the names to
//! change, while requests name services that exist without the tags they need.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::catalog::{Catalog, CatalogNames, CatalogReader, WAIT};
use super::lookup::{PACE, Shared};
use crate::model::Level;
use crate::stop::Stop;
use crate::threads::spawn;

/// Between the starts of two reads of a catalog there are at least [`PACE`] and this many times the
/// duration of the first, but not more than [`MAX_PACE`].
const SHARE: u32 = 4;
const MAX_PACE: Duration = Duration::from_secs(1);
/// A read takes as long as requests wait for services, within these bounds.
const MIN_PATIENCE: Duration = Duration::from_secs(1);
const MAX_PATIENCE: Duration = Duration::from_secs(10);

/// Which threads run, by catalog.
#[derive(Default)]
pub(super) struct ReadThreads {
    handles: Vec<[Option<JoinHandle<()>>; 2]>,
    /// It was logged that one can't be started.
    is_short: bool,
}

impl ReadThreads {
    /// All threads that were started.
    pub(super) fn into_handles(self) -> Vec<JoinHandle<()>> {
        self.handles.into_iter().flatten().flatten().collect()
    }
}

impl Shared {
    /// Starts those threads that don't run. The services of a catalog whose thread the system refuses
    /// can't be looked up until the next call.
    pub(super) fn start_reads(self: &Arc<Self>, threads: &mut ReadThreads) {
        let catalogs = self.templates.catalogs().len();
        threads.handles.resize_with(catalogs, Default::default);
        let mut refused = None;
        for (number, handles) in threads.handles.iter_mut().enumerate() {
            let tags = |shared: &Shared| {
                let mut templates = shared.templates.with_catalog(number);
                templates.any(|template| !template.allowed.tags.is_empty())
            };
            for (role, handle) in handles.iter_mut().enumerate() {
                let runs = handle.as_ref().is_some_and(|handle| !handle.is_finished());
                let is_needed = role == 0 || tags(self);
                if runs || !is_needed || self.stop.is_raised() {
                    continue;
                }
                match self.start_read(number, role == 0) {
                    Ok(started) => *handle = Some(started),
                    Err(error) => refused = Some(error),
                }
            }
        }
        if let Some(error) = &refused {
            if !threads.is_short {
                let line = format!("cannot start another thread that looks names up ({error})");
                self.store.log(Level::Error, line);
            }
        }
        threads.is_short = refused.is_some();
    }

    fn start_read(self: &Arc<Self>, number: usize, reads: bool) -> io::Result<JoinHandle<()>> {
        let shared = Arc::clone(self);
        spawn(move || {
            shared.catch_panics(|| match reads {
                true => shared.read_catalog(number),
                false => shared.follow_catalog(number),
            });
        })
    }

    /// Reads a catalog whenever a service waits for it.
    fn read_catalog(&self, number: usize) {
        // Without a descriptor, the thread is started again.
        let Ok(stop) = Stop::new() else { return };
        let mut stop = Arc::new(stop);
        let Some(mut reader) = self.reader(number, &stop) else { return };
        while self.until_wanted(number, &stop) {
            let began = Instant::now();
            let read = reader.read();
            if self.stop.is_raised() {
                return;
            }
            if stop.is_raised() {
                let Ok(next) = Stop::new() else { return };
                stop = Arc::new(next);
                reader.restart(Arc::clone(&stop));
                continue;
            }
            self.take_names(number, read, (began, reader.server()));
            let took = began.elapsed();
            self.stop.sleep((took * SHARE).clamp(PACE, MAX_PACE).saturating_sub(took));
        }
    }

    fn reader(&self, number: usize, stop: &Arc<Stop>) -> Option<CatalogReader> {
        let catalog: Catalog = self.templates.catalogs().get(number)?.clone();
        let longest = self.templates.with_catalog(number).map(|template| template.patience).max();
        let patience = longest.unwrap_or_default().clamp(MIN_PATIENCE, MAX_PATIENCE);
        Some(CatalogReader::new(catalog, patience, Arc::clone(stop)))
    }

    /// Waits until a service needs the catalog; `false` if the threads stop.
    fn until_wanted(&self, number: usize, stop: &Arc<Stop>) -> bool {
        let mut state = self.state.lock();
        while !state.catalogs[number].is_wanted && !self.stop.is_raised() {
            self.wanted.wait(&mut state);
        }
        state.catalogs[number].reading = Some(Arc::clone(stop));
        !self.stop.is_raised()
    }

    /// Takes the result of a read, and finds out about the services that wait.
    fn take_names(
        &self,
        number: usize,
        read: Result<CatalogNames, String>,
        (began, server): (Instant, usize),
    ) {
        let mut state = self.state.lock();
        let is_awaited = !state.pending.is_empty();
        let known = &mut state.catalogs[number];
        (known.is_wanted, known.is_wanted_for_idle, known.reading) = (false, false, None);
        known.server = server;
        match &read {
            Ok(_) => known.is_failure_logged = false,
            Err(error) if is_awaited && !known.is_failure_logged => {
                known.is_failure_logged = true;
                let line = format!("cannot read the catalog of services ({error})");
                self.store.log(Level::Error, line);
            }
            Err(_) => {}
        }
        known.names = Some(read.map_err(|_| began));
        for (service, asked) in std::mem::take(&mut state.pending) {
            self.resolve(&mut state, service, asked);
        }
    }

    /// While requests name services that exist without the tags: reads the catalog whenever it
    /// changes.
    fn follow_catalog(&self, number: usize) {
        let Some(mut reader) = self.reader(number, &self.stop) else { return };
        while let Some((server, index)) = self.until_followed(number) {
            let read = reader.read_change(server, index);
            if self.stop.is_raised() {
                return;
            }
            let mut state = self.state.lock();
            let known = &mut state.catalogs[number];
            match (read, &known.names) {
                // A read has begun since, and tells more.
                (Ok(names), Some(Ok(newer))) if newer.began > names.began => {}
                (Ok(names), _) => known.names = Some(Ok(names)),
                (Err(_), _) => (known.is_current, known.untagged_at) = (false, None),
            }
            drop(state);
            self.stop.sleep(MAX_PACE);
        }
    }

    /// Waits until requests name services without the tags; the server that listed the names, and
    /// their index. `None` if the threads stop.
    fn until_followed(&self, number: usize) -> Option<(usize, u64)> {
        let mut state = self.state.lock();
        while !self.stop.is_raised() {
            let known = &mut state.catalogs[number];
            let is_wanted = known.untagged_at.is_some_and(|at| at.elapsed() < WAIT);
            known.is_current = is_wanted && matches!(known.names, Some(Ok(_)));
            if let (true, Some(Ok(names))) = (is_wanted, &known.names) {
                return Some((known.server, names.index));
            }
            self.wanted.wait(&mut state);
        }
        None
    }

    /// Runs a thread's body until it ends without a panic.
    pub(super) fn catch_panics(&self, body: impl Fn()) {
        while catch_unwind(AssertUnwindSafe(&body)).is_err() {
            let line = "panic while resolving a service, continuing".to_owned();
            let _ = catch_unwind(AssertUnwindSafe(|| self.store.log(Level::Error, line)));
            self.stop.sleep(MAX_PACE);
        }
    }
}
