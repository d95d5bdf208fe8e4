//! What worker 0 does for the API: it removes expired overrides, and queries Consul for a resync.

use crate::clock::Clock;
use crate::control;
use crate::model::Level;
use crate::table::Table;
use crate::watch::{Sink, Watcher};

use super::writer::TableWriter;

/// The resyncs that worker 0 has started.
#[derive(Debug, Default)]
pub struct Resync {
    asked: u64,
}

impl Resync {
    /// Starts the resyncs that workers have requested.
    pub fn ask(&mut self, table: Table<'_>, sink: &TableWriter, watcher: Option<&Watcher>) {
        let asked = table.resync_requests();
        let Some(watcher) = watcher.filter(|_| asked != self.asked) else { return };
        self.asked = asked;
        for (entry, key) in table.take_resyncs() {
            if let Some(number) = sink.number_of(entry, key) {
                watcher.request_resync(number);
            }
        }
    }
}

/// Runs once a second in worker 0: removes expired overrides.
pub fn end_expired(table: Table<'_>, sink: &TableWriter) {
    table.recover_orphaned_lock(sink.me());
    let (now, held) = (Clock::now().monotonic, table.all_overrides().unwrap_or_default());
    // A frozen set must not be dropped as unused.
    for entry in held.iter().filter_map(|held| table.find(held.selection?)) {
        table.note_used(entry, now);
    }
    if held.iter().all(|held| held.is_in_force(now)) {
        return;
    }
    let over = table.remove_overrides(|held| !held.is_in_force(now), sink.me());
    for held in over.unwrap_or_default() {
        sink.log(Level::Notice, control::expired_line(&held));
        if let Some(entry) = held.selection.and_then(|key| table.find(key)) {
            table.request_resync(entry);
        }
    }
}
