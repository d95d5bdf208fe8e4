//! How a service is followed.

use std::time::Duration;

/// How a service is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By blocking queries: changes are seen at once.
    Blocking,
    /// By blocking queries about all services, which say which of them to read: a change of health
    /// is seen at once, another change (a registration, a weight) when all are read in turn.
    Triggered {
        /// Longest expected time until a change of the second kind is seen.
        delay: Duration,
    },
    /// By repeated queries.
    Polling {
        /// Longest expected time until a change is seen.
        delay: Duration,
    },
}
