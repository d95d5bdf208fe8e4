//! Why an answer of Consul changes nothing.

use serde::Serialize;
use strum::{IntoStaticStr, VariantArray};

/// Why an answer changes nothing. The table has a counter for each, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, VariantArray, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Reason {
    /// No connection.
    Connect,
    /// No answer, or not all of it, in time.
    Timeout,
    /// Closed before the first byte.
    Closed,
    /// Not HTTP.
    Protocol,
    /// Another status than 200.
    Status,
    /// Longer than `consul_max_body_size`.
    TooLarge,
    /// The body broke off.
    Truncated,
    /// Not `application/json`.
    ContentType,
    /// No list of instances.
    Json,
    /// `X-Consul-Index` is absent or senseless.
    Index,
    /// `X-Consul-KnownLeader: false`.
    NoLeader,
    /// Older than `consul_max_stale`.
    Stale,
    /// `X-Consul-Results-Filtered-By-ACLs: true`.
    Filtered,
    /// Instances are gone, and the token may not be able to see them.
    Token,
    /// A streamed or cached answer that is older than the last one.
    Outdated,
}

impl Reason {
    /// All, in the order of their counters in the table.
    pub const ALL: &[Reason] = Reason::VARIANTS;

    /// Whether the server has answered at all.
    pub fn is_answered(self) -> bool {
        !matches!(
            self,
            Reason::Connect
                | Reason::Timeout
                | Reason::Closed
                | Reason::Protocol
                | Reason::Truncated
        )
    }

    /// Its name in the status; it never changes.
    pub fn word(self) -> &'static str {
        self.into()
    }
}

/// A removal that waits for confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Pending {
    /// Peers that would leave.
    pub removals: u32,
    /// Reads that have agreed so far.
    pub confirmed: u16,
    /// Reads that have to; 0: none are enough (`keep`).
    pub of: u16,
}
