//! What lies in a block of the arena: a record for each peer, the metadata of each, and the last
//! changes of the set.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::layout::{SlotRef, Table, entry as word};
use super::membership::owner;
use super::platform::atomic::{AtomicU64, Ordering::Relaxed};
use super::words::{join, pack, split, wide};
use crate::model::{Health, Meta, Peer, PeerSet};
use crate::params::Params;

/// Words of a peer's record.
pub(super) const PEER_RECORD: usize = 7;
/// Flags in the bits below the port.
const IPV6: u64 = 1 << 8;
const BACKUP: u64 = 1 << 9;
const DOWN: u64 = 1 << 10;
/// Stands for a parameter that the instance doesn't set.
const NONE: u32 = u32::MAX;

/// Most changes in a history.
const MAX_CHANGES: usize = 10;
/// Most addresses of a change, for joined and left instances each.
const MAX_NAMED: usize = 8;
/// Most bytes of a history. Under loom there is no history: the model needs blocks of one length.
const MAX_BYTES: usize = if cfg!(all(test, loom)) { 0 } else { 1024 };

/// The parts of a block, as ranges of words of the zone.
pub(super) struct Block {
    pub(super) records: Range<usize>,
    pub(super) metadata: Range<usize>,
    pub(super) history: Range<usize>,
}

/// What a pick needs of a peer. It is as small as in the table, because a worker copies the records
/// of the whole set after each change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerRecord {
    /// Identity of the instance.
    pub identity: u64,
    /// Owner of the slot: the instance in the set of its target.
    pub owner: u64,
    /// Weight in effect, at least 1.
    pub weight: u32,
    /// Where its counters are.
    pub slot: SlotRef,
    /// Scope, port and flags.
    mixed: u64,
    ip: [u64; 2],
    limits: [u64; 2],
}

/// What only the status and variables need of a peer. In the table it is a line of JSON; the lines
/// are in the order of the records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerMetadata {
    /// Name of the node.
    #[serde(rename = "n")]
    pub node: String,
    /// Service id.
    #[serde(rename = "i")]
    pub id: String,
    /// Tags.
    #[serde(rename = "t", default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Health in Consul.
    #[serde(rename = "h")]
    pub health: Health,
    /// Datacenter, if known.
    #[serde(rename = "d", default, skip_serializing_if = "String::is_empty")]
    pub datacenter: String,
    /// Values of `Service.Meta` that variables use.
    #[serde(rename = "m", default, skip_serializing_if = "Meta::is_empty")]
    pub meta: Meta,
}

impl Table<'_> {
    /// The block of an entry, never outside the arena; `None` if it has none.
    pub(super) fn block(&self, entry: usize, generation: u64) -> Option<Block> {
        let load = |word| split(self.descriptor(entry, generation, word).load(Relaxed));
        let ((offset, len), (metadata, count)) = (load(word::D_BLOCK), load(word::D_COUNT));
        let (offset, len) = (offset as usize, len as usize);
        let metadata_at = offset + (count as usize).checked_mul(PEER_RECORD)?;
        let history_at = metadata_at + metadata as usize;
        let end = offset + len;
        let fits = offset >= self.layout.arena && end <= self.layout.end && history_at <= end;
        fits.then_some(Block {
            records: offset..metadata_at,
            metadata: metadata_at..history_at,
            history: history_at..end,
        })
    }
}

impl PeerRecord {
    /// Whether another one has the same address.
    pub fn has_address_of(&self, other: &PeerRecord) -> bool {
        let own = |r: &PeerRecord| (r.ip, r.mixed & !(BACKUP | DOWN));
        own(self) == own(other)
    }

