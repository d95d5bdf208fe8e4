//! When answers from a copy of the state are used, and when a server verifies them.
//!
//! A copy is a materialized view that a stream feeds, or an agent's cache ([`ReadFrom`]). It may
//! stop following the state without an error, and servers may refuse to stream while they answer
//! everything else.

use std::time::{Duration, Instant};

use rand::Rng;

use super::pacing::jitter;
use super::terms::CopyChange;
use crate::consul::query::{Fetch, ReadFrom};

/// Time between two answers of a server while answers come from a copy, before jitter.
const VERIFY: Duration = Duration::from_secs(90);
/// Time until the next verification after one that failed, before jitter.
const VERIFY_AGAIN: Duration = Duration::from_secs(20);
/// How long a server is asked instead of a copy, before jitter.
const AVOID: Duration = Duration::from_secs(450);
/// Blocking queries rejected in a row, while the reads between them were answered, after which a
/// server is asked instead.
const REJECTIONS: u32 = 3;

/// Whether copies are used.
#[derive(Debug, Default)]
pub(super) struct Copies {
    can_be_avoided: bool,
    /// When a server is to verify what a copy says.
    verify_at: Option<Instant>,
    /// Until when no copy is asked; if that time is over, the next query tries one.
    avoided_until: Option<Instant>,
    /// Blocking queries rejected in a row.
    rejections: u32,
    /// A server's answer differed from the copy's, which may only have been a moment late.
    are_suspect: bool,
    /// A copy's answer was outdated: a server is being asked.
    pub(super) was_outdated: bool,
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

    /// Whether a server is asked instead, except for trials.
    pub(super) fn are_avoided(&self) -> bool {
        self.avoided_until.is_some()
    }

    /// Whether the next blocking query has to show that copies follow the state.
    pub(super) fn are_on_trial(&self, now: Instant) -> bool {
        self.are_suspect || self.avoided_until.is_some_and(|until| until <= now)
    }

    /// Asks a server instead for some minutes.
    pub(super) fn avoid(&mut self, now: Instant, rng: &mut impl Rng) {
        self.avoided_until = Some(now + jitter(AVOID, 0.33, rng));
        self.rejections = 0;
        self.are_suspect = false;
    }

    /// A blocking query was rejected; `true` if no copy is asked from now on.
    pub(super) fn on_rejected(&mut self, now: Instant, rng: &mut impl Rng) -> bool {
        self.rejections += 1;
        let gives_up = self.rejections >= REJECTIONS && self.can_be_avoided && !self.are_avoided();
        if gives_up {
            self.avoid(now, rng);
        }
        gives_up
    }

    /// Takes a good answer. `changed`: its digest differs from the last one.
    pub(super) fn on_good(
        &mut self,
        fetch: Fetch,
        (is_copy, changed): (bool, bool),
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<CopyChange> {
        let mut change = None;
        if fetch.from == ReadFrom::Leader {
            let was_outdated = std::mem::take(&mut self.was_outdated);
            if changed {
                self.are_suspect = true;
            } else if was_outdated && self.can_be_avoided {
                self.avoid(now, rng);
                change = Some(CopyChange::Avoided);
            }
        }
        let could_be_copy = fetch.index.is_some() && fetch.from == ReadFrom::Anywhere;
        if could_be_copy && self.avoided_until.take().is_some() && is_copy {
            change = Some(CopyChange::Resumed);
        }
        // The interval begins with the first answer of a copy.
        if !is_copy || self.verify_at.is_none() {
            self.verify_at = Some(now + jitter(VERIFY, 0.22, rng));
        }
        change
    }

    /// No request is answered: this says nothing about copies.
    pub(super) fn on_failed(&mut self) {
        (self.rejections, self.was_outdated) = (0, false);
    }

    /// A blocking query was answered.
    pub(super) fn on_blocking_answer(&mut self) {
        self.rejections = 0;
        self.are_suspect = false;
    }

    /// A server was asked to verify, and could not.
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
