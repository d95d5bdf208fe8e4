//! What a state file holds, and its bytes.
//!
//! The reader trusts nothing: what is not exactly as [`State::encode`] makes it is [`Damage`].

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use siphasher::sip128::SipHasher13;

use super::peers;
use crate::address::AddressFilter;
use crate::clock::{Clock, boot_id};
use crate::model::{Override, PeerSet};
use crate::text::printable;

pub(super) const NAME: &str = "nginx-consul-state";
const VERSION: u32 = 1;

/// What a state file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// When it was written, milliseconds since the epoch.
    pub written_ms: u64,
    /// The boot in which it was written; earlier versions of the module did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
    /// The targets that had a good answer.
    #[serde(rename = "services")]
    pub targets: Vec<Saved>,
    /// Overrides of instances, not of selections.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
}

/// A boot, and its monotonic clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// [`boot_id`].
    pub id: String,
    /// The monotonic clock at `written_ms`, milliseconds.
    pub monotonic_ms: u64,
}

/// The last good answer for one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// [`Plan::key`](crate::watch::Plan::key), never 0.
    pub key: u128,
    /// Name of the service, for readers of the file.
    pub service: String,
    /// Key of the template, if a request has named the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<u128>,
    /// `X-Consul-Index` of the answer.
    pub index: u64,
    /// When the answer came, milliseconds since the epoch.
    pub last_good_ms: u64,
    /// The peers; may be empty.
    #[serde(with = "peers")]
    pub peers: PeerSet,
}

/// What is wrong with a state file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The first line is not that of a state file.
    #[error("its first line is not that of a state file")]
    Header,
    /// Another version of the module wrote it.
    #[error("it has version {0}, only version {VERSION} is known")]
    Version(u32),
    /// The content was changed or cut off.
    #[error("its checksum is wrong")]
    Checksum,
    /// The checksum is right, but not the content.
    #[error("{0}")]
    Content(String),
    /// More than was to be read.
    #[error("it is longer than {0} bytes")]
    TooLong(u64),
}

impl State {
    /// What is written `now`.
    pub fn new(now: Clock, targets: Vec<Saved>, overrides: Vec<Override>) -> State {
        let boot = boot_id().map(|id| Boot { id, monotonic_ms: now.monotonic });
        State { written_ms: now.wall, boot, targets, overrides }
    }

    /// Makes of all times what the wall clock would have shown, had it always gone as `now`. Those of
    /// another boot stay: only the wall clock relates them to this one.
    pub fn to_wall_clock(&mut self, now: Clock) {
        let is_this = |boot: &&Boot| {
            boot.monotonic_ms <= now.monotonic && boot_id().is_some_and(|id| id == boot.id)
        };
        let Some(boot) = self.boot.as_ref().filter(is_this) else { return };
        let then = Clock { wall: self.written_ms, monotonic: boot.monotonic_ms };
        let shift = |time: &mut u64| *time = now.wall_at(then.monotonic_at(*time));
        shift(&mut self.written_ms);
        self.targets.iter_mut().for_each(|saved| shift(&mut saved.last_good_ms));
        for held in &mut self.overrides {
            shift(&mut held.since_ms);
            held.until_ms.iter_mut().for_each(shift);
        }
    }

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

    /// As [`State::decode`], of what follows the first line. The fuzzer calls this: it would never get
    /// past the checksum.
    ///
    /// # Errors
    ///
    /// [`Damage::Content`].
    pub fn decode_content(content: &[u8]) -> Result<State, Damage> {
        read(content)
    }
}

impl Saved {
    /// Age of the answer; `None` if it is in the future, because the clock was set back.
    pub fn age_ms(&self, now_ms: u64) -> Option<u64> {
        now_ms.checked_sub(self.last_good_ms)
    }

    /// The peers whose address may be used: the file is not trusted more than Consul.
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

/// Reads what follows the first line.
fn read(content: &[u8]) -> Result<State, Damage> {
    let state: State = serde_json::from_slice(content)
        .map_err(|error| Damage::Content(printable(&error.to_string()).into_owned()))?;
    let mut keys = HashSet::from([0]);
    if let Some(bad) = state.targets.iter().find(|saved| !keys.insert(saved.key)) {
        let name = bad.service.escape_debug();
        return Err(Damage::Content(format!("service \"{name}\": its key is not its own")));
    }
    if state.overrides.iter().any(|held| !held.is_valid()) {
        return Err(Damage::Content("an override is none".to_owned()));
    }
    Ok(state)
}
