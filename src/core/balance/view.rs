//! A worker's own copy of the sets of an upstream, ready to pick from, and the peers of it that a
//! request has tried.

use std::cell::Cell;

use crc32fast::Hasher;

use super::modulo::Modulo;
use super::ring::{Member, Ring};
use super::schedule::{Schedule, WeightTable};
use crate::address::AddressText;
use crate::params::Params;
use crate::table::{FailureLimits, PeerRecord, PeerSnapshot, SlotRef};

/// A balancing method, by the names of `consul_balance`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Smooth weighted round robin, nginx's default; the order is each worker's own.
    #[default]
    RoundRobin,
    /// A weighted random peer.
    Random,
    /// Of two weighted random peers the one with fewer requests in flight for its weight.
    LeastConn,
    /// Of two weighted random peers the one that answers sooner for what it has in flight.
    LeastTime,
    /// The peer that a key belongs to, as stock nginx's `hash`.
    Hash {
        /// A peer that comes or goes moves its own keys only.
        consistent: bool,
    },
}

impl Method {
    /// The method of that name, if it needs no key.
    pub fn from_name(name: &str) -> Option<Method> {
        match name {
            "round_robin" => Some(Method::RoundRobin),
            "random" => Some(Method::Random),
            "least_conn" => Some(Method::LeastConn),
            "least_time" => Some(Method::LeastTime),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Method::RoundRobin => "round_robin",
            Method::Random => "random",
            Method::LeastConn => "least_conn",
            Method::LeastTime => "least_time",
            Method::Hash { consistent: false } => "hash",
            Method::Hash { consistent: true } => "hash consistent",
        }
    }
}

/// The sets of an upstream as a worker uses them. A view is never changed, so a request that holds it
/// sees one generation of each set from beginning to end.
///
/// Its peers are numbered from 0 over all [`Tier`]s.
#[derive(Debug)]
pub struct View {
    generations: Vec<u64>,
    pub(super) records: Vec<PeerRecord>,
    pub(super) infos: Vec<PeerInfo>,
    pub(super) tiers: Vec<Tier>,
    /// No peer that failures exclude could be probed.
    pub(super) none_to_probe: NegativeCache,
}

/// Peers of equal priority: a tier is used while no earlier one has a usable peer.
#[derive(Debug)]
pub struct Tier {
    /// Number of the upstream's set (datacenter) that it is from.
    pub set: usize,
    /// Whether its peers have `backup`; their tier comes after that of the others.
    pub backup: bool,
    pub(super) first: usize,
    /// Failures excluded all of them.
    pub(super) none_usable: NegativeCache,
    pub(super) weights: WeightTable,
    /// Each tier has its own: requests that go on to the next tier take no turn of this one.
    pub(super) schedule: Schedule,
    pub(super) keys: KeyMap,
}

/// That no peer can be used: until then, only a recovery can change that.
#[derive(Debug, Default)]
pub(super) struct NegativeCache {
    /// Milliseconds of the monotonic clock.
    pub(super) until: Cell<u64>,
    /// [`Table::recoveries`](crate::table::Table::recoveries) at that time.
    pub(super) recoveries: Cell<u64>,
}

/// Which peers a key belongs to.
#[derive(Debug)]
pub(super) enum KeyMap {
    /// The method needs no key.
    None,
    Consistent {
        ring: Ring,
        /// Has detected the processor's features.
        crc: Hasher,
    },
    Modulo(Modulo),
}

/// What a pick needs of a peer, close together in memory.
#[derive(Clone, Copy, Debug)]
pub struct PeerInfo {
    /// Owner of the slot.
    pub owner: u64,
    /// Where its counters are.
    pub slot: SlotRef,
    /// Weight in effect, at least 1.
    pub weight: u32,
    /// Its number in the view.
    pub number: u32,
    /// Parameters in effect.
    pub params: ServerParams,
    pub(super) down: bool,
    /// It is not down, and has neither `max_conns` nor `slow_start`.
    pub(super) plain: bool,
}

/// nginx's parameters of a `server`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerParams {
    /// Failures within `fail_timeout` that take a peer out; 0 never does.
    pub max_fails: u32,
    /// Seconds.
    pub fail_timeout: u32,
    /// Most requests in flight to a peer over all workers; 0 is no limit.
    pub max_conns: u32,
    /// Milliseconds over which a new peer's share grows; 0 is at once.
    pub slow_start: u32,
}

