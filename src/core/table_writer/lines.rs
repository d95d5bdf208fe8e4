//! Log lines that wait for the event loop: other threads must not write to nginx's log.

use std::collections::VecDeque;

use crate::model::Level;

/// A line for the error log, without the `consul: ` before it.
pub type Line = (Level, String);

/// Most lines that wait; further ones are dropped and counted.
const MAX_LINES: usize = 16 * 1024;

/// The lines that wait.
#[derive(Default)]
pub(super) struct Lines {
    waiting: VecDeque<Line>,
    dropped: usize,
}

impl Lines {
    pub(super) fn push(&mut self, line: Line) {
        if self.waiting.len() < MAX_LINES {
            self.waiting.push_back(line);
        } else {
            self.dropped += 1;
        }
    }

    /// The lines so far.
    pub(super) fn take(&mut self) -> Vec<Line> {
        let mut taken: Vec<Line> = self.waiting.drain(..).collect();
        if self.dropped > 0 {
            taken.push((Level::Warn, format!("{} log lines dropped", self.dropped)));
            self.dropped = 0;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_without_room_are_counted() {
        let mut lines = Lines::default();
        for number in 0..MAX_LINES + 2 {
            lines.push((Level::Info, number.to_string()));
        }
        let taken = lines.take();
        assert_eq!(taken.len(), MAX_LINES + 1);
        assert_eq!(taken.last(), Some(&(Level::Warn, "2 log lines dropped".to_owned())));
        assert_eq!(lines.take(), []);
    }
}
