//! The candidates of a method: what it asks of the peers, and how it goes on when the first candidate
//! may be unusable. Peers are anything that is numbered.

use rand::RngCore;

use super::schedule::{Schedule, WeightTable, scale};

/// How many peers are drawn before the whole set is looked at; more if there are many, since a look at
/// all costs as much as some hundred draws then.
const DRAWS: usize = 16;
/// As a part of the peers.
const DRAWS_OF: usize = 8;
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
    /// Whether the request has tried a peer before.
    fn is_retry(&self) -> bool;
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
    let weights = peers.weights();
    let other = |rng: &mut R| match weights.at_other(rng.next_u64(), one) {
        again if again == one => weights.at_any_but(rng.next_u64(), one),
        other => other,
    };
    let first = if drawn == one { other(rng) } else { drawn };
    probe(peers, rng, first, DRAWS, other)
}

/// The usable peer whose turn is next, from `first` on, which had the last turn and may be unusable.
///
/// A retry takes no turn: it would be that of another request, and with as many retries as there are
/// turns left in a round, one peer would get the first tries of all. Drawn at random, it can't get
/// into step with anything.
#[cold]
#[inline(never)]
pub(super) fn next_usable<P: Peers, R: RngCore>(
    peers: &P,
    rng: &mut R,
    first: P::Peer,
) -> Option<P::Peer> {
    let schedule = peers.schedule();
    if peers.is_retry() {
        schedule.back();
        let first = peers.peer(peers.weights().at(rng.next_u64()));
        return draw_usable(peers, rng, first);
    }
    let (first, steps) = (peers.number(first), schedule.steps(peers.len()));
    probe(peers, rng, first, steps, |_| schedule.next(peers.weights()))
        .or_else(|| choose_usable(peers, rng))
}

/// A usable peer by weight, from `first` on, which was drawn and may be unusable.
#[cold]
#[inline(never)]
pub(super) fn draw_usable<P: Peers, R: RngCore>(
    peers: &P,
    rng: &mut R,
    first: P::Peer,
) -> Option<P::Peer> {
    let (first, draws) = (peers.number(first), DRAWS.max(peers.len() / DRAWS_OF));
    probe(peers, rng, first, draws, |rng| peers.weights().at(rng.next_u64()))
        .or_else(|| choose_usable(peers, rng))
}

/// The first usable one of `first` and the others that `next` gives, so many in all.
fn probe<P: Peers, R: RngCore>(
    peers: &P,
    rng: &mut R,
    first: usize,
    count: usize,
    mut next: impl FnMut(&mut R) -> usize,
) -> Option<P::Peer> {
    let mut peer = peers.peer(first);
    for _ in 1..count {
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

/// Looks at all peers and chooses one of the usable ones at random, by what each gets of its weight.
#[inline(never)]
fn choose_usable<P: Peers, R: RngCore>(peers: &P, rng: &mut R) -> Option<P::Peer> {
    let (mut chosen, mut sum) = (None, 0);
    for peer in (0..peers.len()).map(|number| peers.peer(number)) {
        if peers.is_free(peer) && !peers.is_failed(peer) {
            let weight = peers.weight(peer) * u64::from(peers.share(peer));
            sum += weight;
            if scale(rng.next_u64(), sum) < weight {
                chosen = Some(peer);
            }
        }
    }
    chosen
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