    /// A hash of the address, unique for IPv4.
    #[inline]
    pub fn address_id(&self) -> u64 {
        let rest = self.mixed & !(BACKUP | DOWN);
        self.ip[0] ^ rest.rotate_left(32) ^ self.ip[1].wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Where to connect.
    pub fn addr(&self) -> SocketAddr {
        let ip = Ipv6Addr::from(wide(self.ip));
        let port = (self.mixed >> 16) as u16;
        if self.mixed & IPV6 == 0 {
            let v4 = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
            SocketAddr::new(v4, port)
        } else {
            SocketAddr::V6(SocketAddrV6::new(ip, port, 0, (self.mixed >> 32) as u32))
        }
    }

    /// Whether it is used only while no instance without `backup` can be.
    #[inline]
    pub fn is_backup(&self) -> bool {
        self.mixed & BACKUP != 0
    }

    /// The parameters that the instance sets, without the weight.
    #[inline]
    pub fn params(&self) -> Params {
        let number = |number| if number == NONE { None } else { Some(number) };
        let [(max_fails, fail_timeout), (max_conns, slow_start)] = self.limits.map(split);
        Params {
            weight: None,
            max_fails: number(max_fails),
            fail_timeout: number(fail_timeout),
            max_conns: number(max_conns),
            slow_start: number(slow_start),
            backup: self.is_backup(),
            down: self.mixed & DOWN != 0,
        }
    }

    /// An override: it gets no new requests.
    pub(super) fn set_down(&mut self) {
        self.mixed |= DOWN;
    }

    /// An override: neither failures nor `nginx_down` keep requests from it.
    pub(super) fn set_up(&mut self) {
        self.mixed &= !DOWN;
        // max_fails=0
        self.limits[0] = join(0, split(self.limits[0]).1);
    }

    /// The record of a peer with its slot.
    pub(super) fn new(peer: &Peer, slot: SlotRef, owner: u64) -> PeerRecord {
        let (ip, scope) = match peer.addr {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        let (ip, params) = (u128::from(ip), &peer.params);
        let flag = |set, bit| if set { bit } else { 0 };
        let pair = |a: Option<u32>, b: Option<u32>| join(a.unwrap_or(NONE), b.unwrap_or(NONE));
        PeerRecord {
            identity: peer.identity,
            owner,
            weight: u32::from(peer.weight.get()),
            slot,
            mixed: u64::from(scope) << 32
                | u64::from(peer.addr.port()) << 16
                | flag(params.down, DOWN)
                | flag(params.backup, BACKUP)
                | flag(peer.addr.is_ipv6(), IPV6),
            ip: [ip as u64, (ip >> 64) as u64],
            limits: [
                pair(params.max_fails, params.fail_timeout),
                pair(params.max_conns, params.slow_start),
            ],
        }
    }

    pub(super) fn encode(&self, table: &Table<'_>) -> [u64; PEER_RECORD] {
        let ([ip, ip_high], [fails, conns]) = (self.ip, self.limits);
        let first = join(table.slot_number(self.slot), self.weight);
        [first, self.identity, self.mixed, ip, ip_high, fails, conns]
    }

    /// A record of the set of `key`; `None` if there is no such slot.
    pub(super) fn decode(
        words: &[AtomicU64; PEER_RECORD],
        key: u128,
        table: &Table<'_>,
    ) -> Option<PeerRecord> {
        let word = |at: usize| words[at].load(Relaxed);
        let (slot, weight) = split(word(0));
        Some(PeerRecord {
            identity: word(1),
            owner: owner(key, word(1)),
            weight: weight.max(1),
            slot: table.slot_at(slot as usize)?,
            mixed: word(2),
            ip: [word(3), word(4)],
            limits: [word(5), word(6)],
        })
    }
}

impl PeerMetadata {
    pub(super) fn encode(set: &PeerSet) -> Vec<u8> {
        let mut lines = Vec::new();
        for p in set.peers() {
            let metadata = PeerMetadata {
                node: p.node.clone(),
                id: p.id.clone(),
                tags: p.tags.clone(),
                health: p.health,
                datacenter: p.datacenter.clone(),
                meta: p.meta.clone(),
            };
            let written = serde_json::to_writer(&mut lines, &metadata);
            debug_assert!(written.is_ok(), "a Vec takes everything");
            lines.push(b'\n');
        }
        lines
    }

    /// Reads a line of JSON.
    pub(crate) fn decode(line: &[u8]) -> Option<PeerMetadata> {
        serde_json::from_slice(line).ok()
    }
}

/// A change of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Change"))]
#[serde(deny_unknown_fields)]
pub struct SetChange {
    /// When, milliseconds since the epoch.
    pub time_ms: u64,
    /// The generation that it began.
    pub generation: u64,
    /// The lowest addresses of instances that joined.
    pub joined: Vec<String>,
    /// The lowest addresses of instances that left.
    pub left: Vec<String>,
    /// Instances that joined.
    pub joined_total: usize,
    /// Instances that left.
    pub left_total: usize,
    /// Instances that stayed, with another address, weight or parameter.
    pub changed_total: usize,
}

/// A history as words of a block; no words if it is empty. `changes` are newest first.
pub(super) fn encode_history(mut changes: Vec<SetChange>) -> Vec<u64> {
    changes.truncate(MAX_CHANGES);
    while !changes.is_empty() {
        let bytes = postcard::to_stdvec(&changes).unwrap_or_default();
        if bytes.len() <= MAX_BYTES {
            return pack(&bytes);
        }
        changes.pop();
    }
    Vec::new()
}

/// The history in words of a block; empty if they are damaged.
pub(super) fn decode_history(words: impl Iterator<Item = u64>) -> Vec<SetChange> {
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    postcard::from_bytes(&bytes).unwrap_or_default()
}

impl SetChange {
    /// The difference between `set`, of a new generation, and the peers before.
    pub(super) fn of(
        set: &PeerSet,
        before: &HashMap<u64, PeerRecord>,
        (generation, time_ms): (u64, u64),
    ) -> SetChange {
        let (mut gone, mut changed_total) = (before.clone(), 0);
        let mut joined = Vec::new();
        for peer in set.peers() {
            match gone.remove(&peer.identity) {
                Some(held) => {
                    let now = PeerRecord::new(peer, held.slot, held.owner);
                    changed_total += usize::from(now != held)
                }
                None => joined.push(peer.addr),
            }
        }
        let left: Vec<SocketAddr> = gone.values().map(PeerRecord::addr).collect();
        let (joined_total, left_total) = (joined.len(), left.len());
        let [joined, left] = [joined, left].map(|mut addresses| {
            addresses.sort_unstable();
            addresses.iter().take(MAX_NAMED).map(ToString::to_string).collect()
        });
        SetChange { time_ms, generation, joined, left, joined_total, left_total, changed_total }
    }

    /// Whether any instance joined, left or changed. Metadata doesn't count.
    pub(super) fn is_any(&self) -> bool {
        self.joined_total + self.left_total + self.changed_total > 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
