//! Where a block's peers come from.

use std::cell::Cell;

use nginx_consul_core::model;
use nginx_consul_core::table::{PeerSnapshot, Table};

use super::clock::now;

/// A set that a block's peers come from.
pub(crate) struct Source {
    pub(super) key: u128,
    /// Its number in the plan; of a service that only requests name, `usize::MAX`.
    pub(crate) target: usize,
    pub(crate) datacenter: Option<String>,
    /// Where it is in the table, once found.
    pub(super) entry: Cell<Option<usize>>,
}

impl Source {
    pub(crate) fn new(key: u128, target: usize, datacenter: Option<String>) -> Source {
        Source { key, target, datacenter, entry: Cell::new(None) }
    }

    /// Whether a block of the configuration names its service.
    pub(super) fn is_fixed(&self) -> bool {
        self.target != usize::MAX
    }

    /// Looks for its place in the table.
    pub(super) fn find(&self, table: Table<'static>, service: &str) {
        let entry = table.find(self.key);
        self.entry.set(entry);
        // Worker 0 knows only those of the configuration.
        if let Some(entry) = entry.filter(|_| !self.is_fixed()) {
            table.note_scope(entry, self.scope(service));
        }
    }

    fn scope(&self, service: &str) -> u64 {
        model::service_scope(service, self.datacenter.as_deref())
    }

    /// Its place in the table, if it still has it.
    pub(super) fn present(&self, table: Table<'static>) -> Option<usize> {
        self.entry.get().filter(|&entry| table.key(entry) == self.key)
    }

    /// The generation in force; `None` if the set has no place in the table.
    pub(super) fn generation(&self, table: &Table<'static>) -> Option<u64> {
        self.entry.get().map(|entry| table.generation(entry))
    }

    /// The present set, which is that of `held` until the first answer; `None` if the caller has to
    /// stay with what it has.
    pub(super) fn read(
        &self,
        table: Table<'static>,
        with_labels: bool,
        held: impl FnOnce() -> PeerSnapshot,
    ) -> Option<PeerSnapshot> {
        let entry = self.entry.get()?;
        if table.key(entry) != self.key {
            self.entry.set(None);
            return None;
        }
        let generation = table.generation(entry);
        if !table.has_data(entry) {
            let mut image = held();
            image.generation = generation;
            return Some(image);
        }
        if with_labels { table.read(entry, self.key) } else { table.read_records(entry, self.key) }
    }
}

/// Makes the sets of a block, by its service and name, what an operator wants them to be. After
/// they were read: an override that comes later moves their generations. `None` as for
/// [`Source::read`].
pub(super) fn apply_overrides<'a>(
    table: Table<'static>,
    (service, upstream): (&str, &[u8]),
    sources: &[Source],
    images: impl Iterator<Item = &'a mut PeerSnapshot>,
) -> Option<()> {
    let overrides = table.overrides(now().millis)?;
    for (source, image) in sources.iter().zip(images) {
        overrides.apply((source.scope(service), upstream), &mut image.records);
    }
    Some(())
}
