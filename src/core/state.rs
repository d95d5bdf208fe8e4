//! The last good answers on disk, so that an nginx that starts while Consul is down has peers.
//!
//! One file holds the sets of all targets: a first line with name, version and checksum, then JSON.
//! A token is never in it.
//!
//! ```text
//! nginx-consul-state 1 <SipHash-1-3-128 of the JSON, 32 hex digits>
//! {"written_ms":…,"services":[{"key":…,"service":"web","index":…,"last_good_ms":…,"peers":[…]}],
//!  "overrides":[{"service":"web","node":"n1","id":"web-1","action":"drain",…}]}
//! ```
//!
//! The reader trusts nothing: what is not exactly as [`State::encode`] makes it is [`Damage`].

use std::collections::HashSet;
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};
use siphasher::sip128::SipHasher13;

use crate::address::AddressFilter;
use crate::model::{Override, Peer, PeerSet};
use crate::table::PeerSnapshot;

mod content;
pub mod file;
pub mod saver;

pub use file::LoadError;
pub use saver::{Mark, Saver, Source};

const NAME: &str = "nginx-consul-state";
const VERSION: u32 = 1;
/// Longest file that is read or written, in bytes: about a million instances.
pub const MAX_BYTES: usize = 256 << 20;

/// What a state file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// When it was written, milliseconds since the epoch.
    pub written_ms: u64,
    /// The targets that had a good answer.
    #[serde(rename = "services")]
    pub targets: Vec<Saved>,
    /// What operators have ordered of instances; not of selections.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
}

/// The last good answer for one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// [`Plan::key`](crate::watch::Plan::key), never 0.
    pub key: u128,
    /// Name of the service, for people.
    pub service: String,
    /// If a request has named the service: [`Template::key`](crate::on_demand::Template::key).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<u128>,
    /// `X-Consul-Index` of the answer.
    pub index: u64,
    /// When the answer came, milliseconds since the epoch.
    pub last_good_ms: u64,
    /// The peers, be it none.
    #[serde(with = "content")]
    pub peers: PeerSet,
}

/// What is wrong with a state file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It does not begin as a state file does.
    #[error("its first line is not that of a state file")]
    Header,
    /// Another version of the module wrote it.
    #[error("it has version {0}, only version {VERSION} is known")]
    Version(u32),
    /// It was changed or cut off.
    #[error("its checksum is wrong")]
    Checksum,
    /// The checksum is right, but not the content.
    #[error("{0}")]
    Content(String),
    /// Over [`MAX_BYTES`].
    #[error("it is longer than {MAX_BYTES} bytes")]
    TooLong,
}

impl State {
    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let content = serde_json::to_vec(self).unwrap_or_default();
        [header(&content).as_bytes(), &content].concat()
    }

    /// The state in the bytes of a file.
    ///
    /// # Errors
    ///
    /// Whatever is not as [`State::encode`] makes it.
    pub fn decode(bytes: &[u8]) -> Result<State, Damage> {
        State::decode_content(checked(bytes)?)
    }

    /// As [`State::decode`], of what follows the first line. A fuzzer enters here: it would never
    /// get past the checksum.
    ///
    /// # Errors
    ///
    /// [`Damage::Content`].
    pub fn decode_content(content: &[u8]) -> Result<State, Damage> {
        content::read(content)
    }
}

impl Saved {
    /// How long ago the answer came; `None` if that is in the future, so that nobody knows: the
    /// clock was set back.
    pub fn age_ms(&self, now_ms: u64) -> Option<u64> {
        now_ms.checked_sub(self.last_good_ms)
    }

    /// The peers whose address may be used: the file is no more to be trusted than Consul is.
    pub fn permitted(&self, addresses: &AddressFilter) -> PeerSet {
        let peers = self.peers.peers().iter();
        let permitted = peers.filter(|peer| addresses.refusal(peer.addr.ip()).is_none());
        PeerSet::new(permitted.cloned().collect())
    }
}

fn header(content: &[u8]) -> String {
    let checksum = SipHasher13::new().hash(content).as_u128();
    format!("{NAME} {VERSION} {checksum:032x}\n")
}

/// The content behind the first line.
fn checked(bytes: &[u8]) -> Result<&[u8], Damage> {
    if bytes.len() > MAX_BYTES {
        return Err(Damage::TooLong);
    }
    let end = bytes.iter().position(|&b| b == b'\n').ok_or(Damage::Header)?;
    let (line, content) = bytes.split_at(end + 1);
    let mut words = line.split(|&b| b == b' ');
    let is_ours = words.next() == Some(NAME.as_bytes());
    let version = words.next().and_then(|word| std::str::from_utf8(word).ok()?.parse().ok());
    match version.filter(|_| is_ours) {
        None => Err(Damage::Header),
        Some(VERSION) if line == header(content).as_bytes() => Ok(content),
        Some(VERSION) => Err(Damage::Checksum),
        Some(version) => Err(Damage::Version(version)),
    }
}

/// The peers of a set in the shared table; `None` if its details can't be read.
pub fn peers_of(image: &PeerSnapshot) -> Option<PeerSet> {
    let details = image.metadata();
    if details.len() != image.records.len() {
        return None;
    }
    let peer = |(record, detail): (&crate::table::PeerRecord, crate::table::PeerMetadata)| {
        Some(Peer {
            addr: record.addr(),
            weight: NonZeroU16::new(u16::try_from(record.weight).ok()?)?,
            identity: record.identity,
            node: detail.node,
            id: detail.id,
            tags: detail.tags,
            health: detail.health,
            datacenter: detail.datacenter,
            params: record.params(),
            meta: detail.meta,
        })
    };
    let peers: Option<Vec<Peer>> = image.records.iter().zip(details).map(peer).collect();
    peers.map(PeerSet::new)
}

/// A set without the peers whose identity an earlier one has.
fn distinct(peers: Vec<Peer>) -> PeerSet {
    let mut seen = HashSet::with_capacity(peers.len());
    PeerSet::new(peers.into_iter().filter(|peer| seen.insert(peer.identity)).collect())
}

#[cfg(test)]
mod tests;
