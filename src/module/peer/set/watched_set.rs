//! A set of a service's instances, as it is in the table.

use std::cell::Cell;

use nginx_consul_core::model::service_scope;
use nginx_consul_core::table::{PeerSnapshot, Table};

use super::super::worker::monotonic;

/// A set that an upstream's peers come from.
pub(crate) struct WatchedSet {
    pub(crate) key: u128,
    /// Its number in the plan; of a service that only requests name, `usize::MAX`.
    pub(crate) target: usize,
    pub(crate) datacenter: Option<String>,
    /// Its entry in the table, once found.
    pub(super) entry: Cell<Option<usize>>,
}

impl WatchedSet {
    pub(crate) fn new(key: u128, target: usize, datacenter: Option<String>) -> WatchedSet {
        WatchedSet { key, target, datacenter, entry: Cell::new(None) }
    }

    /// Whether the configuration names its service.
    pub(super) fn is_fixed(&self) -> bool {
        self.target != usize::MAX
    }

    /// Looks for its entry in the table.
    pub(super) fn find(&self, table: &Table<'static>) {
        self.entry.set(table.find(self.key));
    }

    fn scope(&self, service: &str) -> u64 {
        service_scope(service, self.datacenter.as_deref())
    }

    /// Its entry in the table, if that is still its own.
    pub(crate) fn present(&self, table: &Table<'static>) -> Option<usize> {
        self.entry.get().filter(|&entry| table.key(entry) == self.key)
    }

    /// The present set, which is that of `held` until the first answer; `None` if the caller has to
    /// stay with what it has.
    pub(super) fn read(
        &self,
        table: &Table<'static>,
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

/// Applies the operator's overrides to the sets of an upstream, given by its service and name. Called
/// after they were read: a later override moves their generations. `None` as for
/// [`WatchedSet::read`].
pub(super) fn apply_overrides<'a>(
    table: &Table<'static>,
    (service, upstream): (&str, &[u8]),
    sets: &[WatchedSet],
    images: impl Iterator<Item = &'a mut PeerSnapshot>,
) -> Option<()> {
    let overrides = table.overrides(monotonic())?;
    for (set, image) in sets.iter().zip(images) {
        overrides.apply((set.scope(service), upstream), &mut image.records);
    }
    Some(())
}
