//! What an operator wants of instances and services, whatever Consul says, until it is lifted or
//! its time is over.
//!
//! A table of fixed size, in which nothing is ever driven out. An order about an instance belongs
//! to the instance, not to its slot or set: it is there again when the instance comes back.
//!
//! Orders are written under the publishers' lock and read without. The first word of a cell is a
//! digest of the others, so a cell that a killed writer has left half written is nobody's. Whoever
//! picks sees a change of orders as a change of the set: the entries in question get a new
//! generation.

use std::collections::HashSet;

use super::lock::Guard;
use super::machine::atomic::Ordering::{Acquire, Relaxed, Release};
use super::{H_ORDERS, H_ORDERS_BEGUN, Table, entry};
use crate::process::ProcessId;

mod order;
mod overrides;

pub(super) use order::WORDS;
pub use order::{Action, Order, Subject, order_text, scope, upstream};
use order::{DIGEST, SUBJECT, UNTIL};
pub use overrides::Overrides;

/// Most orders of a table.
pub(super) const MAX: usize = 1024;

/// Why an order can't be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotGiven {
    /// All cells are in use.
    #[error("there are {0} orders in force, which is as many as there can be")]
    Full(usize),
    /// Somebody holds the lock for long.
    #[error("the shared memory is busy")]
    Busy,
}

impl<'z> Table<'z> {
    /// How many orders there can be.
    pub fn order_capacity(&self) -> usize {
        self.layout.order_count
    }

    /// Cells that are, or were, in use; nearly always none.
    fn used_cells(&self) -> usize {
        (self.word(H_ORDERS).load(Acquire) as usize).min(self.layout.order_count)
    }

    fn cell(&self, cell: usize) -> Option<Order> {
        let first = self.layout.orders + cell * WORDS;
        let digest = self.word(first).load(Acquire);
        if digest == 0 {
            return None;
        }
        let mut words = [digest; WORDS];
        for (at, word) in words.iter_mut().enumerate().skip(SUBJECT) {
            *word = self.load(first + at);
        }
        Order::decode(&words)
    }

    /// The orders, whose time may be over; the oldest first. Of two about the same, which a killed
    /// writer leaves, the later one.
    pub fn orders(&self) -> Vec<Order> {
        let mut orders: Vec<Order> =
            (0..self.used_cells()).filter_map(|cell| self.cell(cell)).collect();
        orders.sort_by_key(|order| order.since_ms);
        orders.reverse();
        let mut seen = HashSet::new();
        orders.retain(|order| seen.insert(order.subject));
        orders.reverse();
        orders
    }

    /// What is ordered of instances now. Nothing is allocated if nothing is.
    pub fn overrides(&self, now_ms: u64) -> Overrides {
        if self.used_cells() == 0 {
            return Overrides::default();
        }
        let orders = self.orders().into_iter();
        let about_instances =
            orders.filter(|o| o.action != Action::Freeze && o.is_in_force(now_ms));
        Overrides(about_instances.map(|order| (order.subject, order.action)).collect())
    }

    /// Whether the set of the target is to stay as it is.
    pub fn is_frozen(&self, key: u128, now_ms: u64) -> bool {
        let of_target =
            |order: Order| order.subject == Subject::Target(key) && order.is_in_force(now_ms);
        (0..self.used_cells()).filter_map(|cell| self.cell(cell)).any(of_target)
    }

    /// Whether an order's time is over.
    pub fn has_overdue(&self, now_ms: u64) -> bool {
        (0..self.used_cells()).any(|cell| {
            let first = self.layout.orders + cell * WORDS;
            let until = self.load(first + UNTIL);
            self.load(first) != 0 && until != 0 && until <= now_ms
        })
    }

    /// Whether nobody has asked this of the zone before: orders that were kept elsewhere are to be
    /// given once, or they would be again after they were lifted.
    pub fn begin_orders(&self) -> bool {
        self.word(H_ORDERS_BEGUN).swap(1, Relaxed) == 0
    }

