//! When an answer may take peers away, without any I/O.
//!
//! An answer can be valid and still say less than there is: Consul answers `200 []` to a token
//! whose policy is gone, around elections and while it starts. So one that empties a set, or takes
//! more of it than `consul_max_removal` allows, has to be confirmed by further reads.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::model::Pending;

/// Reads of the default `consul_empty`.
const READS: u32 = 3;
/// Time that they are spread over.
const OVER: Duration = Duration::from_millis(1500);

/// What further reads a removal needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Confirm {
    /// How many must agree with the first answer, at least 1.
    pub reads: u32,
    /// The last of them comes this long after the first answer, or later.
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
    /// It does once it is confirmed.
    Confirm(Confirm),
    /// It does at once.
    Drop,
}

/// What may take peers away from one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// For answers that leave no peer.
    pub on_empty: OnEmpty,
    /// Percentage of the peers, 0 to 100, above which an answer that leaves some peers has to be
    /// confirmed; `None`: never.
    pub max_removal: Option<u8>,
}

impl Default for Policy {
    fn default() -> Self {
        Policy { on_empty: OnEmpty::Confirm(Confirm::default()), max_removal: None }
    }
}

impl Policy {
    /// Whether an answer with so many peers has to be compared with those in force.
    pub fn looks_at(&self, peers: usize) -> bool {
        if peers == 0 { self.on_empty != OnEmpty::Drop } else { self.max_removal.is_some() }
    }

    /// How a removal is confirmed; `None`: not at all. One that is too large is as an empty answer
    /// is, where that is.
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
    /// Put it in force. `ended` is what was pending before, and for how long: this answer has not
    /// confirmed it.
    Publish {
        /// The removal that is off.
        ended: Option<(Pending, Duration)>,
    },
    /// Put it in force, and call [`RemovalGuard::settled`]: enough reads agree.
    Confirmed {
        /// The removal.
        pending: Pending,
        /// Time since the first answer.
        after: Duration,
    },
    /// Leave what is in force.
    Hold {
        /// What would be removed.
        pending: Pending,
        /// Nothing waited before.
        is_new: bool,
        /// When to read again, without an index; `None`: just go on.
        again: Option<Instant>,
    },
}

#[derive(Debug)]
struct Wait {
    since: Instant,
    /// Peers that each answer so far lacks.
    removed: HashSet<u64>,
    is_empty: bool,
    confirmed: u32,
}

/// Watches over the removals of one target.
#[derive(Debug, Default)]
pub struct RemovalGuard {
    wait: Option<Wait>,
}

impl RemovalGuard {
    /// Judges an answer with the peers `next` for a target whose peers in force are `held`, both as
    /// identities. An answer that may not confirm ends a removal or begins one to wait, no more.
    pub fn judge(
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
        let before = before.filter(|wait| wait.is_empty == is_empty).map(|wait| Wait {
            removed: wait.removed.intersection(&removed).copied().collect(),
            ..wait
        });
        let before = before.filter(|wait| is_too_much(&wait.removed));
        let goes_on = before.is_some();
        let first = Wait { since: now, removed, is_empty, confirmed: 0 };
        let wait = self.wait.insert(before.unwrap_or(first));
        let Some(Confirm { reads, over }) = policy.confirm(is_empty) else {
            return Decision::Hold { pending: wait.pending(policy), is_new, again: None };
        };
        let due = |wait: &Wait| wait.since + over * (wait.confirmed + 1) / reads;
        if goes_on && may_confirm && now >= due(wait) {
            wait.confirmed += 1;
            if wait.confirmed >= reads {
                let pending = wait.pending(policy);
                // Until it is in force, this read may have to be made again.
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

    /// The confirmed answer is in force.
    pub fn settled(&mut self) {
        self.wait = None;
    }
}

impl Wait {
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
