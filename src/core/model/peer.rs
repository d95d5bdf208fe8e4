//! Instances as Consul lists them, and peers as nginx connects to them.

use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher13};
use strum::EnumString;

use super::meta::Meta;
use crate::params::Params;

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

/// One valid instance of a Consul answer, before its host name is resolved.
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

/// The instances in one answer of Consul.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instances {
    /// The valid ones, sorted by node and id: Consul's own order means nothing.
    pub good: Vec<Instance>,
    /// Elements of the answer that are not valid instances.
    pub skipped: Vec<Skipped>,
    /// Parts of valid instances that are ignored, each with its instance.
    pub flawed: Vec<Skipped>,
}

/// An element of an answer that is skipped, or of which a part is ignored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Skipped {
    /// Name of the node, empty if it is unknown.
    pub node: String,
    /// Service id, empty if it is unknown.
    pub id: String,
    /// What is wrong with it: one line, printable, short.
    pub reason: String,
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

/// The peers of one [`Selection`](super::Selection), normalised: sorted by (node, id, address), no
/// address twice.
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