impl Default for ServerParams {
    /// The defaults of nginx.
    fn default() -> ServerParams {
        ServerParams { max_fails: 1, fail_timeout: 10, max_conns: 0, slow_start: 0 }
    }
}

impl ServerParams {
    /// `max_fails` and `fail_timeout`, in milliseconds.
    #[inline]
    pub fn limits(&self) -> FailureLimits {
        let fail_timeout = u64::from(self.fail_timeout) * 1000;
        FailureLimits { max_fails: self.max_fails.into(), fail_timeout }
    }

    /// These, except for what the instance itself sets.
    pub fn merged_with(&self, params: &Params) -> ServerParams {
        ServerParams {
            max_fails: params.max_fails.unwrap_or(self.max_fails),
            fail_timeout: params.fail_timeout.unwrap_or(self.fail_timeout),
            max_conns: params.max_conns.unwrap_or(self.max_conns),
            slow_start: params.slow_start.unwrap_or(self.slow_start),
        }
    }
}

impl View {
    /// Prepares sets for picking by `method`, the first to be used first. `defaults` are for
    /// what an instance does not set itself. What did not change is taken over from the view
    /// `before`.
    pub fn new(
        snapshots: Vec<PeerSnapshot>,
        defaults: &ServerParams,
        method: Method,
        before: Option<&View>,
    ) -> View {
        let generations = snapshots.iter().map(|snapshot| snapshot.generation).collect();
        // The records of the first set, nearly always the only one, are not copied again.
        let mut records: Vec<PeerRecord> = Vec::new();
        let mut tiers = Vec::with_capacity(snapshots.len());
        for (set, mut snapshot) in snapshots.into_iter().enumerate() {
            if snapshot.records.iter().any(PeerRecord::is_backup) {
                snapshot.records.sort_by_key(PeerRecord::is_backup);
            }
            let first = records.len();
            let backups = first + snapshot.records.partition_point(|record| !record.is_backup());
            if records.is_empty() {
                records = snapshot.records;
            } else {
                records.extend(snapshot.records);
            }
            for (backup, members) in [(false, first..backups), (true, backups..records.len())] {
                if !members.is_empty() {
                    let same = |tier: &&Tier| tier.set == set && tier.backup == backup;
                    let before = before.and_then(|view| {
                        let tier = view.tiers.iter().find(same)?;
                        Some((tier, &view.records[tier.peers()]))
                    });
                    let first = members.start;
                    let tier = Tier::new(&records[members], method, before);
                    tiers.push(Tier { set, backup, first, ..tier });
                }
            }
        }
        let infos =
            records.iter().zip(0..).map(|(record, n)| PeerInfo::new(record, n, defaults)).collect();
        View { generations, records, infos, tiers, none_to_probe: NegativeCache::default() }
    }

    /// Has the round robin begin at any place of its order instead of the first.
    pub fn begin_at(&self, place: u64) {
        self.tiers.iter().for_each(|tier| tier.schedule.begin_at(place));
    }

    /// Generations of the sets.
    pub fn generations(&self) -> &[u64] {
        &self.generations
    }

    /// A copy of one of the sets, for the next view.
    pub fn snapshot(&self, set: usize) -> PeerSnapshot {
        let tiers = self.tiers.iter().filter(|tier| tier.set == set);
        let records = tiers.flat_map(|tier| &self.records[tier.peers()]).copied().collect();
        PeerSnapshot::of_records(self.generations[set], records)
    }

    /// Number of the set that a peer is from, and its number within the set.
    pub fn position_in_set(&self, peer: usize) -> Option<(usize, usize)> {
        let set = self.tiers.iter().find(|tier| tier.peers().contains(&peer))?.set;
        let first = self.tiers.iter().find(|tier| tier.set == set)?.first;
        Some((set, peer - first))
    }

    /// The peers.
    pub fn records(&self) -> &[PeerRecord] {
        &self.records
    }

    /// What a pick needs of a peer.
    #[inline]
    pub fn info(&self, peer: usize) -> &PeerInfo {
        &self.infos[peer]
    }

    /// The tiers in their order; none is empty.
    pub fn tiers(&self) -> &[Tier] {
        &self.tiers
    }
}

