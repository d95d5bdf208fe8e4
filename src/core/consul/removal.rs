//! When an answer may remove peers, without any I/O.
//!
//! A valid answer may list fewer instances than there are: Consul answers `200 []` to a token
//! whose policy was removed, around elections and while it starts. So an answer that empties a set,
//! or removes more of it than `consul_max_removal` allows, has to be confirmed by further reads.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::model::Pending;

/// Reads of the default `consul_empty`, and the time from the first answer to the last of them.
const READS: u32 = 3;
const OVER: Duration = Duration::from_millis(1500);

/// How a removal is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Confirm {
    /// How many further reads must agree with the first answer, at least 1.
    pub reads: u32,
    /// Shortest time from the first answer to the last of these reads.
    pub over: Duration,
}

impl Default for Confirm {
    fn default() -> Self {
        Confirm { reads: READS, over: OVER }
    }
}

/// `consul_empty`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnEmpty {
    /// An empty answer never empties a set.
    Keep,
    /// An empty answer empties the set once it is confirmed.
    Confirm(Confirm),
    /// An empty answer empties the set at once.
    Drop,
}

/// When an answer may remove peers of one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// What an answer without any peer does.
    pub on_empty: OnEmpty,
    /// Percentage of the peers, 0 to 100: an answer that removes more than this, but not all, has to
    /// be confirmed; `None`: any such answer is published.
    pub max_removal: Option<u8>,
}

impl Default for Policy {
    fn default() -> Self {
        Policy { on_empty: OnEmpty::Confirm(Confirm::default()), max_removal: None }
    }
}

impl Policy {
    /// Whether an answer with so many peers has to be compared with the published ones.
    pub fn restricts(&self, peers: usize) -> bool {
        if peers == 0 { self.on_empty != OnEmpty::Drop } else { self.max_removal.is_some() }
    }

    /// How a removal is confirmed; `None`: never. One that is too large is confirmed as an empty
    /// answer is, or in the default way.
    fn confirm(&self, is_empty: bool) -> Option<Confirm> {
        match self.on_empty {
            OnEmpty::Confirm(confirm) => Some(Confirm { reads: confirm.reads.max(1), ..confirm }),
            OnEmpty::Keep if is_empty => None,
            OnEmpty::Keep | OnEmpty::Drop => Some(Confirm::default()),
        }
    }

    fn allows(&self, removed: usize, held: usize) -> bool {
        self.max_removal.is_none_or(|most| removed * 100 <= held * usize::from(most))
    }
}

/// What to do with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Publish it.
    Publish {
        /// The removal that this answer cancels, and how long it was pending.
        ended: Option<(Pending, Duration)>,
    },
    /// Enough reads agree: publish it, and call [`RemovalGuard::settle`].
    Confirmed {
        /// The removal.
        pending: Pending,
        /// Time since the first answer.
        after: Duration,
    },
    /// Keep the published set.
    Hold {
        /// The removal that has to be confirmed.
        pending: Pending,
        /// No removal was pending before.
        is_new: bool,
        /// When to read again, without an index; `None`: as if nothing was pending.
        again: Option<Instant>,
    },
}

/// A removal that waits for confirmation.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    /// Peers that each answer so far lacks.
    removed: HashSet<u64>,
    is_empty: bool,
    confirmed: u32,
}

/// Guards one target against removals that are not confirmed.
#[derive(Debug, Default)]
pub struct RemovalGuard {
    wait: Option<Waiting>,
}

impl RemovalGuard {
    /// Decides about an answer with the peers `next` for a target whose published peers are `held`,
    /// both as identities. An answer that may not confirm can only cancel a removal or make one
    /// pending.
    pub fn decide(
        &mut self,
        policy: &Policy,
        (held, next): (&HashSet<u64>, &HashSet<u64>),
        may_confirm: bool,
        now: Instant,
    ) -> Decision {
        let removed: HashSet<u64> = held.difference(next).copied().collect();
        let is_empty = next.is_empty();
        let is_too_much = |removed: &HashSet<u64>| match is_empty {
            true => !held.is_empty() && policy.on_empty != OnEmpty::Drop,
            false => !policy.allows(removed.len(), held.len()),
        };
        let before = self.wait.take();
        if !is_too_much(&removed) {
            let ended = before.map(|wait| (wait.pending(policy), now - wait.since));
            return Decision::Publish { ended };
        }
        let is_new = before.is_none();
        // What all answers since the first one lack.
        let before = before.filter(|wait| wait.is_empty == is_empty).map(|wait| Waiting {
            removed: wait.removed.intersection(&removed).copied().collect(),
            ..wait
        });
        let before = before.filter(|wait| is_too_much(&wait.removed));
        let goes_on = before.is_some();
        let first = Waiting { since: now, removed, is_empty, confirmed: 0 };
        let wait = self.wait.insert(before.unwrap_or(first));
        let Some(Confirm { reads, over }) = policy.confirm(is_empty) else {
            return Decision::Hold { pending: wait.pending(policy), is_new, again: None };
        };
        let due = |wait: &Waiting| wait.since + over * (wait.confirmed + 1) / reads;
        if goes_on && may_confirm && now >= due(wait) {
            wait.confirmed += 1;
            if wait.confirmed >= reads {
                let pending = wait.pending(policy);
                // If it can't be published, this read is repeated.
                wait.confirmed -= 1;
                return Decision::Confirmed { pending, after: now - wait.since };
            }
        }
        Decision::Hold { pending: wait.pending(policy), is_new, again: Some(due(wait)) }
    }

    /// Whether a removal waits.
    pub fn is_waiting(&self) -> bool {
        self.wait.is_some()
    }

    /// The confirmed answer is published.
    pub fn settle(&mut self) {
        self.wait = None;
    }
}

impl Waiting {
    fn pending(&self, policy: &Policy) -> Pending {
        let number = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        Pending {
            removals: u32::try_from(self.removed.len()).unwrap_or(u32::MAX),
            confirmed: number(self.confirmed),
            of: policy.confirm(self.is_empty).map_or(0, |confirm| number(confirm.reads)),
        }
    }
}

#[cfg(test)]
mod tests;
