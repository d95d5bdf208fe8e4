//! One log line about several services: "service "a" and 3 others: …".

use std::time::{Duration, Instant};

/// How long the first service waits for others.
const GATHER: Duration = Duration::from_millis(100);
/// Shortest time between two lines of the same kind.
const REPEAT: Duration = Duration::from_secs(10);

/// The services that the line is about, and what it says about the first.
pub(super) struct GroupedLine<T> {
    first: Option<(String, T)>,
    count: usize,
    due: Option<Instant>,
    written: Option<Instant>,
}

impl<T> Default for GroupedLine<T> {
    fn default() -> Self {
        GroupedLine { first: None, count: 0, due: None, written: None }
    }
}

impl<T> GroupedLine<T> {
    /// Adds a service. The line is written soon, but not too soon after the last one.
    pub(super) fn add(&mut self, name: String, what: T, now: Instant) {
        let earliest = self.written.map_or(now, |written| now.max(written + REPEAT));
        self.add_by(name, what, earliest + GATHER);
    }

    /// Adds a service; the line is written at `due` unless it is due already.
    pub(super) fn add_by(&mut self, name: String, what: T, due: Instant) {
        self.first.get_or_insert((name, what));
        self.count += 1;
        self.due.get_or_insert(due);
    }

    /// When the line is to be written, if there is one.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether a line was written.
    pub(super) fn is_written(&self) -> bool {
        self.written.is_some()
    }

    /// Makes the line due now.
    pub(super) fn bring_forward(&mut self, now: Instant) {
        self.due = self.due.map(|due| due.min(now));
    }

    /// The services, and what the line says about the first, if it is due by `now`.
    pub(super) fn take(&mut self, now: Instant) -> Option<(String, T)> {
        self.due.filter(|due| *due <= now)?;
        let (name, what) = self.first.take()?;
        let who = match self.count {
            0 | 1 => name,
            2 => format!("{name} and another one"),
            count => format!("{name} and {} others", count - 1),
        };
        *self = GroupedLine { written: Some(now), ..GroupedLine::default() };
        Some((who, what))
    }
}
