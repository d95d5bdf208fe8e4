//! How a service is followed.

use std::time::Duration;

/// How a service is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By blocking queries: changes are seen at once.
    Blocking,
    /// By queries about all services, which say which of them to ask: a change of health is seen
    /// at once, another one (a registration, a weight) within a sweep of all.
    Triggered {
        /// Longest expected time between a change of the second kind and its being seen.
        delay: Duration,
    },
    /// By asking again and again.
    Polling {
        /// Longest expected time between a change and its being seen.
        delay: Duration,
    },
}
