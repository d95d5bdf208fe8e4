//! The publishers' lock. Requests never take it.
//!
//! Only publishers wait for each other: threads of worker 0, the master and its child that asks for
//! the first answers, and for a moment around a reload the worker 0 of two configurations. The lock
//! word names the process that holds it, so a lock whose holder was killed is taken over.

use super::machine::atomic::{
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    fence,
};
use super::machine::{is_alive, wait};
use super::{H_DIRTY, H_LOCK, Table};
use crate::process::ProcessId;

/// The lock, held.
pub(crate) struct Guard<'t, 'z> {
    pub(crate) table: &'t Table<'z>,
}

impl<'z> Table<'z> {
    /// Waits for the lock; `me` is the calling process. Must not be called from an event loop.
    pub(crate) fn lock<'t>(&'t self, me: ProcessId) -> Guard<'t, 'z> {
        let word = self.word(H_LOCK);
        let mut tries = 0u32;
        loop {
            match word.compare_exchange(0, me.get(), AcqRel, Acquire) {
                Ok(_) => break,
                Err(holder) if holder != me.get() && !is_alive(holder) => {
                    if word.compare_exchange(holder, me.get(), AcqRel, Acquire).is_ok() {
                        break;
                    }
                }
                Err(_) => wait(&mut tries),
            }
        }
        let guard = Guard { table: self };
        if self.word(H_DIRTY).swap(1, Relaxed) != 0 {
            guard.recover();
        }
        // Pairs with the readers' fence: they see the new generation before any word of a block
        // that is written over the old one.
        fence(Release);
        guard
    }
}

impl Drop for Guard<'_, '_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.table.word(H_DIRTY).store(0, Relaxed);
        }
        self.table.word(H_LOCK).store(0, Release);
    }
}
