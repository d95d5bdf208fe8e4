//! Why a request has no answer.

use std::time::Duration;

use crate::model::Reason;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection over which the index came is closed, so nothing was sent: ask again without
    /// an index.
    #[error("the connection was closed")]
    Reconnected,
    /// The client's [`Stop`](crate::stop::Stop) was raised.
    #[error("stopped")]
    Stopped,
    /// No connection could be opened.
    #[error("{0}")]
    Connect(String),
    /// Another status than 200, with the first line of the body.
    #[error("HTTP {status}{}{message}", if .message.is_empty() { "" } else { ": " })]
    Status {
        /// HTTP status.
        status: u16,
        /// Printable and short.
        message: String,
    },
    /// Longer than [`Endpoint::max_body`](crate::consul::endpoint::Endpoint::max_body).
    #[error("answer is longer than {0} bytes (consul_max_body_size)")]
    TooLong(u64),
    /// The server did not begin to answer within this time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// The body did not end within this time.
    #[error("answer not complete within {0:?}")]
    Slow(Duration),
    /// Closed before the first byte; agents do so to the connection that exceeds
    /// `limits.http_max_conns_per_client`.
    #[error("connection closed without an answer")]
    Closed,
    /// The body ended early.
    #[error("answer ended early ({0})")]
    BrokeOff(String),
    /// Reset.
    #[error("{0}")]
    Reset(String),
    /// Not HTTP.
    #[error("{0}")]
    Other(String),
}

/// What an error says about the number of connections that Consul accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionFailure {
    /// A new connection was refused: HTTP 429, or closed or reset within a second.
    Refused(String),
    /// A blocking query was cut off.
    CutOff,
    /// An idle connection was closed, or the port is closed.
    Unreachable,
}

impl Error {
    /// Under which reason it is counted; `None` for errors that say nothing about Consul.
    pub fn reason(&self) -> Option<Reason> {
        Some(match self {
            Error::Reconnected | Error::Stopped => return None,
            Error::Connect(_) => Reason::Connect,
            Error::Status { .. } => Reason::Status,
            Error::TooLong(_) => Reason::TooLarge,
            Error::Silent(_) | Error::Slow(_) => Reason::Timeout,
            Error::Closed => Reason::Closed,
            Error::BrokeOff(_) => Reason::Truncated,
            Error::Reset(_) | Error::Other(_) => Reason::Protocol,
        })
    }
}
