//! Reading a set of peers, without waiting for anybody.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use serde::{Deserialize, Serialize};

use super::Table;
use super::entry::D_COUNT;
use super::history::{self, Changed};
use super::machine::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed},
    fence,
};
use super::orders::Action;
use super::publish::Held;
use super::slots::Place;
use crate::model::{Meta, Peer, PeerSet};
use crate::params::Params;

/// Words of a peer's record.
pub(super) const RECORD: usize = 7;
/// Flags, below the port.
const IPV6: u64 = 1 << 8;
const BACKUP: u64 = 1 << 9;
const DOWN: u64 = 1 << 10;
/// How often a reader starts over before it stays with what it has.
const TRIES: usize = 8;

/// What a request needs of a peer. As small as in the table, because a worker copies all of them for
/// each change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whose slot that is.
    pub identity: u64,
    /// Weight in effect, at least 1.
    pub weight: u32,
    /// Where its counters are.
    pub place: Place,
    /// Scope, port and flags.
    mixed: u64,
    ip: [u64; 2],
    limits: [u64; 2],
}

/// What only the status page and variables need of a peer. In the table it is a line of JSON, in the
/// order of the records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    /// Name of the node.
    #[serde(rename = "n")]
    pub node: String,
    /// Service id.
    #[serde(rename = "i")]
    pub id: String,
    /// Tags.
    #[serde(rename = "t", default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Consul's word for its health.
    #[serde(rename = "h")]
    pub health: String,
    /// Datacenter, if known.
    #[serde(rename = "d", default, skip_serializing_if = "String::is_empty")]
    pub datacenter: String,
    /// What is kept of `Service.Meta`.
    #[serde(rename = "m", default, skip_serializing_if = "Meta::is_empty")]
    pub meta: Meta,
}

/// A copy of one set.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// The generation it is.
    pub generation: u64,
    /// Its peers.
    pub records: Vec<Record>,
    /// If they were read.
    details: Option<Vec<u8>>,
    history: Vec<u64>,
}

impl Record {
    /// Whether another one has the same address.
    pub fn has_address_of(&self, other: &Record) -> bool {
        let own = |r: &Record| (r.ip, r.mixed & !(BACKUP | DOWN));
        own(self) == own(other)
    }

