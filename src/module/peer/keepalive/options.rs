//! What `consul_keepalive` says.

use std::time::Duration;

/// How an upstream keeps idle connections.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Most idle connections of a worker.
    pub(crate) connections: usize,
    /// Most requests over one connection.
    pub(crate) requests: usize,
    /// How long a connection may be idle.
    pub(crate) timeout: Duration,
    /// How long a connection is used for requests, from its opening.
    pub(crate) time: Duration,
}
