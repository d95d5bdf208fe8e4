//! Overrides: what an operator has set for instances and services, whatever Consul says, until it is
//! removed or expires.
//!
//! An override of an instance belongs to the instance, not to its slot or set: when the instance
//! comes back, the override applies again. No override is ever evicted.
//!
//! The zone has two areas for the list of all overrides. A writer writes the new list into the area
//! that is not in force, under the publishers' lock, and then stores which one is in force. So
//! readers need no lock, and a writer may be killed at any store. A list has each text once, and
//! overrides refer to texts by number. Workers see a change of overrides as a change of the set: the
//! entries concerned get a new generation.

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

/// Why overrides are not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSet {
    /// The list would be too long.
    #[error("there is no room for more than the {0} in force")]
    Full(usize),
    /// Another process holds the lock for too long.
    #[error("the shared memory is busy")]
    Busy,
}

/// What an override does not write of itself: its selection and its deadline.
type Unwritten = (Option<u128>, Option<u64>);

/// A list as it lies in its area.
#[derive(Default, Serialize, Deserialize)]
struct List<T> {
    texts: Vec<T>,
    cells: Vec<(Unwritten, Override<u16>)>,
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
        Some(((held.selection, held.deadline), cell.ok()?))
    };
    let cells = overrides.iter().filter_map(cell).collect();
    postcard::to_stdvec(&List { texts, cells }).unwrap_or_default()
}

/// The list in these bytes, which may be damaged; not more than `most`.
fn decode(bytes: &[u8], most: usize) -> Vec<Override> {
    let List { texts, cells } = postcard::from_bytes(bytes).unwrap_or_default();
    let whole = |((selection, deadline), cell): &(Unwritten, Override<u16>)| {
        let text = |number: &u16| texts.get(usize::from(*number)).cloned().ok_or(());
        Some(Override { selection: *selection, deadline: *deadline, ..cell.with_texts(text).ok()? })
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

    /// All overrides, expired ones included, oldest first. `None` if the list was replaced during each
    /// of several tries.
    pub fn all_overrides(&self) -> Option<Vec<Override>> {
        (0..TRIES).find_map(|_| {
            let list = self.word(header::OVERRIDES).load(Acquire);
            let (number, len) = split(list);
            let (first, words) = self.override_area(number);
            let used = first..first + (len as usize).div_ceil(8).min(words);
            let bytes: Vec<u8> = used.flat_map(|at| self.load(at).to_le_bytes()).collect();
            // Pairs with the fence in `locked`: if the reader sees a word of a later list in this
            // area, it also sees that the list in between was in force.
            fence(Acquire);
            let is_whole = self.load(header::OVERRIDES) == list;
            is_whole.then(|| {
                if len == 0 { Vec::new() } else { decode(&bytes, self.override_capacity()) }
            })
        })
    }

    /// Version of the list: it moves with every change.
    pub fn overrides_version(&self) -> u64 {
        split(self.load(header::OVERRIDES)).0.into()
    }

    /// The overrides in force `now`, milliseconds of the monotonic clock; `None` as for
    /// [`Table::all_overrides`].
    pub fn overrides(&self, now: u64) -> Option<Overrides> {
        let in_force = |held: &Override| held.is_in_force(now);
        Some(self.all_overrides()?.into_iter().filter(in_force).collect())
    }

    /// Whether the set of this key is frozen `now`, milliseconds of the monotonic clock.
    pub fn is_frozen(&self, key: u128, now: u64) -> bool {
        self.overrides(now).is_none_or(|overrides| overrides.frozen(key).is_some())
    }

    /// `true` for the first caller since the zone was made: it restores overrides from the state file.
    /// Later callers must not, or overrides that were removed meanwhile would return.
    pub fn claim_overrides_restore(&self) -> bool {
        self.word(header::OVERRIDES_RESTORED).swap(1, Relaxed) == 0
    }

    /// Sets overrides, all or none. Each replaces an earlier one about the same instance or service.
    /// Waits for a moment at most.
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

    /// Removes the overrides that `which` selects, and returns them. `None` if another process holds
    /// the lock for too long.
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
    /// Puts a list in force, and moves the generations of the sets that `changed` overrides concern.
    /// `false` if there is no room for it.
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
