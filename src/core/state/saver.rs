//! The thread that keeps the state file up to date.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::content::State;
use super::file;
use crate::model::Level;
use crate::stop::Stop;
use crate::threads::join_all;

/// Shortest time between two writes.
const EVERY: Duration = Duration::from_secs(1);
/// How often the ages in the file are updated while no set changes.
const REFRESH: Duration = Duration::from_secs(60);
const STACK: usize = 256 * 1024;

/// The version of a target's data: if it moves, the file has to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// Generation of its set; 0 if it has none.
    pub generation: u64,
    /// When its last good answer came, milliseconds of the monotonic clock.
    pub last_good: u64,
}

/// Provides the state, and takes the outcome. Called from the saver's thread.
pub trait StateProvider: Send + Sync {
    /// One version for each target, always in the same order; `None` while another process is
    /// responsible for the file.
    fn versions(&self) -> Option<Vec<Version>>;

    /// The state to write; `None` as for [`StateProvider::versions`].
    fn state(&self) -> Option<State>;

    /// Takes the outcome of each attempt to write the file.
    fn saved(&self, outcome: Result<(), &io::Error>);

    /// Takes a line for the error log, without the `consul: ` before it.
    fn log(&self, level: Level, line: String);
}

/// The running thread, named `consul-state`. The caller must block all signals while it starts the
/// thread, as for [`Watcher`](crate::watch::Watcher). Dropping it stops the thread without waiting.
#[derive(Debug)]
pub struct Saver {
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
}

impl Saver {
    /// Starts the thread, which keeps the file at `path` up to date.
    ///
    /// # Errors
    ///
    /// No thread or descriptor is left.
    pub fn start(path: PathBuf, provider: Arc<dyn StateProvider>) -> io::Result<Saver> {
        let stop = Arc::new(Stop::new()?);
        let writer = Writer { path, provider, due: Due::default() };
        let thread = thread::Builder::new().name("consul-state".to_owned()).stack_size(STACK);
        let stopped = Arc::clone(&stop);
        let thread = thread.spawn(move || writer.run(&stopped))?;
        Ok(Saver { stop, threads: vec![thread] })
    }

    /// Tells the thread to write changes and end.
    pub fn stop(&self) {
        self.stop.raise();
    }

    /// Stops it and waits for its last write; `false` if that takes longer than `timeout`.
    pub fn join(mut self, timeout: Duration) -> bool {
        self.stop();
        join_all(std::mem::take(&mut self.threads), Instant::now() + timeout)
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.stop();
    }
}

/// When to write.
#[derive(Debug, Default)]
struct Due {
    /// The versions of the last attempt, and when it was.
    last: Option<(Vec<Version>, Instant)>,
    /// Since when writing fails.
    failing: Option<Instant>,
}

impl Due {
    fn is_due(&self, versions: &[Version], now: Instant) -> bool {
        if versions.iter().all(|version| version.generation == 0) {
            // No target has data: keep whatever the file holds.
            return false;
        }
        let Some((last, at)) = &self.last else { return true };
        let generations =
            |versions: &[Version]| versions.iter().map(|m| m.generation).collect::<Vec<_>>();
        self.failing.is_some()
            || generations(last) != generations(versions)
            || (last != versions && now.saturating_duration_since(*at) >= REFRESH)
    }
}

struct Writer {
    path: PathBuf,
    provider: Arc<dyn StateProvider>,
    due: Due,
}

impl Writer {
    fn run(mut self, stop: &Stop) {
        loop {
            let goes_on = stop.sleep(EVERY);
            let step = AssertUnwindSafe(|| self.step(Instant::now()));
            if catch_unwind(step).is_err() {
                let line = format!("{}: panic while it was written", name(&self.path));
                let _ = catch_unwind(AssertUnwindSafe(|| self.provider.log(Level::Error, line)));
            }
            if !goes_on {
                return;
            }
        }
    }

    fn step(&mut self, now: Instant) {
        let Some(versions) = self.provider.versions() else { return };
        if !self.due.is_due(&versions, now) {
            return;
        }
        let Some(state) = self.provider.state() else { return };
        match file::save(&self.path, &state.encode()) {
            // Another process is writing it: the next step tries again.
            Ok(false) => return,
            Ok(true) => {
                self.provider.saved(Ok(()));
                if let Some(since) = self.due.failing.take() {
                    let span = now.saturating_duration_since(since);
                    let line = format!("{}: written again after {span:.1?}", name(&self.path));
                    self.provider.log(Level::Notice, line);
                }
            }
            Err(error) => {
                self.provider.saved(Err(&error));
                if self.due.failing.is_none() {
                    self.due.failing = Some(now);
                    let line = format!(
                        "{}: can't be written ({error}), what it held before stays",
                        name(&self.path)
                    );
                    self.provider.log(Level::Error, line);
                }
            }
        }
        self.due.last = Some((versions, now));
    }
}

/// What the log calls the file.
pub fn name(path: &Path) -> String {
    format!("state file \"{}\"", path.display())
}

#[cfg(test)]
mod tests;
