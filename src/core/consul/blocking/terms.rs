//! Inputs and outputs of the rules of blocking queries.

use std::time::Duration;

use crate::consul::query::Fetch;

/// Consul's longest `wait`, and the shortest one that is not polling.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(600);
pub(super) const MIN_WAIT: Duration = Duration::from_secs(1);
/// Shortest pause after a failure.
pub(super) const MIN_RETRY: Duration = Duration::from_millis(10);

/// Fixed settings of a [`BlockingQuery`](super::BlockingQuery).
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
    /// Read at this interval, without an index, instead of blocking.
    pub poll_interval: Option<Duration>,
    /// Longest time between two reads while blocking queries fail and reads do not.
    pub fallback_interval: Duration,
    /// A server can be asked instead of a copy of the state.
    pub can_avoid_copies: bool,
    /// Answers may be old (`stale`, `cached`): it is no failure if the leader can't verify them.
    pub may_lag: bool,
}

impl Settings {
    /// The same settings within their ranges, whatever the configuration says.
    pub(super) fn within_bounds(self) -> Settings {
        let retry_min = self.retry_min.max(MIN_RETRY);
        Settings {
            servers: self.servers.max(1),
            wait: self.wait.clamp(MIN_WAIT, MAX_WAIT),
            retry_min,
            retry_max: self.retry_max.max(retry_min),
            fallback_interval: self.fallback_interval.max(MIN_RETRY),
            ..self
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this request and pass its result to
    /// [`BlockingQuery::on_result`](super::BlockingQuery::on_result).
    Fetch(Fetch),
    /// Wait this long, then ask for the next step.
    Sleep(Duration),
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchResult {
    /// A valid answer.
    Good {
        /// Its index.
        index: u64,
        /// Digest of its instances, the same for any order.
        digest: u128,
        /// Length of the body in bytes.
        bytes: u64,
        /// It comes from a copy of the state.
        is_copy: bool,
    },
    /// An answer from a copy that is older than the latest one ([`is_outdated`]).
    Outdated,
    /// The server answered with an error, or with an answer that validation rejected.
    Rejected,
    /// No answer.
    Failed,
    /// The connection over which the index came is closed; nothing was sent.
    Reconnected,
}

/// What a result means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Publish the answer.
    Publish {
        /// Its digest differs from the last one.
        changed: bool,
        /// It ends an outage: the time since the last good answer before the first failure, or
        /// since that failure if there was none. Where queries block, only the answer to a
        /// blocking query ends an outage.
        outage: Option<Duration>,
    },
    /// Keep the published set.
    Failed {
        /// Failures since the last good answer, at least 1.
        failures: u32,
        /// Time to the next request.
        retry_in: Duration,
        /// Every server has failed once more: the pause is a step of the backoff.
        round: bool,
    },
    /// The result has no meaning; take the next step.
    Again,
}

/// A change of whether answers come from copies of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CopyChange {
    /// The copy was outdated: a server is asked instead for some minutes.
    Avoided,
    /// Copies are asked again.
    Resumed,
}

/// Whether a copy's answer differs from the `latest` one (index and digest) without being newer. A
/// server's answer never is outdated: its state may have been restored from a snapshot.
pub fn is_outdated(latest: Option<(u64, u128)>, index: u64, digest: u128) -> bool {
    latest.is_some_and(|(newest, known)| index <= newest && digest != known)
}
