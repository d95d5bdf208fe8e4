//! Which peer of a view a request gets.

use rand::RngCore;

use super::super::latency::{Latency, score};
use super::super::ring::LOOKS;
use super::super::{FULL_SHARE, Method, Peers, Schedule, Tried, WeightTable, pick_from};
use super::{Keys, PeerInfo, Tier, View};
use crate::table::{PROBE_PACE, PeerCounters, Table};

mod admission;
mod obstacle;

pub use admission::{Admission, Admitted, Shared};
pub use obstacle::Obstacle;

/// The time, as the event loop knows it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// Milliseconds since the epoch.
    pub millis: u64,
    /// Milliseconds of the monotonic clock, the same for all processes.
    pub monotonic: u64,
}

/// A view together with what decides whether a peer can be used just now.
#[derive(Clone, Copy)]
pub struct PickContext<'a, 'z> {
    /// The sets.
    pub view: &'a View,
    /// The shared counters.
    pub table: &'a Table<'z>,
    /// The peers this request has tried.
    pub tried: &'a Tried,
    /// The time.
    pub now: Clock,
    /// What the request is hashed by; empty unless the method wants it.
    pub key: &'a [u8],
    /// Failures keep nobody out.
    pub panic: bool,
    /// There is nobody else to ask if these can't be used.
    pub alone: bool,
}

/// A peer, and where to find what a request wants of it.
#[derive(Clone, Copy, Debug)]
pub struct Picked<'a, 'z> {
    /// What the view knows of it.
    pub info: &'a PeerInfo,
    /// Its counters.
    pub counters: PeerCounters<'z>,
}

/// Picks a peer of the first tier that has a usable one.
///
/// One that has failed is picked together with what lets the request try it, since few requests may.
/// If none is usable the request may try one that is out, see [`Shared`]. `cursor` is the worker's
/// place in the round robin order.
#[inline(always)]
pub fn pick<'a, 'z, R: RngCore>(
    method: Method,
    candidates: &PickContext<'a, 'z>,
    shared: impl Fn() -> Shared<'z>,
    cursor: &mut u64,
    rng: &mut R,
) -> Option<Admitted<'a, 'z>> {
    match pick_usable(method, candidates, cursor, rng) {
        Some(picked) if !picked.counters.has_fails() => Some(Admitted { picked, permit: None }),
        picked => pick_failed(method, candidates, (picked, &shared()), cursor, rng),
    }
}

/// As [`pick`], of the peers that are not out only.
#[inline(always)]
fn pick_usable<'a, 'z, R: RngCore>(
    method: Method,
    candidates: &PickContext<'a, 'z>,
    cursor: &mut u64,
    rng: &mut R,
) -> Option<Picked<'a, 'z>> {
    let (first, others) = candidates.view.tiers.split_first()?;
    match pick_in(first, method, candidates, cursor, rng) {
        Some(picked) => Some(picked),
        None => pick_beyond(others, method, candidates, cursor, rng),
    }
}

#[cold]
#[inline(never)]
fn pick_beyond<'a, 'z, R: RngCore>(
    tiers: &'a [Tier],
    method: Method,
    candidates: &PickContext<'a, 'z>,
    cursor: &mut u64,
    rng: &mut R,
) -> Option<Picked<'a, 'z>> {
    tiers.iter().find_map(|tier| pick_in(tier, method, candidates, cursor, rng))
}

/// So often a pick is repeated because another request was quicker to probe its peer.
const RACES: usize = 3;

