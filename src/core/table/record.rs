//! A peer as it lies in a block.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use serde::{Deserialize, Serialize};

use super::Table;
use super::counters::SlotRef;
use super::platform::atomic::{AtomicU64, Ordering::Relaxed};
use super::words::{join, split, wide};
use crate::model::{Health, Meta, Peer, PeerSet};
use crate::params::Params;

/// Words of a peer's record.
pub(super) const PEER_RECORD: usize = 7;
/// Flags, below the port.
const IPV6: u64 = 1 << 8;
const BACKUP: u64 = 1 << 9;
const DOWN: u64 = 1 << 10;
/// In place of a parameter that the instance doesn't have.
const NONE: u32 = u32::MAX;

/// What a request needs of a peer. As small as in the table, because a worker copies all of them for
/// each change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerRecord {
    /// Whose slot that is.
    pub identity: u64,
    /// Weight in effect, at least 1.
    pub weight: u32,
    /// Where its counters are.
    pub place: SlotRef,
    /// Scope, port and flags.
    mixed: u64,
    ip: [u64; 2],
    limits: [u64; 2],
}

/// What only the status page and variables need of a peer. In the table it is a line of JSON, in the
/// order of the records.
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
    /// Consul's word for its health.
    #[serde(rename = "h")]
    pub health: Health,
    /// Datacenter, if known.
    #[serde(rename = "d", default, skip_serializing_if = "String::is_empty")]
    pub datacenter: String,
    /// What is kept of `Service.Meta`.
    #[serde(rename = "m", default, skip_serializing_if = "Meta::is_empty")]
    pub meta: Meta,
}

impl PeerRecord {
    /// Whether another one has the same address.
    pub fn has_address_of(&self, other: &PeerRecord) -> bool {
        let own = |r: &PeerRecord| (r.ip, r.mixed & !(BACKUP | DOWN));
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
        let ip = Ipv6Addr::from(wide(self.ip));
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

    /// Keeps new requests from it.
    pub(super) fn set_down(&mut self) {
        self.mixed |= DOWN;
    }

    /// Neither its failures nor its own word keep it out.
    pub(super) fn set_up(&mut self) {
        self.mixed &= !DOWN;
        // No number of failures.
        self.limits[0] = join(0, split(self.limits[0]).1);
    }

    /// Of a peer whose counters are there.
    pub(super) fn new(peer: &Peer, place: SlotRef) -> PeerRecord {
        let (ip, scope) = match peer.addr {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        let (ip, params) = (u128::from(ip), &peer.params);
        let flag = |set, bit| if set { bit } else { 0 };
        let pair = |a: Option<u32>, b: Option<u32>| join(a.unwrap_or(NONE), b.unwrap_or(NONE));
        PeerRecord {
            identity: peer.identity,
            weight: u32::from(peer.weight.get()),
            place,
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
        let first = join(table.slot_number(self.place), self.weight);
        [first, self.identity, self.mixed, ip, ip_high, fails, conns]
    }

    /// `None` if there is no such slot.
    pub(super) fn decode(
        words: &[AtomicU64; PEER_RECORD],
        table: &Table<'_>,
    ) -> Option<PeerRecord> {
        let word = |at: usize| words[at].load(Relaxed);
        let (slot, weight) = split(word(0));
        Some(PeerRecord {
            identity: word(1),
            weight: weight.max(1),
            place: table.slot_place(slot as usize)?,
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
            let detail = PeerMetadata {
                node: p.node.clone(),
                id: p.id.clone(),
                tags: p.tags.clone(),
                health: p.health,
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
    pub(crate) fn decode(line: &[u8]) -> Option<PeerMetadata> {
        serde_json::from_slice(line).ok()
    }
}
