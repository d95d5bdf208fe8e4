//! The publishers' lock, and the recovery from a holder that was killed. Requests never take it.
//!
//! Only publishers wait for each other: threads of worker 0, the master and its child that asks for
//! the first answers, and for a moment around a reload the worker 0 of two configurations. The lock
//! word names the process that holds it, so a lock whose holder was killed is taken over.

use super::layout::{Table, entry, header};
use super::platform::atomic::{
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    fence,
};
use super::platform::{is_alive, monotonic_ms, wait};
use crate::process::ProcessId;

/// How often an event loop tries to take the lock: after a hundred tries, every 100 µs.
const PATIENCE: u32 = 300;

/// The lock, held.
pub(crate) struct PublishGuard<'t, 'z> {
    pub(crate) table: &'t Table<'z>,
}

impl<'z> Table<'z> {
    /// Waits for the lock; `me` is the calling process. A thread waits for ever if the holder is
    /// stopped, an event loop as in [`Table::lock_soon`].
    pub(crate) fn lock<'t>(&'t self, me: ProcessId) -> Option<PublishGuard<'t, 'z>> {
        self.lock_within(me, if self.is_event_loop { PATIENCE } else { u32::MAX })
    }

    /// As [`Table::lock`], for an event loop: `None` if it takes more than 20 ms.
    pub(crate) fn lock_soon<'t>(&'t self, me: ProcessId) -> Option<PublishGuard<'t, 'z>> {
        self.lock_within(me, PATIENCE)
    }

    fn lock_within<'t>(&'t self, me: ProcessId, most: u32) -> Option<PublishGuard<'t, 'z>> {
        let mut tries = 0;
        while !self.try_lock(me) {
            if tries == most {
                return None;
            }
            wait(&mut tries);
        }
        Some(self.locked())
    }

    /// Recovers from a holder that was killed, if there was one. Doesn't wait long.
    pub fn recover_orphaned_lock(&self, me: ProcessId) {
        let holder = self.load(header::LOCK);
        if self.load(header::DIRTY) != 0 && (holder == 0 || !is_alive(holder)) {
            drop(self.lock_soon(me));
        }
    }

    /// Takes the lock if it is free or its holder was killed.
    fn try_lock(&self, me: ProcessId) -> bool {
        let word = self.word(header::LOCK);
        let take = |from| word.compare_exchange(from, me.get(), AcqRel, Acquire);
        match take(0) {
            Ok(_) => true,
            Err(holder) => holder != me.get() && !is_alive(holder) && take(holder).is_ok(),
        }
    }

    fn locked<'t>(&'t self) -> PublishGuard<'t, 'z> {
        let guard = PublishGuard { table: self };
        if self.word(header::DIRTY).swap(1, Relaxed) != 0 {
            guard.recover();
            guard.renew_all();
        }
        // Pairs with the readers' fence: they see the new generation before any word of a block
        // that is written over the old one.
        fence(Release);
        guard
    }
}

impl PublishGuard<'_, '_> {
    /// Notes that the owner of every slot that no block names has left, and where the others are.
    pub(super) fn recover(&self) {
        let table = self.table;
        let mut named = vec![false; table.layout.slot_count];
        for entry in 0..table.layout.entry_count {
            if table.key(entry) != 0 {
                for record in table.records_by_identity(entry, table.generation(entry)).values() {
                    named[table.slot_number(record.slot) as usize] = true;
                    let counters = table.peer_counters(record.slot);
                    counters.join(counters.started(), record.address_id());
                }
            }
        }
        let now = monotonic_ms();
        let others = named.iter().enumerate().filter(|(_, named)| !**named);
        let others = others.filter_map(|(slot, _)| table.slot_at(slot));
        others.for_each(|slot| table.note_left(slot, now));
    }

    /// After a writer of overrides was killed, who may not have told the workers.
    fn renew_all(&self) {
        if self.table.load(header::OVERRIDES) != 0 {
            self.renew_entries(|_| true);
        }
    }

    /// Moves the generation of entries whose scope `is_meant`, so that workers read them again. The
    /// next generation but one has the same descriptor.
    pub(super) fn renew_entries(&self, is_meant: impl Fn(u64) -> bool) {
        let table = self.table;
        for entry in 0..table.layout.entry_count {
            if table.has_data(entry) && is_meant(table.scope(entry)) {
                let next = table.generation(entry).wrapping_add(2);
                table.entry_word(entry, entry::GENERATION).store(next, Release);
            }
        }
    }
}

impl Drop for PublishGuard<'_, '_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.table.word(header::DIRTY).store(0, Relaxed);
        }
        self.table.word(header::LOCK).store(0, Release);
    }
}