/// Goes on when the peer that was `picked` has failed, or none was.
#[cold]
#[inline(never)]
fn pick_failed<'a, 'z, R: RngCore>(
    method: Method,
    candidates: &PickContext<'a, 'z>,
    (mut picked, shared): (Option<Picked<'a, 'z>>, &Shared<'z>),
    cursor: &mut u64,
    rng: &mut R,
) -> Option<Admitted<'a, 'z>> {
    for _ in 0..RACES {
        let Some(peer) = picked else { break };
        match candidates.admit(peer, shared) {
            Admission::Free => return Some(Admitted { picked: peer, permit: None }),
            Admission::With(permit) => {
                return Some(Admitted { picked: peer, permit: Some(permit) });
            }
            Admission::Refused if candidates.is_single() => return None,
            Admission::Refused => picked = pick_usable(method, candidates, cursor, rng),
        }
    }
    candidates.last_resort(shared, rng)
}

#[inline(always)]
fn pick_in<'a, 'z, R: RngCore>(
    tier: &'a Tier,
    method: Method,
    candidates: &PickContext<'a, 'z>,
    cursor: &mut u64,
    rng: &mut R,
) -> Option<Picked<'a, 'z>> {
    if candidates.is_known_out(tier) {
        return None;
    }
    let before = *cursor;
    let picked = pick_from(method, &InTier { all: candidates, tier }, cursor, rng);
    if picked.is_none() {
        // A tier that gives nobody does not move the cursor either: its moves and those of the tier
        // in use could add up to whole rounds, and always end at the same peer.
        *cursor = before;
        candidates.note_out(tier);
    }
    picked
}

impl<'z> PickContext<'_, 'z> {
    /// Whether there is only one peer: it may be tried again, since nginx asks for it when a kept
    /// connection turned out stale, and it is never out, as in nginx.
    fn is_single(&self) -> bool {
        self.alone && self.view.records.len() == 1
    }

    /// Whether the peer could be tried by a request that has tried none.
    pub fn is_usable(&self, peer: usize) -> bool {
        let info = self.view.info(peer);
        !info.down && !self.is_full(info) && !self.is_failed(info)
    }

    /// Share of the peers, in percent, that no failure keeps out; those that say they are down are
    /// not counted. 100 of none.
    pub fn healthy_percent(&self) -> usize {
        let (mut all, mut healthy) = (0, 0);
        for info in self.view.infos.iter().filter(|info| !info.down) {
            all += 1;
            healthy += usize::from(!self.has_failed(info));
        }
        (healthy * 100usize).checked_div(all).unwrap_or(100)
    }

    /// Whether failures keep out every peer of the tier, as far as is known without a look at each.
    fn is_known_out(&self, tier: &Tier) -> bool {
        !self.panic
            && self.now.monotonic < tier.out.until.get()
            && self.table.recoveries() == tier.out.recoveries.get()
    }

    /// After a search in vain, so that other requests need none until a peer has recovered, or the
    /// `fail_timeout` of one is over; for a second at most.
    #[cold]
    fn note_out(&self, tier: &Tier) {
        let (now, recoveries) = (self.now.monotonic, self.table.recoveries());
        if self.tried.count() != 0 || self.panic {
            return;
        }
        let mut until = now + 1000;
        for info in self.view.infos[tier.peers()].iter().filter(|info| !info.down) {
            if !self.is_failed(info) {
                return;
            }
            let out_until = self.slot(info).out_until(info.limits());
            until = until.min(out_until.saturating_add(1));
        }
        tier.out.until.set(until);
        tier.out.recoveries.set(recoveries);
    }

    #[inline]
    fn slot(&self, info: &PeerInfo) -> PeerCounters<'z> {
        self.table.peer_counters(info.slot)
    }

    fn is_full(&self, info: &PeerInfo) -> bool {
        let max_conns = u64::from(info.params.max_conns);
        max_conns != 0 && self.table.in_flight_at(info.slot, self.slot(info)) >= max_conns
    }

    fn has_failed(&self, info: &PeerInfo) -> bool {
        self.slot(info).is_failed(info.limits(), self.now.monotonic)
    }

    fn is_failed(&self, info: &PeerInfo) -> bool {
        self.is_out(Picked { info, counters: self.slot(info) })
    }

    /// Whether failures keep the peer out. When its `fail_timeout` is over, and in a panic at any
    /// time, one request at a time may try it.
    fn is_out(&self, Picked { info, counters }: Picked<'_, 'z>) -> bool {
        let (limits, now) = (info.limits(), self.now.monotonic);
        if !counters.is_marked(limits.max_fails) || self.is_single() {
            return false;
        }
        let is_due = self.panic || !counters.is_failed(limits, now);
        !is_due || !counters.is_probe_free(limits, now, self.probe_pace())
    }

    fn probe_pace(&self) -> u64 {
        if self.panic { 0 } else { PROBE_PACE }
    }

    pub(super) fn share(&self, info: &PeerInfo) -> u32 {
        let slow_start = u64::from(info.params.slow_start);
        if slow_start == 0 {
            return FULL_SHARE;
        }
        share(slow_start, self.slot(info).started(), self.now.millis)
    }
}

