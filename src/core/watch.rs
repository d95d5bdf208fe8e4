//! The engine: threads that follow every watched service and hand its peers to a [`Sink`].
//!
//! ```text
//! blocks ─▶ Plan (watches, targets) ─▶ Watcher (threads) ─▶ Sink (table, reports, log)
//! requests ─▶ follow, forget ────────────┘
//! ```
//!
//! While there are connections enough, each watch blocks on its service. Otherwise overview watches
//! block on what all services have in common and say which of them to read
//! (`engine/connection_plan.rs` decides).

mod fetch;
mod watcher;
mod initial;
mod limits;
mod log_labels;
mod outages;
mod overview_watch;
mod plan;
mod publisher;
mod subscription;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::HashSet;
use std::time::Duration;

use crate::model::{Connections, Level, Mode, PeerSet, Pending, Reason};

pub use crate::consul::endpoint::Endpoint;
pub use crate::consul::removal::{Confirm, OnEmpty, Policy};
pub use crate::consul::server::{Server, ServerError};
pub use crate::consul::tls::{Tls, TlsError, TlsOptions};
pub use crate::consul::token::{Token, TokenError};
pub use initial::first_answers;
pub use plan::{Plan, Subject, Target, Timing, WatchPlan};
pub use watcher::Watcher;
pub(crate) use watcher::{join_all, spawn};

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

    /// An engine begins: the connections noted so far are another one's, which ends soon. Consul
    /// counts those of its blocking queries until their `wait` is over. `false` if that can't be noted
    /// now; then it is called again.
    fn engine_starts(&self) -> bool {
        true
    }

    /// The engine that began last has this many connections now. Must be quick and leave the engine
    /// alone, which waits meanwhile.
    fn note_connections(&self, _connections: Connections) {}

    /// Connections that engines before this one still have, as Consul counts.
    fn foreign_connections(&self) -> usize {
        0
    }
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
    /// An answer that changes nothing, which is no failure.
    Ignored {
        /// Under which reason it is counted.
        reason: Reason,
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
