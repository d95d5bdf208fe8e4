//! Picks a peer of a view for a request: tier by tier, by the method, and what to do if no peer can
//! be used.

use rand::RngCore;

use super::admission::{Admission, Admitted, Shared};
use super::context::{PickContext, Picked};
use super::latency::{Latency, score};
use super::method::Method;
use super::methods::{Peers, pick_from, search};
use super::ring::LOOKS;
use super::schedule::{Schedule, WeightTable};
use super::view::{KeyMap, Tier};
use crate::table::{Outage, PROBE_PACE, WorkerShard};

/// How often a pick is repeated because another request was quicker to probe the peer.
const RACES: usize = 3;
/// Peers that requests without success look at per millisecond, at most.
const LOOKS_PER_MS: u64 = 512;

/// Picks a peer of the first tier that has a usable one.
///
/// A peer that has failed is picked together with a permit, since only few requests may try it. If no
/// peer is usable, the request may try one that failures exclude. `cursor` is the worker's position
/// in the round robin schedule.
#[inline(always)]
pub fn pick<'a, 'z, R: RngCore>(
    method: Method,
    context: &PickContext<'a, 'z>,
    shared: impl Fn() -> Shared<'z>,
    cursor: &mut u64,
    rng: &mut R,
) -> Option<Admitted<'a, 'z>> {
    match pick_usable(method, context, cursor, rng) {
        Some(picked) if !picked.counters.has_fails() => Some(Admitted { picked, permit: None }),
        picked => pick_failed(method, context, (picked, &shared()), cursor, rng),
    }
}

/// As [`pick`], but only of peers that failures don't exclude.
#[inline(always)]
fn pick_usable<'a, 'z, R: RngCore>(
    method: Method,
    context: &PickContext<'a, 'z>,
    cursor: &mut u64,
    rng: &mut R,
) -> Option<Picked<'a, 'z>> {
    let (first, others) = context.view.tiers.split_first()?;
    match pick_in(first, method, context, cursor, rng) {
        Some(picked) => Some(picked),
        None => pick_beyond(others, method, context, cursor, rng),
    }
}

#[cold]
#[inline(never)]
fn pick_beyond<'a, 'z, R: RngCore>(
    tiers: &'a [Tier],
    method: Method,
    context: &PickContext<'a, 'z>,
    cursor: &mut u64,
    rng: &mut R,
) -> Option<Picked<'a, 'z>> {
    tiers.iter().find_map(|tier| pick_in(tier, method, context, cursor, rng))
}

