//! Requests go where a connection is idle, and yet nobody gets more than its share.
//!
//! The method says whose turn it is. If no connection to that peer is idle, another one that the
//! method holds equal and that has an idle connection takes the turn. Turns are counted: nobody takes
//! more than [`MOST`] that are not its own before it has given some away, and nobody gives away more
//! than that before it has taken some. So a peer gets, of any number of requests of a worker, at most
//! twice [`MOST`] more or fewer than the method alone would give it; and a connection that was opened
//! serves about that many requests before it is left to others, however few connections may be idle.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};

use super::super::{FULL_SHARE, Method, Peers, is_busier};
use super::candidates::{Candidates, InTier, Picked};
use super::{Tier, View};
use crate::table::Place;

/// Turns that a peer may be ahead or behind.
pub const MOST: i8 = 8;

/// So many peers with an idle connection are looked at for one that is as good.
const LOOKS: usize = 4;
/// So many that have none any more, or no turns to take, are passed over on the way.
const STALE: usize = 16;

/// How the turns stand between the peers of a [`View`], in one worker.
#[derive(Debug, Default)]
pub struct Reuse {
    turns: Box<[Turns]>,
    /// Peers that may have an idle connection, those that got it last at the back. It has room for
    /// all of them.
    ready: RefCell<VecDeque<u32>>,
}

#[derive(Clone, Debug, Default)]
struct Turns {
    /// Taken less given away.
    ahead: Cell<i8>,
    is_ready: Cell<bool>,
}

impl Reuse {
    /// For the peers of a view. Those that were in the view before stand where they stood.
    pub fn new(view: &View, before: Option<(&Reuse, &View)>) -> Reuse {
        let reuse = Reuse {
            turns: vec![Turns::default(); view.records.len()].into(),
            ready: RefCell::new(VecDeque::with_capacity(view.records.len())),
        };
        if let Some((before, old)) = before {
            reuse.take_over(view, before, old);
        }
        reuse
    }

    fn take_over(&self, view: &View, before: &Reuse, old: &View) {
        // Two datacenters may have an instance of the same name, but not in the same slot.
        let numbers: HashMap<(Place, u64), usize> =
            view.known.iter().enumerate().map(|(n, k)| ((k.place, k.identity), n)).collect();
        let present = |old_number: usize| {
            let known = &old.known[old_number];
            numbers.get(&(known.place, known.identity)).copied()
        };
        for (number, turns) in before.turns.iter().enumerate() {
            if let Some(number) = present(number) {
                self.turns[number].ahead.set(turns.ahead.get());
            }
        }
        let ready = before.ready.borrow();
        ready.iter().filter_map(|&number| present(number as usize)).for_each(|n| self.note_idle(n));
    }

    /// A connection to that peer has become idle.
    #[inline]
    pub fn note_idle(&self, peer: usize) {
        let Some(turns) = self.turns.get(peer) else { return };
        if turns.ahead.get() < MOST && !turns.is_ready.replace(true) {
            self.ready.borrow_mut().push_back(peer as u32);
        }
    }

    /// Turns that each peer has taken, less those that it gave away.
    #[cfg(all(test, not(loom)))]
    pub(super) fn ahead(&self) -> impl Iterator<Item = i8> {
        self.turns.iter().map(|turns| turns.ahead.get())
    }

    /// Who gets the request that `method` has given to a peer. `idle` says how many connections to
    /// a peer are idle, as far as one knows from none, one and more.
    pub fn instead_of<'a, 'z>(
        &self,
        given: Picked<'a, 'z>,
        method: Method,
        candidates: &Candidates<'a, 'z>,
        idle: impl Fn(usize) -> usize,
    ) -> Picked<'a, 'z> {
        let number = given.known.number as usize;
        let own = &self.turns[number].ahead;
        let may_take = own.get() < MOST && idle(number) > 0;
        if may_take || own.get() <= -MOST || candidates.tried.count() != 0 {
            return given;
        }
        let Some(tier) = tier_of(candidates.view, number) else { return given };
        let peers = InTier { all: candidates, tier };
        match self.find(&peers, given, method, idle) {
            Some(other) => {
                own.set(own.get() - 1);
                let other_own = &self.turns[other.known.number as usize].ahead;
                other_own.set(other_own.get() + 1);
                other
            }
            None => given,
        }
    }

    /// A peer with an idle connection and turns to take that is as good.
    fn find<'a, 'z>(
        &self,
        peers: &InTier<'_, 'a, 'z>,
        given: Picked<'a, 'z>,
        method: Method,
        idle: impl Fn(usize) -> usize,
    ) -> Option<Picked<'a, 'z>> {
        let mut ready = self.ready.borrow_mut();
        let (mut looks, mut stale) = (LOOKS.min(ready.len()), STALE);
        while looks > 0 && stale > 0 {
            let number = ready.pop_back()?;
            let turns = &self.turns[number as usize];
            let connections = idle(number as usize);
            if connections == 0 || turns.ahead.get() >= MOST {
                turns.is_ready.set(false);
                stale -= 1;
                continue;
            }
            let in_tier = (number as usize).checked_sub(peers.tier.first);
            let other = in_tier.filter(|&n| n < peers.len()).map(|n| peers.peer(n));
            match other.filter(|&other| is_as_good(peers, method, other, given)) {
                Some(other) => {
                    turns.is_ready.set(connections > 1);
                    if connections > 1 {
                        ready.push_back(number);
                    }
                    return Some(other);
                }
                // Others are looked at before this one is again.
                None => ready.push_front(number),
            }
            looks -= 1;
        }
        None
    }
}

fn tier_of(view: &View, peer: usize) -> Option<&Tier> {
    view.tiers.iter().find(|tier| tier.peers().contains(&peer))
}

/// Whether the method could as well have given the request to `other`.
fn is_as_good<P: Peers>(peers: &P, method: Method, other: P::Peer, given: P::Peer) -> bool {
    let is_usable = peers.is_sound(other)
        || peers.is_free(other) && !peers.is_failed(other) && peers.share(other) >= FULL_SHARE;
    is_usable
        && match method {
            Method::RoundRobin | Method::Random => true,
            Method::LeastConn => !is_busier(peers, other, given),
            Method::LeastTime => {
                peers.cost(other) <= peers.cost(given) + peers.cost_of_millisecond(other)
            }
            Method::Hash { .. } => false,
        }
}
