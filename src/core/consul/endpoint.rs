//! The servers of one Consul, and what is asked there how often.

use std::sync::Arc;
use std::time::Duration;

use super::server::Server;
use super::tls::Tls;
use super::token::Token;
use crate::model::Query;

/// Which servers to ask, and with which credentials.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Tried in order; at least one.
    pub servers: Vec<Server>,
    /// ACL token, anonymous if `None`.
    pub token: Option<Token>,
    /// For `https` servers.
    pub tls: Tls,
    /// Longest time to establish a connection, name lookup and TLS included.
    pub connect_timeout: Duration,
    /// Longest body of an answer, in bytes.
    pub max_body: u64,
}

/// Times of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// Length of a blocking query; used within 1 s to 10 min, Consul's own limit.
    pub wait: Duration,
    /// Shortest pause after a failure.
    pub retry_min: Duration,
    /// Longest pause after a failure.
    pub retry_max: Duration,
    /// Largest age of data that is accepted; `None`: any.
    pub max_stale: Option<Duration>,
    /// How often host names are looked up again.
    pub resolve: Duration,
    /// How often a prepared query is executed.
    pub poll: Duration,
}

/// A query that is repeated to follow changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WatchedQuery {
    /// What to ask.
    pub query: Query,
    /// Which servers to ask.
    pub endpoint: Arc<Endpoint>,
    /// How often.
    pub timing: Timing,
}