/// The rest of [`pick`] if the `picked` peer has failures, or no peer was usable.
#[cold]
#[inline(never)]
fn pick_failed<'a, 'z, R: RngCore>(
    method: Method,
    context: &PickContext<'a, 'z>,
    (mut picked, shared): (Option<Picked<'a, 'z>>, &Shared<'z>),
    cursor: &mut u64,
    rng: &mut R,
) -> Option<Admitted<'a, 'z>> {
    for _ in 0..RACES {
        let Some(peer) = picked else { break };
        match context.admit(peer, shared) {
            Admission::Free => return Some(Admitted { picked: peer, permit: None }),
            Admission::With(permit) => {
                return Some(Admitted { picked: peer, permit: Some(permit) });
            }
            Admission::Refused if context.is_single() => return None,
            Admission::Refused => picked = pick_usable(method, context, cursor, rng),
        }
    }
    context.last_resort(shared, rng)
}

#[inline(always)]
fn pick_in<'a, 'z, R: RngCore>(
    tier: &'a Tier,
    method: Method,
    context: &PickContext<'a, 'z>,
    cursor: &mut u64,
    rng: &mut R,
) -> Option<Picked<'a, 'z>> {
    if context.has_none_usable(tier) {
        return None;
    }
    let before = *cursor;
    let picked = pick_from(method, &InTier { all: context, tier }, cursor, rng);
    if picked.is_none() {
        // A tier without a usable peer must not move the cursor: its moves and those of the tier in
        // use could add up to whole rounds, and every pick would end at the same peer.
        *cursor = before;
        context.note_none_usable(tier);
    }
    picked
}

impl<'a, 'z> PickContext<'a, 'z> {
    /// Whether an earlier request found that failures exclude every peer of the tier.
    fn has_none_usable(&self, tier: &Tier) -> bool {
        !self.panic
            && self.now.monotonic < tier.none_usable.until.get()
            && self.table.recoveries() == tier.none_usable.recoveries.get()
    }

    /// Notes that a search found no usable peer, so that other requests don't search until a peer has
    /// recovered or the `fail_timeout` of one has passed; for a second at most.
    #[cold]
    fn note_none_usable(&self, tier: &Tier) {
        let (now, recoveries) = (self.now.monotonic, self.table.recoveries());
        if self.tried.count() != 0 || self.panic {
            return;
        }
        let mut until = now + 1000;
        for info in self.view.infos[tier.peers()].iter().filter(|info| !info.down) {
            if !self.is_failed(info) {
                return;
            }
            let out_until = self.counters_of(info).out_until(info.limits());
            until = until.min(out_until.saturating_add(1));
        }
        tier.none_usable.until.set(until);
        tier.none_usable.recoveries.set(recoveries);
    }

    /// A peer that failures exclude, if there is no other.
    ///
    /// Once an outage is confirmed, one request at a time probes each peer, once a second. Before
    /// that, some more requests may try them.
    fn last_resort<R: RngCore>(
        &self,
        shared: &Shared<'z>,
        rng: &mut R,
    ) -> Option<Admitted<'a, 'z>> {
        if self.panic || self.has_none_to_probe() {
            return None;
        }
        let grace = shared.outage.filter(|outage| !outage.is_confirmed());
        let admitted =
            self.view.tiers.iter().find_map(|tier| self.try_out(tier, grace, shared.shard, rng));
        if admitted.is_none() && grace.is_none() {
            self.note_none_to_probe();
        }
        admitted
    }

    fn try_out<R: RngCore>(
        &self,
        tier: &'a Tier,
        grace: Option<Outage<'z>>,
        shard: Option<WorkerShard>,
        rng: &mut R,
    ) -> Option<Admitted<'a, 'z>> {
        let now = self.now.monotonic;
        let (mut permit, mut no_grace_left) = (None, false);
        let picked = search(&InTier { all: self, tier }, rng, |Picked { info, counters }| {
            let limits = info.limits();
            if no_grace_left || !counters.is_marked(limits.max_fails) {
                return false;
            }
            permit = match grace {
                Some(outage) => outage.take_permit(shard, now, limits.fail_timeout),
                None => counters.probe((info.identity, shard), limits, now, PROBE_PACE),
            };
            no_grace_left = grace.is_some() && permit.is_none();
            permit.is_some()
        })?;
        Some(Admitted { picked, permit })
    }

    /// Whether a request found no peer to probe a moment ago, and none has recovered since.
    fn has_none_to_probe(&self) -> bool {
        let none_to_probe = &self.view.none_to_probe;
        self.now.monotonic < none_to_probe.until.get()
            && self.table.recoveries() == none_to_probe.recoveries.get()
    }

    /// Notes that a look at every peer found none to probe. The pause keeps such looks to a small part
    /// of a worker's time, however many peers there are.
    fn note_none_to_probe(&self) {
        if self.tried.count() == 0 {
            let pause = self.view.records.len() as u64 / LOOKS_PER_MS;
            self.view.none_to_probe.until.set(self.now.monotonic + pause);
            self.view.none_to_probe.recoveries.set(self.table.recoveries());
        }
    }
}

/// The peers of one tier, numbered from 0.
struct InTier<'c, 'a, 'z> {
    all: &'c PickContext<'a, 'z>,
    tier: &'a Tier,
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
        Picked { info, counters: self.all.table.peer_counters(info.slot) }
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
    fn schedule(&self) -> &Schedule {
        &self.tier.schedule
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
            KeyMap::Consistent { ring, crc } if !key.is_empty() => {
                // As Ring::hash().
                let mut crc = crc.clone();
                crc.update(key);
                ring.walk(crc.finalize()).take(LOOKS).find_map(suiting)
            }
            KeyMap::Modulo(modulo) => modulo.walk(key, self.all.tried.count()).find_map(suiting),
            KeyMap::Consistent { .. } | KeyMap::None => None,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
