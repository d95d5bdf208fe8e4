//! The targets of the plan, and their entries.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::process::ProcessId;
use crate::table::{Claim, Full, Table};

/// A target of the plan.
pub(super) struct Planned {
    pub(super) key: u128,
    scope: u64,
    /// Its entry; [`NONE`] as long as the table has no room for it.
    entry: AtomicUsize,
}

const NONE: usize = usize::MAX;

impl Planned {
    /// `scope`: by which overrides know the service.
    pub(super) fn new(key: u128, scope: u64) -> Planned {
        Planned { key, scope, entry: AtomicUsize::new(NONE) }
    }

    /// Its entry, if it has one. It loses it when another process frees what its own configuration
    /// does not have.
    pub(super) fn entry(&self, table: Table<'_>) -> Option<usize> {
        let entry = self.entry.load(Relaxed);
        (entry != NONE && table.key(entry) == self.key).then_some(entry)
    }

    /// Whether this is its entry, or was.
    pub(super) fn is_at(&self, entry: usize) -> bool {
        self.entry.load(Relaxed) == entry
    }

    /// Makes the entry if there is none.
    ///
    /// # Errors
    ///
    /// As of [`Table::claim`].
    pub(super) fn claim(&self, table: Table<'_>, me: ProcessId) -> Result<(), Full> {
        if self.entry(table).is_none() {
            let claim = Claim { scope: self.scope, ..self.key.into() };
            self.entry.store(table.claim(claim, me)?, Relaxed);
        }
        Ok(())
    }
}
