//! One log line about several services.

use std::time::{Duration, Instant};

/// How long the first service waits for others.
const GATHER: Duration = Duration::from_millis(100);
/// Shortest time between two lines of the same kind.
const REPEAT: Duration = Duration::from_secs(10);

/// Services that a line is about, and what it says of the first.
pub(super) struct Lines<T> {
    first: Option<(String, T)>,
    count: usize,
    due: Option<Instant>,
    written: Option<Instant>,
}

impl<T> Default for Lines<T> {
    fn default() -> Self {
        Lines { first: None, count: 0, due: None, written: None }
    }
}

impl<T> Lines<T> {
    /// One more service. The line is written soon, but not too soon after the last.
    pub(super) fn add(&mut self, name: String, what: T, now: Instant) {
        let earliest = self.written.map_or(now, |written| now.max(written + REPEAT));
        self.add_by(name, what, earliest + GATHER);
    }

    /// One more service; the line is written at `due` if no other service waits.
    pub(super) fn add_by(&mut self, name: String, what: T, due: Instant) {
        self.first.get_or_insert((name, what));
        self.count += 1;
        self.due.get_or_insert(due);
    }

    /// When the line is to be written, if there is one.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether there was a line.
    pub(super) fn is_written(&self) -> bool {
        self.written.is_some()
    }

    /// Has the line written now.
    pub(super) fn hasten(&mut self, now: Instant) {
        self.due = self.due.map(|due| due.min(now));
    }

    /// The services, and what is said of the first, if the line is to be written by `now`.
    pub(super) fn take(&mut self, now: Instant) -> Option<(String, T)> {
        self.due.filter(|due| *due <= now)?;
        let (name, what) = self.first.take()?;
        let who = match self.count {
            0 | 1 => name,
            2 => format!("{name} and another one"),
            count => format!("{name} and {} others", count - 1),
        };
        *self = Lines { written: Some(now), ..Lines::default() };
        Some((who, what))
    }
}