/// The share of its weight that a peer gets at `now`, of [`FULL_SHARE`], with a slow start of so many
/// milliseconds since it appeared or recovered; times are milliseconds since the epoch.
pub fn share(slow_start: u64, started: u64, now: u64) -> u32 {
    let age = now.saturating_sub(started);
    if age >= slow_start {
        return FULL_SHARE;
    }
    let share = u128::from(FULL_SHARE) * u128::from(age) / u128::from(slow_start);
    (share as u32).max(FULL_SHARE / 100)
}

/// The peers of one tier, numbered from 0.
pub(super) struct InTier<'c, 'a, 'z> {
    pub(super) all: &'c PickContext<'a, 'z>,
    pub(super) tier: &'a Tier,
}

impl<'a, 'z> Peers for InTier<'_, 'a, 'z> {
    type Peer = Picked<'a, 'z>;

    #[inline]
    fn len(&self) -> usize {
        self.tier.weights.count()
    }

    #[inline]
    fn peer(&self, number: usize) -> Picked<'a, 'z> {
        let info = self.all.view.info(self.tier.first + number);
        Picked { info, counters: self.all.slot(info) }
    }

    #[inline]
    fn number(&self, peer: Picked<'a, 'z>) -> usize {
        peer.info.number as usize - self.tier.first
    }

    #[inline]
    fn weights(&self) -> &WeightTable {
        &self.tier.weights
    }

    #[inline]
    fn order(&self) -> &Schedule {
        &self.tier.order
    }

    #[inline]
    fn is_unrestricted(&self, peer: Picked<'a, 'z>) -> bool {
        peer.info.plain && !peer.counters.has_fails() && self.all.tried.count() == 0
    }

    fn is_free(&self, peer: Picked<'a, 'z>) -> bool {
        let (all, info) = (self.all, peer.info);
        (!all.tried.contains(info.number as usize) || all.is_single())
            && !info.down
            && !all.is_full(info)
    }

    fn is_failed(&self, peer: Picked<'a, 'z>) -> bool {
        self.all.is_out(peer)
    }

    fn share(&self, peer: Picked<'a, 'z>) -> u32 {
        self.all.share(peer.info)
    }

    #[inline]
    fn weight(&self, peer: Picked<'a, 'z>) -> u64 {
        peer.info.weight.into()
    }

    #[inline]
    fn load(&self, peer: Picked<'a, 'z>) -> u64 {
        self.all.table.in_flight_at(peer.info.slot, peer.counters)
    }

    #[inline]
    fn cost(&self, peer: Picked<'a, 'z>) -> f32 {
        let latency = Latency::from_raw(peer.counters.latency());
        score(latency, self.load(peer), peer.info.weight as i32, self.all.now.millis)
    }

    #[inline]
    fn keyed(&self, suits: impl Fn(Picked<'a, 'z>) -> bool) -> Option<Picked<'a, 'z>> {
        let key = self.all.key;
        let suiting = |number| Some(self.peer(number)).filter(|&peer| suits(peer));
        match &self.tier.keys {
            Keys::Consistent { ring, crc } if !key.is_empty() => {
                // As Ring::hash().
                let mut crc = crc.clone();
                crc.update(key);
                ring.walk(crc.finalize()).take(LOOKS).find_map(suiting)
            }
            Keys::Modulo(modulo) => modulo.walk(key, self.all.tried.count()).find_map(suiting),
            Keys::Consistent { .. } | Keys::None => None,
        }
    }
}
