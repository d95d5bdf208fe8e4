//! The candidates of a method: what it asks of the peers, and how it goes on when the first candidate
//! may be unusable. Peers are anything that is numbered.

use rand::RngCore;

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
    fn is_empty(&self) -> bool;
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

/// Draws another peer than `one`, if `drawn` is `one` again or may be unusable.
#[cold]
#[inline(never)]
pub(super) fn draw_another<P: Peers, R: RngCore>(
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

/// Tries `first` and then what `next` gives, until a peer is usable.
#[cold]
#[inline(never)]
pub(super) fn probe_more<P: Peers, R: RngCore>(
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
