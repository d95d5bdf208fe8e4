//! What an operator wants of instances and services, whatever Consul says, until it is removed or
//! its time is over.
//!
//! An override of an instance belongs to the instance, not to its slot or set: it is there again
//! when the instance comes back. Nothing is ever driven out.
//!
//! The zone has two areas for the list of all overrides. Who changes it writes the new list into the
//! area that is not in force, under the publishers' lock, and then stores which one is; so readers
//! need no lock, and a writer may be killed at any store. In a list the texts that overrides have in
//! common are stored once, and an override is a cell of numbers. Workers see a change of overrides
//! as a change of the set: the entries in question get a new generation.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::layout::{Table, header, overrides as words_of};
use super::lock::PublishGuard;
use super::platform::atomic::Ordering::{Acquire, Relaxed, Release};
use super::platform::atomic::fence;
use super::read::TRIES;
use super::words::{join, pack, split};
use crate::model::Override;
use crate::process::ProcessId;

mod by_instance;

pub use by_instance::Overrides;

/// Why overrides can't be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSet {
    /// The number or the texts of those in force leave no room.
    #[error("there is no room for more than the {0} in force")]
    Full(usize),
    /// Somebody holds the lock for long.
    #[error("the shared memory is busy")]
    Busy,
}

/// A list as it lies in its area.
#[derive(Default, Serialize, Deserialize)]
struct List<T> {
    texts: Vec<T>,
    cells: Vec<(Option<u128>, Override<u16>)>,
}

fn encode(overrides: &[Override]) -> Vec<u8> {
    if overrides.is_empty() {
        return Vec::new();
    }
    let (mut texts, mut numbers) = (Vec::new(), HashMap::new());
    let cell = |held: &'_ Override| {
        let cell = held.with_texts(|text| {
            let number = *numbers.entry(text.clone()).or_insert_with(|| {
                texts.push(text.clone());
                texts.len() - 1
            });
            u16::try_from(number)
        });
        Some((held.selection, cell.ok()?))
    };
    let cells = overrides.iter().filter_map(cell).collect();
    postcard::to_stdvec(&List { texts, cells }).unwrap_or_default()
}

/// At most so many, whatever lies there.
fn decode(bytes: &[u8], most: usize) -> Vec<Override> {
    let List { texts, cells } = postcard::from_bytes(bytes).unwrap_or_default();
    let whole = |(selection, cell): &(Option<u128>, Override<u16>)| {
        let text = |number: &u16| texts.get(usize::from(*number)).cloned().ok_or(());
        Some(Override { selection: *selection, ..cell.with_texts(text).ok()? })
    };
    cells.iter().filter_map(whole).take(most).collect()
}

impl Table<'_> {
    /// How many overrides there can be.
    pub fn override_capacity(&self) -> usize {
        self.layout.override_count
    }

    /// First word and size of the area of a list.
    fn override_area(&self, number: u32) -> (usize, usize) {
        let words = self.layout.override_count * words_of::AREA_WORDS;
        (self.layout.overrides + (number & 1) as usize * words, words)
    }

    /// All overrides, whose time may be over; the oldest first. `None` if writers were faster than
    /// the reader.
    pub fn all_overrides(&self) -> Option<Vec<Override>> {
        (0..TRIES).find_map(|_| {
            let list = self.word(header::OVERRIDES).load(Acquire);
            let (number, len) = split(list);
            let (first, words) = self.override_area(number);
            let used = first..first + (len as usize).div_ceil(8).min(words);
            let bytes: Vec<u8> = used.flat_map(|at| self.load(at).to_le_bytes()).collect();
            // Pairs with the fence of who takes the lock: a word of a later list in the same area
            // can only be seen after the one between them was in force.
            fence(Acquire);
            let is_whole = self.load(header::OVERRIDES) == list;
            is_whole.then(|| {
                if len == 0 { Vec::new() } else { decode(&bytes, self.override_capacity()) }
            })
        })
    }

    /// Moves with every change of the overrides.
    pub fn overrides_version(&self) -> u64 {
        split(self.load(header::OVERRIDES)).0.into()
    }

    /// The overrides in force; `None` as for [`Table::all_overrides`].
    pub fn overrides(&self, now_ms: u64) -> Option<Overrides> {
        let in_force = |held: &Override| held.is_in_force(now_ms);
        Some(self.all_overrides()?.into_iter().filter(in_force).collect())
    }

    /// Whether the set of this key is to stay as it is.
    pub fn is_frozen(&self, key: u128, now_ms: u64) -> bool {
        self.overrides(now_ms).is_none_or(|overrides| overrides.frozen(key).is_some())
    }

    /// Whether nobody has asked this of the zone before: overrides that were kept elsewhere are to
    /// be set once, or they would be again after they were removed.
    pub fn claim_overrides_restore(&self) -> bool {
        self.word(header::OVERRIDES_RESTORED).swap(1, Relaxed) == 0
    }

    /// Sets overrides, all or none; each takes the place of an earlier one about the same. Waits
    /// for a moment at most.
    ///
    /// # Errors
    ///
    /// See [`NotSet`].
    pub fn set_overrides(&self, new: &[Override], me: ProcessId) -> Result<(), NotSet> {
        let guard = self.lock_soon(me).ok_or(NotSet::Busy)?;
        let mut all = self.all_overrides().ok_or(NotSet::Busy)?;
        let in_force = all.len();
        all.retain(|held| !new.iter().any(|new| new.is_about_same(held)));
        all.extend_from_slice(new);
        guard.store_overrides(&all, new).then_some(()).ok_or(NotSet::Full(in_force))
    }

    /// Removes the overrides that `which` chooses, and says which they were. `None` if somebody
    /// holds the lock for long.
    pub fn remove_overrides(
        &self,
        which: impl Fn(&Override) -> bool,
        me: ProcessId,
    ) -> Option<Vec<Override>> {
        let guard = self.lock_soon(me)?;
        let (removed, rest): (Vec<_>, Vec<_>) = self.all_overrides()?.into_iter().partition(which);
        if !removed.is_empty() {
            guard.store_overrides(&rest, &removed);
        }
        Some(removed)
    }
}

impl PublishGuard<'_, '_> {
    /// Puts a list in force, and has the workers look at the sets of the instances whose overrides
    /// have changed; `false` if there is no room for it.
    fn store_overrides(&self, all: &[Override], changed: &[Override]) -> bool {
        let table = self.table;
        let next = split(table.load(header::OVERRIDES)).0.wrapping_add(1);
        let (bytes, (first, room)) = (encode(all), table.override_area(next));
        let words = pack(&bytes);
        if all.len() > table.layout.override_count || words.len() > room {
            return false;
        }
        for (at, word) in (first..).zip(words) {
            table.word(at).store(word, Relaxed);
        }
        table.word(header::OVERRIDES).store(join(next, bytes.len() as u32), Release);
        let scopes = changed.iter().filter(|held| held.selection.is_none());
        let scopes: HashSet<u64> = scopes.map(|held| held.instance().0).collect();
        self.renew_entries(|scope| scopes.contains(&scope));
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