    /// What tells its address from others: the same for the same one, and nothing else does it for
    /// IPv4.
    #[inline]
    pub fn address_id(&self) -> u64 {
        let rest = self.mixed & !(BACKUP | DOWN);
        self.ip[0] ^ rest.rotate_left(32) ^ self.ip[1].wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Where to connect.
    pub fn addr(&self) -> SocketAddr {
        let ip = Ipv6Addr::from(u128::from(self.ip[1]) << 64 | u128::from(self.ip[0]));
        let port = (self.mixed >> 16) as u16;
        if self.mixed & IPV6 == 0 {
            let v4 = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
            SocketAddr::new(v4, port)
        } else {
            SocketAddr::V6(SocketAddrV6::new(ip, port, 0, (self.mixed >> 32) as u32))
        }
    }

    /// Whether other instances are to be used first.
    #[inline]
    pub fn is_backup(&self) -> bool {
        self.mixed & BACKUP != 0
    }

    /// The instance's own parameters, but for the weight.
    #[inline]
    pub fn params(&self) -> Params {
        Params {
            weight: None,
            max_fails: number(self.limits[0] >> 32),
            fail_timeout: number(self.limits[0]),
            max_conns: number(self.limits[1] >> 32),
            slow_start: number(self.limits[1]),
            backup: self.is_backup(),
            down: self.mixed & DOWN != 0,
        }
    }

    /// Makes it what is ordered of the instance.
    pub(super) fn obey(&mut self, action: Action) {
        match action {
            Action::Freeze => {}
            Action::Drain | Action::Down => self.mixed |= DOWN,
            Action::Up => {
                self.mixed &= !DOWN;
                let timeout = self.limits[0] & u64::from(u32::MAX);
                self.limits[0] = u64::from(optional(Some(0))) << 32 | timeout;
            }
            Action::Weight(weight) => self.weight = u32::from(weight).max(1),
        }
    }

    pub(super) fn encode(peer: &Peer, slot: u32) -> [u64; RECORD] {
        let (ip, scope) = match peer.addr {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        let ip = u128::from(ip);
        let flag = |set, bit| if set { bit } else { 0 };
        let mut words = [0; RECORD];
        words[0] = u64::from(slot) << 32 | u64::from(peer.weight.get());
        words[1] = peer.identity;
        words[2] = u64::from(scope) << 32
            | u64::from(peer.addr.port()) << 16
            | flag(peer.params.down, DOWN)
            | flag(peer.params.backup, BACKUP)
            | flag(peer.addr.is_ipv6(), IPV6);
        words[3] = ip as u64;
        words[4] = (ip >> 64) as u64;
        let pair = |a, b| u64::from(optional(a)) << 32 | u64::from(optional(b));
        words[5] = pair(peer.params.max_fails, peer.params.fail_timeout);
        words[6] = pair(peer.params.max_conns, peer.params.slow_start);
        words
    }

    /// `None` if there is no such slot.
    pub(super) fn decode(words: &[AtomicU64; RECORD], table: &Table<'_>) -> Option<Record> {
        let word = |at: usize| words[at].load(Relaxed);
        let first = word(0);
        Some(Record {
            identity: word(1),
            weight: (first as u32).max(1),
            place: table.slot_place((first >> 32) as usize)?,
            mixed: word(2),
            ip: [word(3), word(4)],
            limits: [word(5), word(6)],
        })
    }
}

/// A parameter in half a word.
fn optional(number: Option<u32>) -> u32 {
    number.unwrap_or(u32::MAX)
}

/// The parameter in the lower half of a word.
fn number(word: u64) -> Option<u32> {
    Some(word as u32).filter(|&number| number != u32::MAX)
}

impl Detail {
    pub(super) fn encode(set: &PeerSet) -> Vec<u8> {
        let mut lines = Vec::new();
        for p in set.peers() {
            let detail = Detail {
                node: p.node.clone(),
                id: p.id.clone(),
                tags: p.tags.clone(),
                health: p.health.as_str().to_owned(),
                datacenter: p.datacenter.clone(),
                meta: p.meta.clone(),
            };
            let written = serde_json::to_writer(&mut lines, &detail);
            debug_assert!(written.is_ok(), "a Vec takes everything");
            lines.push(b'\n');
        }
        lines
    }

    /// The detail in a line.
    pub(crate) fn decode(line: &[u8]) -> Option<Detail> {
        serde_json::from_slice(line).ok()
    }
}

impl Image {
    /// A set without details, as [`Table::read_records`] gives it.
    pub fn of_records(generation: u64, records: Vec<Record>) -> Image {
        Image { generation, records, ..Image::default() }
    }

    /// The last changes of the set, newest first.
    pub fn history(&self) -> Vec<Changed> {
        history::decode(&self.history)
    }

    /// What the status shows of each peer, in their order.
    pub fn details(&self) -> Vec<Detail> {
        let lines = self.details.as_deref().unwrap_or_default();
        let lines = lines.split_inclusive(|&b| b == b'\n');
        lines.map_while(Detail::decode).collect()
    }

    /// The next of the details, for who takes them one at a time; `at` is 0 at first.
    pub fn next_detail(&self, at: &mut usize) -> Option<Detail> {
        let rest = self.details.as_ref()?.get(*at..)?;
        let line = rest.split_inclusive(|&b| b == b'\n').next()?;
        *at += line.len();
        Detail::decode(line)
    }

    /// The same as it is in the table, once.
    pub(crate) fn take_details(&mut self) -> Option<Vec<u8>> {
        self.details.take()
    }
}

impl<'z> Table<'z> {
    /// Copies the set of `key`, whose entry this was when the caller looked. `None` before the
    /// first answer, when the entry has passed to another target, and if publishers were faster
    /// than this reader several times running: the caller then stays with the copy it has.
    pub fn read(&self, entry: usize, key: u128) -> Option<Image> {
        (0..TRIES).find_map(|_| self.try_read(entry, key, true))
    }

    /// As [`Table::read`], without the details: what a worker needs to pick.
    pub fn read_records(&self, entry: usize, key: u128) -> Option<Image> {
        (0..TRIES).find_map(|_| self.try_read(entry, key, false))
    }

    pub(super) fn try_read(&self, entry: usize, key: u128, with_details: bool) -> Option<Image> {
        let generation = self.generation(entry);
        if self.key(entry) != key {
            return None;
        }
        let (offset, len) = self.place(entry, generation)?;
        let counts = self.descriptor(entry, generation, D_COUNT).load(Relaxed);
        let count = (counts & u64::from(u32::MAX)) as usize;
        let detail_bytes = (counts >> 32) as usize;
        let details_at = count.checked_mul(RECORD)?;
        let history_at = details_at + detail_bytes.div_ceil(8);
        if history_at > len {
            return None;
        }
        let rows = self.words[offset..offset + details_at].chunks_exact(RECORD);
        let mut records = Vec::with_capacity(count);
        records.extend(rows.filter_map(|words| Record::decode(words.try_into().ok()?, self)));
        let words = |words: std::ops::Range<usize>| {
            self.words[offset + words.start..offset + words.end].iter().map(|w| w.load(Relaxed))
        };
        let details = with_details.then(|| {
            let mut details = Vec::with_capacity((history_at - details_at) * 8);
            words(details_at..history_at).for_each(|w| details.extend_from_slice(&w.to_le_bytes()));
            details.truncate(detail_bytes);
            details
        });
        let history = if with_details { words(history_at..len).collect() } else { Vec::new() };
        // Pairs with the publisher's fence: had one of the words above been of a later block, the
        // generation would have moved.
        fence(Acquire);
        let whole = records.len() == count
            && self.generation(entry) == generation
            && self.key(entry) == key;
        whole.then_some(Image { generation, records, details, history })
    }

    /// Words of the history after one more change. Only under the publishers' lock.
    pub(super) fn next_history(&self, entry: usize, generation: u64, change: Changed) -> Vec<u64> {
        let mut changes = self.history_of(entry, generation);
        if change.is_any() {
            changes.insert(0, change);
        }
        history::encode(changes)
    }

    fn history_of(&self, entry: usize, generation: u64) -> Vec<Changed> {
        let Some((offset, len)) = self.place(entry, generation) else { return Vec::new() };
        let counts = self.descriptor(entry, generation, D_COUNT).load(Relaxed);
        let count = (counts & u64::from(u32::MAX)) as usize;
        let at = count.saturating_mul(RECORD).saturating_add(((counts >> 32) as usize).div_ceil(8));
        let words: Vec<u64> = (at.min(len)..len).map(|w| self.load(offset + w)).collect();
        history::decode(&words)
    }

    /// Slots of the entry's peers by identity. Only under the publishers' lock.
    pub(super) fn identities(&self, entry: usize, generation: u64) -> HashMap<u64, Held> {
        let Some((offset, len)) = self.place(entry, generation) else { return HashMap::new() };
        let count = self.descriptor(entry, generation, D_COUNT).load(Relaxed) & 0xffff_ffff;
        (0..(count as usize).min(len / RECORD))
            .map(|i| {
                let at = offset + i * RECORD;
                (self.load(at + 1), Held { slot: (self.load(at) >> 32) as u32, at })
            })
            .filter(|(_, held)| (held.slot as usize) < self.layout.slot_count)
            .collect()
    }
}
