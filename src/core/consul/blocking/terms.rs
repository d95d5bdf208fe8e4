//! What a watch is told and what it says.

use std::time::Duration;

#[cfg(doc)]
use super::Watch;
use crate::consul::query::ReadFrom;

/// What a watch is told once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Number of servers, at least 1.
    pub servers: usize,
    /// Length of a blocking query, 1 s to 10 min.
    pub wait: Duration,
    /// Pause after the first failed round over all servers, at least 10 ms.
    pub retry_min: Duration,
    /// Longest pause.
    pub retry_max: Duration,
    /// Ask again at this interval instead of blocking.
    pub sweep: Option<Duration>,
    /// Longest time between two reads while blocking queries fail and reads do not.
    pub poll: Duration,
    /// A server can be asked instead of a copy of the state.
    pub can_avoid_copies: bool,
    /// Answers may be old: that the leader doesn't verify them is no failure.
    pub may_lag: bool,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask, and tell [`Watch::answer`].
    Fetch(Fetch),
    /// Do nothing for this long, then ask again.
    Sleep(Duration),
}

/// A request to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Which server.
    pub server: usize,
    /// Block on this index, at least 1; `None` answers at once.
    pub index: Option<u64>,
    /// Longest time to block.
    pub wait: Duration,
    /// It only asks whether the first server is back: the connection to the server in use stays,
    /// and there is little patience.
    pub probe: bool,
    /// From where Consul may answer. [`ReadFrom::Leader`]: to verify what copies said, so all has
    /// to be read.
    pub from: ReadFrom,
}

impl Fetch {
    /// A read that answers at once.
    pub fn read(server: usize, wait: Duration) -> Fetch {
        Fetch { server, index: None, wait, probe: false, from: ReadFrom::Anywhere }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A believable answer.
    Good {
        /// Its index.
        index: u64,
        /// Digest of what it says, the same for the same instances in any order.
        digest: u128,
        /// Length of the body in bytes.
        bytes: u64,
        /// It comes from a copy of the state.
        is_copy: bool,
    },
    /// One from a copy that is older than what is known ([`is_outdated`]).
    Outdated,
    /// An error, or an unbelievable answer: the server is there.
    Refused,
    /// None.
    Failed,
    /// Nothing was asked: the connection that gave the index is gone.
    Reconnected,
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Publish it. `outage` is the time since the first failure, if there was one. Where queries
    /// block, only the answer to one that does ends an outage.
    Publish {
        /// Whether it says something else than the last one.
        changed: bool,
        /// Length of the outage that it ends.
        outage: Option<Duration>,
    },
    /// Keep what is published.
    Failed {
        /// Failures since the last good answer, at least 1.
        failures: u32,
        /// Time to the next request.
        retry_in: Duration,
        /// Every server has failed once more: the pause is a step of the backoff.
        round: bool,
    },
    /// Go on: nothing was learned.
    Again,
}

/// How the way to ask has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Turn {
    /// Copies stood still: a server is asked instead for some minutes.
    CopiesLag,
    /// Copies are asked again.
    CopiesAreBack,
}

/// Whether a copy's answer says something else than the `latest` one (index and digest), but is not
/// newer. A server's answer never is outdated: its state may have been restored.
pub fn is_outdated(latest: Option<(u64, u128)>, index: u64, digest: u128) -> bool {
    latest.is_some_and(|(newest, said)| index <= newest && digest != said)
}
