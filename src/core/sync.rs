//! The engine: threads that follow every watched service and hand its peers to a [`Sink`].
//!
//! ```text
//! blocks ─▶ Plan (watches, targets) ─▶ Engine (threads) ─▶ Sink (table, reports, log)
//! ```

mod engine;
mod first;
mod once;
mod plan;
mod publisher;
mod runner;
#[cfg(test)]
mod testing;

use std::collections::HashSet;
use std::time::Duration;

use crate::model::PeerSet;

pub use crate::consul::gate::Reason;
pub use crate::consul::policy::{Confirm, OnEmpty, Pending, Policy};
pub use crate::consul::server::{Server, ServerError};
pub use crate::consul::tls::{Tls, TlsError, TlsOptions};
pub use crate::consul::token::{Token, TokenError};
pub use engine::Engine;
pub(crate) use engine::spawn;
pub use first::first_answers;
pub(crate) use once::Once;
pub use plan::{Endpoint, Plan, Target, Timing, WatchPlan};

/// Who takes what the engine finds out. Called from several threads at a time.
pub trait Sink: Send + Sync {
    /// Takes the present peers of a target: after every believable answer, changed or not.
    fn publish(&self, target: usize, set: &PeerSet, index: u64) -> Published;

    /// Takes how the last request for a target went.
    fn report(&self, target: usize, report: &Report<'_>);

    /// Takes a line for the error log, without the `consul: ` before it.
    fn log(&self, level: Level, line: String);

    /// Whether the target has had an answer, perhaps from an earlier engine.
    fn has_data(&self, target: usize) -> bool;

    /// Identities of the target's peers in force, perhaps from an earlier engine.
    fn held(&self, target: usize) -> HashSet<u64>;
}

/// What became of a published set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// The set is the one that is already in use.
    Unchanged,
    /// The set is in use now.
    Changed {
        /// Peers of the new set.
        peers: usize,
        /// Peers that the old set did not have.
        added: usize,
        /// Peers that the new set does not have.
        removed: usize,
        /// Peers of both, with another weight, address, health or tags.
        changed: usize,
    },
    /// The old set stays; the text says why, for example that the zone is full.
    Refused(String),
}

/// How a request went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report<'a> {
    /// A believable answer.
    Good {
        /// Its index.
        index: u64,
        /// Which server of the endpoint gave it.
        server: usize,
        /// How the service is followed.
        mode: Mode,
        /// What it would remove, if that is not in force yet.
        pending: Option<Pending>,
    },
    /// No answer, or none to believe.
    Failed {
        /// Which server of the endpoint was asked.
        server: usize,
        /// Under which reason it is counted.
        reason: Reason,
        /// What is wrong.
        error: &'a str,
        /// Failed requests since the last good answer.
        failures: u32,
        /// Time to the next attempt.
        retry_in: Duration,
    },
}

/// How a service is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By blocking queries: changes are seen at once.
    Blocking,
    /// By asking again and again.
    Sweep {
        /// Longest expected time between a change and its being seen.
        delay: Duration,
    },
}

/// Levels of nginx's error log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// `error`
    Error,
    /// `warn`
    Warn,
    /// `notice`
    Notice,
    /// `info`
    Info,
}
