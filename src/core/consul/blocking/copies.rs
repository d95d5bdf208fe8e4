//! When answers from a copy of the state are asked for, and when they are verified.
//!
//! A copy is a materialized view that a stream feeds, or an agent's cache
//! ([`ReadFrom`]). It may stand still without anybody's knowing, and servers may refuse to stream
//! while they answer everything else.

use std::time::{Duration, Instant};

use rand::Rng;

use super::{Fetch, Turn, jitter};
use crate::consul::query::ReadFrom;

/// Time between two answers of a server while answers come from a copy, before jitter.
const VERIFY: Duration = Duration::from_secs(90);
/// Time between two such reads of which the first has failed, before jitter.
const VERIFY_AGAIN: Duration = Duration::from_secs(20);
/// How long a server is asked instead of a copy, before jitter.
const AVOID: Duration = Duration::from_secs(450);
/// Blocking queries refused in a row, while the reads between them were answered, after which a
/// server is asked instead.
const REFUSALS: u32 = 3;

/// Whether copies are of use.
#[derive(Debug, Default)]
pub(super) struct Copies {
    can_be_avoided: bool,
    /// When a server is to confirm what a copy says.
    verify_at: Option<Instant>,
    /// Until when no copy is asked; that time may be over, then the next query is a trial.
    avoided_until: Option<Instant>,
    /// Blocking queries refused in a row.
    refusals: u32,
    /// A server said something else than the copy, which may only have been a moment late.
    are_suspect: bool,
    /// A copy's answer was refused as outdated: a server is being asked.
    pub(super) are_doubted: bool,
}

impl Copies {
    pub(super) fn new(can_be_avoided: bool) -> Copies {
        Copies { can_be_avoided, ..Copies::default() }
    }

    /// From where to read.
    pub(super) fn from(&self, now: Instant) -> ReadFrom {
        match self.avoided_until {
            Some(until) if now < until => ReadFrom::Server,
            _ => ReadFrom::Anywhere,
        }
    }

    /// Whether a server is asked instead, but for trials.
    pub(super) fn are_avoided(&self) -> bool {
        self.avoided_until.is_some()
    }

    /// Whether the next blocking query has to show that copies are of use.
    pub(super) fn are_on_trial(&self, now: Instant) -> bool {
        self.are_suspect || self.avoided_until.is_some_and(|until| until <= now)
    }

    /// Asks a server instead for some minutes.
    pub(super) fn avoid(&mut self, now: Instant, rng: &mut impl Rng) {
        self.avoided_until = Some(now + jitter(AVOID, 0.33, rng));
        self.refusals = 0;
        self.are_suspect = false;
    }

    /// A blocking query was refused: whether no copy is asked from now on.
    pub(super) fn refused(&mut self, now: Instant, rng: &mut impl Rng) -> bool {
        self.refusals += 1;
        let gives_up = self.refusals >= REFUSALS && self.can_be_avoided && !self.are_avoided();
        if gives_up {
            self.avoid(now, rng);
        }
        gives_up
    }

    /// Takes a good answer. `changed`: it says something else than the last one.
    pub(super) fn judge(
        &mut self,
        fetch: Fetch,
        (is_copy, changed): (bool, bool),
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Turn> {
        let mut turn = None;
        if fetch.from == ReadFrom::Leader {
            let doubted = std::mem::take(&mut self.are_doubted);
            if changed {
                self.are_suspect = true;
            } else if doubted && self.can_be_avoided {
                self.avoid(now, rng);
                turn = Some(Turn::CopiesLag);
            }
        }
        let could_be_copy = fetch.index.is_some() && fetch.from == ReadFrom::Anywhere;
        if could_be_copy && self.avoided_until.take().is_some() && is_copy {
            turn = Some(Turn::CopiesAreBack);
        }
        // The first copy's answer begins the time.
        if !is_copy || self.verify_at.is_none() {
            self.verify_at = Some(now + jitter(VERIFY, 0.22, rng));
        }
        turn
    }

    /// Nothing is answered: that says nothing about copies.
    pub(super) fn failed(&mut self) {
        (self.refusals, self.are_doubted) = (0, false);
    }

    /// A blocking query was answered.
    pub(super) fn answered(&mut self) {
        self.refusals = 0;
        self.are_suspect = false;
    }

    /// A server was asked to verify, and did not.
    pub(super) fn verify_later(&mut self, now: Instant, rng: &mut impl Rng) {
        self.verify_at = Some(now + jitter(VERIFY_AGAIN, 0.5, rng));
    }

    /// Whether a server is to be asked by then.
    pub(super) fn is_due(&self, by: Instant) -> bool {
        self.verify_at.is_some_and(|at| at <= by)
    }

    /// Time until then.
    pub(super) fn due_in(&self, now: Instant) -> Option<Duration> {
        self.verify_at.map(|at| at.saturating_duration_since(now))
    }
}