impl Tier {
    /// `before` is the tier in the view before, and its peers.
    fn new(members: &[PeerRecord], method: Method, before: Option<(&Tier, &[PeerRecord])>) -> Tier {
        let weights = WeightTable::new(members.iter().map(|record| record.weight));
        let schedule = Schedule::new(&weights);
        let keys = KeyMap::new(members, method, before.map(|(tier, peers)| (&tier.keys, peers)));
        let none_usable = NegativeCache::default();
        Tier { set: 0, backup: false, first: 0, none_usable, weights, schedule, keys }
    }

    /// Its peers.
    pub fn peers(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.weights.count()
    }
}

impl KeyMap {
    fn new(
        members: &[PeerRecord],
        method: Method,
        before: Option<(&KeyMap, &[PeerRecord])>,
    ) -> KeyMap {
        match method {
            Method::Hash { consistent: true } => {
                let before = before.and_then(|(keys, peers)| match keys {
                    KeyMap::Consistent { ring, .. } => Some((ring, peers)),
                    _ => None,
                });
                KeyMap::Consistent { ring: Ring::new(members, before), crc: Hasher::new() }
            }
            Method::Hash { consistent: false } => {
                KeyMap::Modulo(Modulo::new(members.iter().map(|record| record.weight)))
            }
            _ => KeyMap::None,
        }
    }
}

impl Member for PeerRecord {
    fn identity(&self) -> u64 {
        self.identity
    }

    fn weight(&self) -> u32 {
        self.weight
    }

    fn name(&self) -> impl AsRef<[u8]> {
        AddressText::new(self.addr())
    }

    fn is_named_as(&self, other: &PeerRecord) -> bool {
        self.has_address_of(other)
    }
}

impl PeerInfo {
    fn new(record: &PeerRecord, number: u32, defaults: &ServerParams) -> PeerInfo {
        let own = record.params();
        let (down, params) = (own.down, defaults.merged_with(&own));
        let plain = !down && params.max_conns == 0 && params.slow_start == 0;
        PeerInfo {
            owner: record.owner,
            slot: record.slot,
            weight: record.weight,
            number,
            params,
            down,
            plain,
        }
    }

    /// Its `max_fails` and `fail_timeout`, in milliseconds.
    #[inline]
    pub fn limits(&self) -> FailureLimits {
        self.params.limits()
    }
}

/// Tried peers that need no allocation.
const INLINE: usize = 4;

/// Peers that a request has tried. Up to four need no allocation. It changes behind a shared reference,
/// because variables may be evaluated while the request picks.
#[derive(Default)]
#[allow(missing_debug_implementations)]
pub struct Tried {
    count: Cell<u32>,
    first: [Cell<u32>; INLINE],
    /// A bit for each peer, once there are more than four.
    bits: Cell<Box<[u64]>>,
}

impl Tried {
    /// Whether the peer was tried.
    #[inline]
    pub fn contains(&self, peer: usize) -> bool {
        self.count.get() != 0 && self.has(peer)
    }

    fn has(&self, peer: usize) -> bool {
        match self.first.get(..self.count()) {
            Some(first) => first.iter().any(|tried| tried.get() == peer as u32),
            None => {
                let bits = self.bits.take();
                let has = bits.get(peer / 64).is_some_and(|word| word >> (peer % 64) & 1 != 0);
                self.bits.set(bits);
                has
            }
        }
    }

    /// Adds a peer.
    #[inline]
    pub fn insert(&self, peer: usize) {
        match self.first.get(self.count()) {
            Some(cell) => cell.set(peer as u32),
            None => self.insert_more(peer),
        }
        self.count.set(self.count.get() + 1);
    }

    #[cold]
    fn insert_more(&self, peer: usize) {
        let mut bits = self.bits.take().into_vec();
        let mut set_bit = |peer: usize| {
            let word = peer / 64;
            if bits.len() <= word {
                bits.resize((word + 1).next_power_of_two(), 0);
            }
            bits[word] |= 1 << (peer % 64);
        };
        if self.count() == INLINE {
            self.first.iter().for_each(|first| set_bit(first.get() as usize));
        }
        set_bit(peer);
        self.bits.set(bits.into());
    }

    /// How many were tried.
    #[inline]
    pub fn count(&self) -> usize {
        self.count.get() as usize
    }
}

#[cfg(test)]
mod tests;
