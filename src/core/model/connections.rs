//! Connections to Consul, as a watcher counts and plans them.

use std::time::Duration;

/// Connections of a watcher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// In a blocking query.
    pub blocking: usize,
    /// Others. Consul stops counting these as soon as they are closed.
    pub others: usize,
    /// Longest time that the blocking queries last.
    pub wait: Duration,
    /// Most that the watcher may have now.
    pub allowed: usize,
    /// How many would give each service a blocking query of its own.
    pub needed: usize,
    /// What limits the number, if these are too many.
    pub limit: Option<Limit>,
}

/// What limits the number of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `consul_connections`.
    Configured,
    /// Threads: `pids.max` of control groups, `RLIMIT_NPROC`.
    Threads,
    /// Descriptors: `RLIMIT_NOFILE` less `worker_connections`.
    Descriptors,
    /// Consul has refused more.
    Refused,
}

impl Limit {
    /// All.
    pub const ALL: [Limit; 4] =
        [Limit::Configured, Limit::Threads, Limit::Descriptors, Limit::Refused];

    /// Its name in the status.
    pub fn word(self) -> &'static str {
        match self {
            Limit::Configured => "consul_connections",
            Limit::Threads => "threads",
            Limit::Descriptors => "descriptors",
            Limit::Refused => "consul",
        }
    }

    /// Its description in a log line.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Limit::Configured => "consul_connections",
            Limit::Threads => "a quarter of the threads that pids.max and RLIMIT_NPROC leave",
            Limit::Descriptors => "RLIMIT_NOFILE less worker_connections",
            Limit::Refused => "Consul, which refused more",
        }
    }
}
