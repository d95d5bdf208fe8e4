//! What worker 0 does for operators: it ends overrides whose time is over, and has Consul asked.

use crate::control;
use crate::model::Level;
use crate::table::Table;
use crate::watch::{Sink, Watcher};

use super::writer::{TableWriter, now_ms};

/// What worker 0 has done of what workers ask of it.
#[derive(Debug, Default)]
pub struct Resync {
    asked: u64,
}

impl Resync {
    /// Has Consul asked about the services that somebody wants asked about.
    pub fn ask(&mut self, table: Table<'_>, sink: &TableWriter, engine: Option<&Watcher>) {
        let asked = table.resync_requests();
        let Some(engine) = engine.filter(|_| asked != self.asked) else { return };
        self.asked = asked;
        for (entry, key) in table.take_resyncs() {
            if let Some(number) = sink.number_of(entry, key) {
                engine.request_resync(number);
            }
        }
    }
}

/// Once a second, in worker 0: ends what is over.
pub fn end_expired(table: Table<'_>, sink: &TableWriter) {
    table.recover_orphaned_lock(sink.me());
    let (now, held) = (now_ms(), table.all_overrides().unwrap_or_default());
    // A frozen set must not go because nobody asks for it.
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
