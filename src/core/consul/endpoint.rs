//! The servers of one Consul, and how they are asked.

use std::time::Duration;

use super::server::Server;
use super::tls::Tls;
use super::token::Token;

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
