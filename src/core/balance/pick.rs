//! Picks a peer of a view for a request: the tiers in turn, and the methods within a tier.

use rand::RngCore;

use super::admission::{Admission, Admitted, Shared};
use super::candidates::{Peers, draw_another, draw_usable, next_usable};
use super::context::{PickContext, Picked};
use super::latency::{Latency, score};
use super::ring::LOOKS;
use super::schedule::{Schedule, WeightTable};
use super::view::{KeyMap, Method, Tier};

/// How often a pick is repeated because another request was quicker to probe the peer.
const RACES: usize = 3;

/// Picks a peer of the first tier that has a usable one.
///
/// A peer that has failed is picked together with a permit, since only few requests may try it. If no
/// peer is usable, the request may try one that failures exclude.
#[inline(always)]
pub fn pick<'a, 'z, R: RngCore>(
    method: Method,
    context: &PickContext<'a, 'z>,
    shared: impl Fn() -> Shared<'z>,
    rng: &mut R,
) -> Option<Admitted<'a, 'z>> {
    match pick_usable(method, context, rng) {
        Some(picked) if !picked.counters.has_fails() => Some(Admitted { picked, permit: None }),
        picked => pick_failed(method, context, (picked, &shared()), rng),
    }
}

/// As [`pick`], but only of peers that failures don't exclude.
#[inline(always)]
fn pick_usable<'a, 'z, R: RngCore>(
    method: Method,
    context: &PickContext<'a, 'z>,
    rng: &mut R,
) -> Option<Picked<'a, 'z>> {
    let (first, others) = context.view.tiers.split_first()?;
    match pick_in(first, method, context, rng) {
        Some(picked) => Some(picked),
        None => pick_beyond(others, method, context, rng),
    }
}

#[cold]
#[inline(never)]
fn pick_beyond<'a, 'z, R: RngCore>(
    tiers: &'a [Tier],
    method: Method,
    context: &PickContext<'a, 'z>,
    rng: &mut R,
) -> Option<Picked<'a, 'z>> {
    tiers.iter().find_map(|tier| pick_in(tier, method, context, rng))
}

/// The rest of [`pick`] if the `picked` peer has failures, or no peer was usable.
#[cold]
#[inline(never)]
fn pick_failed<'a, 'z, R: RngCore>(
    method: Method,
    context: &PickContext<'a, 'z>,
    (mut picked, shared): (Option<Picked<'a, 'z>>, &Shared<'z>),
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
            Admission::Refused => picked = pick_usable(method, context, rng),
        }
    }
    context.last_resort(shared, rng)
}

#[inline(always)]
fn pick_in<'a, 'z, R: RngCore>(
    tier: &'a Tier,
    method: Method,
    context: &PickContext<'a, 'z>,
    rng: &mut R,
) -> Option<Picked<'a, 'z>> {
    if context.has_none_usable(tier) {
        return None;
    }
    let picked = pick_from(method, &InTier { all: context, tier }, rng);
    if picked.is_none() {
        context.note_none_usable(tier);
    }
    picked
}

impl<'a, 'z> PickContext<'a, 'z> {
    /// Whether an earlier request found that failures exclude every peer of the tier.
    fn has_none_usable(&self, tier: &Tier) -> bool {
        !self.panic
            && self.now < tier.none_usable.until.get()
            && self.table.recoveries() == tier.none_usable.recoveries.get()
    }

    /// Notes that a search found no usable peer, so that other requests don't search until a peer has
    /// recovered or the `fail_timeout` of one has passed; for a second at most.
    #[cold]
    fn note_none_usable(&self, tier: &Tier) {
        let (now, recoveries) = (self.now, self.table.recoveries());
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
            self.view.tiers.iter().find_map(|tier| {
                self.try_out(&InTier { all: self, tier }, grace, shared.shard, rng)
            });
        if admitted.is_none() && grace.is_none() {
            self.note_none_to_probe();
        }
        admitted
    }
}

/// Picks a usable peer, if there is one.
#[inline(always)]
fn pick_from<P: Peers, R: RngCore>(method: Method, peers: &P, rng: &mut R) -> Option<P::Peer> {
    if peers.is_empty() {
        return None;
    }
    match method {
        Method::RoundRobin => next(peers, rng),
        Method::Random => draw(peers, rng),
        Method::LeastConn => less_busy(peers, rng),
        Method::LeastTime => less_costly(peers, rng),
        Method::Hash { .. } => match of_key(peers) {
            Some(peer) => Some(peer),
            None => next(peers, rng),
        },
    }
}

// Not inlined: the rest of the pick then has more registers.
#[inline(never)]
fn less_busy<P: Peers, R: RngCore>(peers: &P, rng: &mut R) -> Option<P::Peer> {
    better_of_two(peers, rng, |one, other| is_busier(peers, one, other))
}

#[inline(never)]
fn less_costly<P: Peers, R: RngCore>(peers: &P, rng: &mut R) -> Option<P::Peer> {
    better_of_two(peers, rng, |one, other| peers.cost(one) > peers.cost(other))
}

#[inline(never)]
fn of_key<P: Peers>(peers: &P) -> Option<P::Peer> {
    peers.keyed(|peer| peers.is_unrestricted(peer) || peers.is_free(peer) && !peers.is_failed(peer))
}

#[inline(always)]
fn next<P: Peers, R: RngCore>(peers: &P, rng: &mut R) -> Option<P::Peer> {
    let peer = peers.peer(peers.schedule().next(peers.weights()));
    if peers.is_unrestricted(peer) { Some(peer) } else { next_usable(peers, rng, peer) }
}

/// Draws two peers and picks the better one.
#[inline(always)]
fn better_of_two<P: Peers, R: RngCore>(
    peers: &P,
    rng: &mut R,
    is_worse: impl Fn(P::Peer, P::Peer) -> bool,
) -> Option<P::Peer> {
    let weights = peers.weights();
    // One random number is enough for both: each uses other bits of it.
    let drawn = rng.next_u64();
    let mut one = peers.peer(weights.at(drawn));
    if !peers.is_unrestricted(one) {
        one = draw_usable(peers, rng, one)?;
    }
    let number = weights.at_other(drawn.rotate_left(32), peers.number(one));
    let mut other = peers.peer(number);
    if number == peers.number(one) || !peers.is_unrestricted(other) {
        match draw_another(peers, rng, peers.number(one), number) {
            Some(another) => other = another,
            None => return Some(one),
        }
    }
    Some(if is_worse(one, other) { other } else { one })
}

#[inline(always)]
fn draw<P: Peers, R: RngCore>(peers: &P, rng: &mut R) -> Option<P::Peer> {
    let peer = peers.peer(peers.weights().at(rng.next_u64()));
    if peers.is_unrestricted(peer) { Some(peer) } else { draw_usable(peers, rng, peer) }
}

/// Whether `one` has more in flight for its weight than `other`.
#[inline(always)]
fn is_busier<P: Peers>(peers: &P, one: P::Peer, other: P::Peer) -> bool {
    peers.load(one) * peers.weight(other) > peers.load(other) * peers.weight(one)
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
    fn is_empty(&self) -> bool {
        self.tier.weights.count() == 0
    }

    #[inline(always)]
    fn peer(&self, number: usize) -> Picked<'a, 'z> {
        self.all.peer(self.tier.first + number)
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

    fn is_retry(&self) -> bool {
        self.all.tried.count() != 0
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
        score(latency, self.load(peer), peer.info.weight as i32, self.all.now)
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