    /// Gives orders, all or none; each takes the place of an earlier one about the same. Waits for
    /// a moment at most.
    ///
    /// # Errors
    ///
    /// See [`NotGiven`].
    pub fn give_orders(&self, orders: &[Order], me: ProcessId) -> Result<(), NotGiven> {
        let guard = self.lock_soon(me).ok_or(NotGiven::Busy)?;
        let replaces = |cell: usize| {
            let held = self.cell(cell)?;
            orders.iter().position(|order| order.subject == held.subject)
        };
        let cells = 0..self.layout.order_count;
        let free: Vec<usize> = cells.clone().filter(|&cell| self.cell(cell).is_none()).collect();
        let old: Vec<(usize, usize)> =
            cells.filter_map(|cell| Some((cell, replaces(cell)?))).collect();
        let new = (0..orders.len()).filter(|n| old.iter().all(|(_, of)| of != n)).count();
        if new > free.len() {
            return Err(NotGiven::Full(self.layout.order_count));
        }
        // Where there is room, the new one is whole before the old one goes.
        let mut free = free.into_iter();
        for (number, order) in orders.iter().enumerate() {
            let mut before = old.iter().filter(|(_, of)| *of == number).map(|(cell, _)| *cell);
            let Some(cell) = free.next().or_else(|| before.next()) else { continue };
            guard.write_order(cell, order);
            before.for_each(|cell| guard.clear_order(cell));
        }
        guard.renew(orders);
        Ok(())
    }

    /// Lifts the orders that `which` chooses, and says which they were. `None` if somebody holds
    /// the lock for long.
    pub fn lift_orders(&self, which: impl Fn(&Order) -> bool, me: ProcessId) -> Option<Vec<Order>> {
        let guard = self.lock_soon(me)?;
        let mut lifted = Vec::new();
        let mut last = 0;
        for cell in 0..self.used_cells() {
            match self.cell(cell) {
                Some(order) if which(&order) => {
                    guard.clear_order(cell);
                    lifted.push(order);
                }
                Some(_) => last = cell + 1,
                // What a killed writer has left.
                None => guard.clear_order(cell),
            }
        }
        guard.renew(&lifted);
        self.word(H_ORDERS).store(last as u64, Relaxed);
        Some(lifted)
    }
}

impl Guard<'_, '_> {
    fn write_order(&self, cell: usize, order: &Order) {
        let table = self.table;
        let first = table.layout.orders + cell * WORDS;
        let used = table.used_cells().max(cell + 1);
        table.word(H_ORDERS).store(used as u64, Release);
        table.word(first).store(0, Relaxed);
        let words = order.encode();
        for (at, word) in words.iter().enumerate().skip(SUBJECT) {
            table.word(first + at).store(*word, Relaxed);
        }
        table.word(first).store(words[DIGEST], Release);
    }

    fn clear_order(&self, cell: usize) {
        let table = self.table;
        table.word(table.layout.orders + cell * WORDS).store(0, Relaxed);
    }

    /// Has the workers look at the sets of the instances that these orders are about.
    fn renew(&self, orders: &[Order]) {
        let is_meant = |of: u64| {
            orders.iter().any(
                |order| matches!(order.subject, Subject::Instance { scope, .. } if scope == of),
            )
        };
        self.renew_entries(is_meant);
    }

    /// After a writer was killed: it may have told nobody.
    pub(super) fn renew_all(&self) {
        if self.table.used_cells() != 0 {
            self.renew_entries(|_| true);
        }
    }

    /// The next generation but one has the same descriptor.
    fn renew_entries(&self, is_meant: impl Fn(u64) -> bool) {
        let table = self.table;
        for entry in 0..table.layout.entry_count {
            let scope = table.scope(entry);
            // Of 0 nobody has said whose it is.
            if table.has_data(entry) && (scope == 0 || is_meant(scope)) {
                let next = table.generation(entry).wrapping_add(2);
                table.entry_word(entry, entry::GENERATION).store(next, Release);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
