//! The balancing methods, over anything that has numbered peers.

use rand::RngCore;

use super::method::Method;
use super::schedule::{Schedule, WeightTable};

/// How many candidates are tried before the whole set is searched.
const PROBES: usize = 16;
/// [`Peers::share`] of a peer that gets all of its weight.
pub const FULL_SHARE: u32 = 1 << 16;

/// The peers that a method picks from, numbered from 0.
pub trait Peers {
    /// A peer, found once for all questions about it.
    type Peer: Copy;

    /// How many there are.
    fn len(&self) -> usize;
    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The peer of that number.
    fn peer(&self, number: usize) -> Self::Peer;
    /// Its number.
    fn number(&self, peer: Self::Peer) -> usize;
    /// The weights of all.
    fn weights(&self) -> &WeightTable;
    /// Their round robin schedule.
    fn schedule(&self) -> &Schedule;
    /// Whether the peer is usable without further questions, as nearly all are.
    fn is_unrestricted(&self, peer: Self::Peer) -> bool;
    /// Whether the peer is free to be tried: not tried yet, not full, not down.
    fn is_free(&self, peer: Self::Peer) -> bool;
    /// Whether failures exclude it.
    fn is_failed(&self, peer: Self::Peer) -> bool;
    /// The share of its weight that it gets during slow start, of [`FULL_SHARE`].
    fn share(&self, peer: Self::Peer) -> u32;
    /// Its weight.
    fn weight(&self, peer: Self::Peer) -> u64;
    /// Requests in flight.
    fn load(&self, peer: Self::Peer) -> u64;
    /// What one more request costs, as [`score`](super::latency::score) gives it.
    fn cost(&self, peer: Self::Peer) -> f32;
    /// The first suitable one of the peers that the request's key belongs to, in turn. `None` without a
    /// key, or after as many tries as nginx makes.
    fn keyed(&self, suits: impl Fn(Self::Peer) -> bool) -> Option<Self::Peer>;
}

/// Picks a usable peer, if there is one. `cursor` is the worker's position in the round robin
/// schedule.
#[inline(always)]
pub(super) fn pick_from<P: Peers, R: RngCore>(
    method: Method,
    peers: &P,
    cursor: &mut u64,
    rng: &mut R,
) -> Option<P::Peer> {
    if peers.is_empty() {
        return None;
    }
    let candidate = match method {
        Method::RoundRobin => next(peers, cursor, rng),
        Method::Random => draw(peers, rng),
        Method::LeastConn => less_busy(peers, rng),
        Method::LeastTime => less_costly(peers, rng),
        Method::Hash { .. } => match of_key(peers) {
            Some(peer) => Some(peer),
            None => next(peers, cursor, rng),
        },
    };
    match candidate {
        Some(peer) => Some(peer),
        None => search(peers, rng, |peer| !peers.is_failed(peer)),
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
fn next<P: Peers, R: RngCore>(peers: &P, cursor: &mut u64, rng: &mut R) -> Option<P::Peer> {
    let (schedule, weights) = (peers.schedule(), peers.weights());
    let peer = peers.peer(schedule.next(cursor, weights));
    if peers.is_unrestricted(peer) {
        return Some(peer);
    }
    probe_more(peers, rng, peer, |_| schedule.next(cursor, weights))
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
        one = probe_more(peers, rng, one, |rng| weights.at(rng.next_u64()))?;
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
    let weights = peers.weights();
    let peer = peers.peer(weights.at(rng.next_u64()));
    if peers.is_unrestricted(peer) {
        return Some(peer);
    }
    probe_more(peers, rng, peer, |rng| weights.at(rng.next_u64()))
}

/// The rest of [`better_of_two`] if `drawn` is `one` again or may be unusable.
#[cold]
#[inline(never)]
fn draw_another<P: Peers, R: RngCore>(
    peers: &P,
    rng: &mut R,
    one: usize,
    drawn: usize,
) -> Option<P::Peer> {
    if peers.len() < 2 {
        return None;
    }
    let mut number = drawn;
    for _ in 0..PROBES {
        if number != one {
            let other = peers.peer(number);
            if is_usable(peers, rng, other) {
                return Some(other);
            }
        }
        number = peers.weights().at_other(rng.next_u64(), one);
    }
    // One peer has nearly all of the weight: take its neighbour.
    let next = peers.peer((one + 1) % peers.len());
    is_usable(peers, rng, next).then_some(next)
}

/// Whether `one` has more in flight for its weight than `other`.
#[inline(always)]
fn is_busier<P: Peers>(peers: &P, one: P::Peer, other: P::Peer) -> bool {
    peers.load(one) * peers.weight(other) > peers.load(other) * peers.weight(one)
}

/// Tries `first` and then what `next` gives, until a peer is usable.
#[cold]
#[inline(never)]
fn probe_more<P: Peers, R: RngCore>(
    peers: &P,
    rng: &mut R,
    first: P::Peer,
    mut next: impl FnMut(&mut R) -> usize,
) -> Option<P::Peer> {
    let mut peer = first;
    for _ in 1..PROBES {
        if is_usable(peers, rng, peer) {
            return Some(peer);
        }
        peer = peers.peer(next(rng));
    }
    is_usable(peers, rng, peer).then_some(peer)
}

fn is_usable<P: Peers, R: RngCore>(peers: &P, rng: &mut R, peer: P::Peer) -> bool {
    if !peers.is_free(peer) || peers.is_failed(peer) {
        return false;
    }
    let share = peers.share(peer);
    share >= FULL_SHARE || rng.next_u32() % FULL_SHARE < share
}

/// Searches all peers, from a random one on, for a free one that `suits`.
#[cold]
pub(super) fn search<P: Peers, R: RngCore>(
    peers: &P,
    rng: &mut R,
    mut suits: impl FnMut(P::Peer) -> bool,
) -> Option<P::Peer> {
    let count = peers.len();
    let start = rng.next_u32() as usize % count.max(1);
    let mut all = (start..count).chain(0..start).map(|number| peers.peer(number));
    all.find(|&peer| peers.is_free(peer) && suits(peer))
}

#[cfg(test)]
mod tests;
