//! The receiver of everything that the watches find out: peers, reports and log lines.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::model::{Connections, Level, Mode, PeerSet, Pending, Reason};

/// Receives the results of the watches. Called from several threads at a time.
pub trait Sink: Send + Sync {
    /// Takes the current peers of a target: after every valid answer, changed or not.
    fn publish(&self, target: usize, set: &PeerSet, index: u64) -> Published;

    /// Takes the result of the last request for a target.
    fn report(&self, target: usize, report: &Report<'_>);

    /// Takes a line for the error log, without its prefix `consul: `.
    fn log(&self, level: Level, line: String);

    /// Whether the target has had an answer, perhaps from an earlier watcher.
    fn has_data(&self, target: usize) -> bool;

    /// Identities of the target's published peers, perhaps from an earlier watcher.
    fn published_identities(&self, target: usize) -> HashSet<u64>;

    /// Whether this nginx itself accepts connections at an address.
    fn listens_on(&self, _address: SocketAddr) -> bool {
        false
    }

    /// A watcher starts: the connections noted so far belong to an earlier one, which ends soon.
    /// Consul counts those in blocking queries until their `wait` is over. `false` if that can't be
    /// noted now; then it is called again.
    fn watcher_starts(&self) -> bool {
        true
    }

    /// The watcher that started last has this many connections now. It waits for this call, which
    /// must be quick and must not call the watcher.
    fn note_connections(&self, _connections: Connections) {}

    /// Connections of earlier watchers that Consul still counts.
    fn earlier_connections(&self) -> usize {
        0
    }
}

/// What became of a published set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// The set was in use already.
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
    /// The old set stays in use; the text says why, for example that the zone is full.
    Refused(String),
}

/// How a request went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report<'a> {
    /// A valid answer.
    Good {
        /// Its index.
        index: u64,
        /// Which server of the endpoint gave it.
        server: usize,
        /// How changes of the service are seen.
        mode: Mode,
        /// The removal that it asks for, if that is not confirmed yet.
        pending: Option<Pending>,
    },
    /// An answer that is ignored without being a failure.
    Ignored {
        /// Under which reason it is counted.
        reason: Reason,
    },
    /// No answer, or one that was rejected.
    Failed {
        /// Which server of the endpoint was asked.
        server: usize,
        /// Under which reason it is counted.
        reason: Reason,
        /// The error.
        error: &'a str,
        /// Failed requests since the last good answer.
        failures: u32,
        /// Time to the next attempt.
        retry_in: Duration,
    },
}
