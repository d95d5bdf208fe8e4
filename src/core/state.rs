//! The last good answers on disk, so that an nginx that starts while Consul is down has peers.
//!
//! One file holds the sets of all targets: a first line with name, version, checksum and length,
//! then JSON. A token is never in it.
//!
//! ```text
//! nginx-consul-state 1 <SipHash-1-3-128 of the JSON, 32 hex digits> <bytes of JSON>
//! {"written_ms":…,"services":[{"key":…,"service":"web","index":…,"last_good_ms":…,"peers":[…]}],
//!  "orders":[{"subject":…,"action":"drain",…}]}
//! ```
//!
//! The reader trusts nothing: what is not exactly as [`State::encode`] makes it is [`Damage`].

use std::collections::HashSet;
use std::num::NonZeroU16;

use siphasher::sip128::SipHasher13;

use crate::address::AddressFilter;
use crate::model::{Health, Peer, PeerSet, identity};
use crate::table::{Image, Order};

mod content;
pub mod file;
pub mod saver;

pub use file::LoadError;
pub use saver::{Mark, Saver, Source};

const NAME: &str = "nginx-consul-state";
const VERSION: u32 = 1;
/// Longer than any first line.
const MAX_HEADER: usize = 96;
/// Longest file that is read or written, in bytes: about a million instances.
pub const MAX_BYTES: usize = 256 << 20;

/// What a state file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// When it was written, milliseconds since the epoch.
    pub written_ms: u64,
    /// The targets that had a good answer.
    pub targets: Vec<Saved>,
    /// What operators have ordered of instances.
    pub orders: Vec<Order>,
}

/// The last good answer for one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// [`Plan::key`](crate::sync::Plan::key), never 0.
    pub key: u128,
    /// Name of the service, for people.
    pub service: String,
    /// If a request has named the service: [`Template::key`](crate::named::Template::key).
    pub template: Option<u128>,
    /// `X-Consul-Index` of the answer.
    pub index: u64,
    /// When the answer came, milliseconds since the epoch.
    pub last_good_ms: u64,
    /// The peers, be it none.
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
    /// Cut off, or something was appended.
    #[error("it has {found} bytes after the first line instead of {said}")]
    Length {
        /// What the first line says.
        said: usize,
        /// What there is.
        found: usize,
    },
    /// A byte was changed.
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
        let content = content::write(self);
        let mut bytes = header(VERSION, checksum(&content), content.len()).into_bytes();
        bytes.extend(content);
        bytes
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

fn checksum(content: &[u8]) -> u128 {
    SipHasher13::new().hash(content).as_u128()
}

fn header(version: u32, checksum: u128, length: usize) -> String {
    format!("{NAME} {version} {checksum:032x} {length}\n")
}

/// The content behind the first line.
fn checked(bytes: &[u8]) -> Result<&[u8], Damage> {
    if bytes.len() > MAX_BYTES {
        return Err(Damage::TooLong);
    }
    let end = bytes.iter().take(MAX_HEADER).position(|&b| b == b'\n').ok_or(Damage::Header)?;
    let line = std::str::from_utf8(&bytes[..=end]).map_err(|_| Damage::Header)?;
    let content = &bytes[end + 1..];
    let mut words = line.trim_end().split(' ');
    if words.next() != Some(NAME) {
        return Err(Damage::Header);
    }
    let version = words.next().and_then(|w| w.parse().ok()).ok_or(Damage::Header)?;
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let said = words.next().and_then(|w| u128::from_str_radix(w, 16).ok()).ok_or(Damage::Header)?;
    let length: usize = words.next().and_then(|w| w.parse().ok()).ok_or(Damage::Header)?;
    // There is one way to write a first line.
    if line != header(version, said, length) {
        return Err(Damage::Header);
    }
    if length != content.len() {
        return Err(Damage::Length { said: length, found: content.len() });
    }
    if said != checksum(content) {
        return Err(Damage::Checksum);
    }
    Ok(content)
}

/// The peers of a set in the shared table; `None` if its details can't be read.
pub fn peers_of(image: &Image) -> Option<PeerSet> {
    let details = image.details();
    if details.len() != image.records.len() {
        return None;
    }
    let peer = |(record, detail): (&crate::table::Record, crate::table::Detail)| {
        Some(Peer {
            addr: record.addr(),
            weight: NonZeroU16::new(u16::try_from(record.weight).ok()?)?,
            identity: record.identity,
            node: detail.node,
            id: detail.id,
            tags: detail.tags,
            health: health(&detail.health)?,
            datacenter: detail.datacenter,
            params: record.params(),
            meta: detail.meta,
        })
    };
    let peers: Option<Vec<Peer>> = image.records.iter().zip(details).map(peer).collect();
    peers.map(PeerSet::new)
}

/// Consul's word for a health.
fn health(word: &str) -> Option<Health> {
    [Health::Passing, Health::Warning, Health::Critical].into_iter().find(|h| h.as_str() == word)
}

/// Whether the peer's identity has its address in it: it is one of several of a host name.
fn is_one_of_several(peer: &Peer) -> bool {
    peer.identity != identity(&peer.node, &peer.id, None)
}

/// A set without the peers whose identity an earlier one has.
fn distinct(peers: Vec<Peer>) -> PeerSet {
    let mut seen = HashSet::with_capacity(peers.len());
    PeerSet::new(peers.into_iter().filter(|peer| seen.insert(peer.identity)).collect())
}

#[cfg(test)]
mod tests;
