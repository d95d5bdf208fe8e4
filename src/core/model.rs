//! What the rest of the crate speaks about: queries, instances and peers.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher13};
use strum::{EnumString, IntoStaticStr};

use crate::address::AddressFilter;
use crate::params::Params;

pub use crate::consul::instances::meta::{Meta, MetaKeys};

/// Consistency mode of a Consul query
/// (<https://developer.hashicorp.com/consul/api-docs/features/consistency>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, EnumString)]
#[strum(serialize_all = "lowercase")]
pub enum Consistency {
    /// The leader answers, from its lease.
    #[default]
    Default,
    /// Any server answers, perhaps with old data.
    Stale,
    /// The leader answers after it has verified that it still leads.
    Consistent,
    /// The agent answers from its cache.
    Cached,
}

/// Where in Consul the peers are.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, EnumString, IntoStaticStr, Serialize,
)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Source {
    /// `/v1/health/service`: the instances of a service with their health.
    #[default]
    Health,
    /// `/v1/catalog/service`: every registered instance.
    Catalog,
    /// `/v1/kv`: servers that somebody wrote there.
    Kv,
    /// `/v1/query`: what a prepared query gives; it does not block.
    Query,
}

impl Source {
    /// Its name in the configuration and the status.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

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

/// What one watch asks Consul: everything that makes a separate query necessary.
///
/// Tags and health are not here: Consul wakes a blocking query for every change of the service,
/// whatever the tag asked for, so one watch serves every [`Selection`] of the same service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Query {
    /// Where to look.
    pub source: Source,
    /// Name of the service as registered, of the prepared query, or the prefix of the keys, without
    /// a slash at its end.
    pub service: String,
    /// `dc=`: datacenter, the agent's own if `None`.
    pub datacenter: Option<String>,
    /// `ns=`: namespace (Consul Enterprise).
    pub namespace: Option<String>,
    /// `partition=`: admin partition (Consul Enterprise).
    pub partition: Option<String>,
    /// `near=`: node to sort by; `_agent` is the agent asked.
    pub near: Option<String>,
    /// `filter=`: an expression that only Consul can evaluate.
    pub filter: Option<String>,
    /// How fresh the answer has to be.
    pub consistency: Consistency,
    /// `address=`: which of the tagged addresses (`lan`, `wan`, `lan_ipv4`, …) to connect to.
    pub address: Option<String>,
    /// Which other parts of `Service.Meta` to keep.
    pub meta: MetaKeys,
}

impl Query {
    /// What is set besides the service and the consistency, by Consul's names of the parameters.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("dc", &self.datacenter),
            ("ns", &self.namespace),
            ("partition", &self.partition),
            ("near", &self.near),
            ("filter", &self.filter),
        ];
        all.into_iter()
            .filter_map(|(name, value)| Some((name, value.as_deref()?)))
            .filter(|(_, value)| !value.is_empty())
    }
}

/// Which states of health a block takes into its set of peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, EnumString, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Admit {
    /// All checks pass.
    #[default]
    Passing,
    /// No check is critical; an instance in warning has its `Weights.Warning`.
    Warning,
    /// Every registered instance.
    Any,
}

/// Which instances of a watch's answer one `upstream` block takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selection {
    /// The instance must have each of these tags; compared without regard to case, as Consul does.
    pub tags: Vec<String>,
    /// Which health it must have.
    pub admit: Admit,
    /// Which addresses it may have.
    pub addresses: AddressFilter,
}

/// Health of an instance: the worst of its service's and its node's checks.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    EnumString,
)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Health {
    /// Every check passes, or there is none.
    Passing,
    /// The worst check warns.
    Warning,
    /// A check is critical; maintenance mode is a critical check.
    #[default]
    Critical,
}

/// One believable instance of a Consul answer, before addresses are resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Instance {
    /// Name of the node.
    pub node: String,
    /// Service id, unique on its node.
    pub id: String,
    /// `Service.Address`, else `Node.Address`: an IP address without brackets, or a host name.
    pub host: String,
    /// 1–65535.
    pub port: u16,
    /// Tags, in Consul's order.
    pub tags: Vec<String>,
    /// Worst of its checks.
    pub health: Health,
    /// `Weights.Passing`, at least 1.
    pub weight_passing: NonZeroU16,
    /// `Weights.Warning`; 0 keeps the instance out while it warns.
    pub weight_warning: u16,
    /// Datacenter of the node, empty where Consul does not say.
    pub datacenter: String,
    /// What its `Service.Meta` says to nginx.
    pub params: Params,
    /// What else of its `Service.Meta` is kept.
    pub meta: Meta,
}

/// One address that requests can go to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Peer {
    /// Where to connect.
    #[serde(rename = "address")]
    pub addr: SocketAddr,
    /// Weight in effect, at least 1.
    pub weight: NonZeroU16,
    /// Says that this is the same instance as before, over updates: see [`identity`].
    #[serde(skip)]
    pub identity: u64,
    /// Name of the node.
    pub node: String,
    /// Service id.
    pub id: String,
    /// Tags, in Consul's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Health when the answer was given.
    pub health: Health,
    /// Datacenter of the node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub datacenter: String,
    /// Its own parameters, but for the weight.
    #[serde(default, skip_serializing_if = "Params::is_default")]
    pub params: Params,
    /// What is kept of its `Service.Meta`.
    #[serde(default, skip_serializing_if = "Meta::is_empty")]
    pub meta: Meta,
}

/// Identity of a peer: the instance (node and service id) and, for a host name with several
/// addresses, the address.
pub fn identity(node: &str, id: &str, addr_of_name: Option<SocketAddr>) -> u64 {
    let mut h = SipHasher13::new();
    (node, id, addr_of_name).hash(&mut h);
    h.finish()
}

/// The peers of one [`Selection`], normalised: sorted by (node, id, address), no address twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerSet {
    peers: Vec<Peer>,
}

impl PeerSet {
    /// Sorts the peers and drops those whose address:port an earlier one has.
    pub fn new(mut peers: Vec<Peer>) -> Self {
        peers.sort_by(|a, b| (&a.node, &a.id, a.addr).cmp(&(&b.node, &b.id, b.addr)));
        let mut seen = std::collections::HashSet::with_capacity(peers.len());
        peers.retain(|p| seen.insert(p.addr));
        PeerSet { peers }
    }

    /// The peers in their order.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// 128-bit digest of the whole content; equal digests mean that nothing changed.
    pub fn digest(&self) -> u128 {
        let mut h = SipHasher13::new();
        self.hash(&mut h);
        h.finish128().as_u128()
    }
}

/// A secret that never shows in a log or a debug print.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Wraps a token.
    pub fn new(value: impl Into<String>) -> Self {
        Secret(value.into())
    }

    /// The token itself, for the request header only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}
