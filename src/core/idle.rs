//! A worker's idle connections, by the peers they lead to.
//!
//! Every operation on one connection takes the same time, however many connections and peers there
//! are: connections lie in one array and are linked twice, in the order in which they became idle
//! and within their peer. Nothing is allocated but when there are more of them than ever before.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use crate::table::Place;

/// How many of a peer's connections are looked at for one that suits. They rarely differ at all.
const LOOKS: usize = 32;

/// No connection.
const NONE: u32 = u32::MAX;

/// Whom a connection leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Whose peer that is, of those that share the connections.
    pub owner: u32,
    /// Of an instance: where its counters are.
    pub place: Option<Place>,
    /// Identity of the instance, or a hash of what else names the peer.
    pub identity: u64,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The identity is a good hash already, but not of the owner.
        state.write_u64(self.identity ^ u64::from(self.owner) << 32);
    }
}

/// Spreads the bits of a single word.
#[derive(Clone, Copy, Debug, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Where a connection is kept, as long as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot(u32);

/// Where a peer was found: whoever comes back to it needs no search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint(u32);

impl Hint {
    /// It was not found.
    pub const NONE: Hint = Hint(NONE);
}

/// The connections, at most `limit` of them.
#[derive(Debug)]
pub struct Idle<C> {
    limit: usize,
    items: Vec<Item<C>>,
    /// First of the items that keep nothing, linked by `older`.
    free: u32,
    /// Those that have connections, and some that had.
    peers: Vec<Peer>,
    /// Places in `peers` that are nobody's.
    spare: Vec<u32>,
    places: HashMap<Key, u32, BuildHasherDefault<Spread>>,
    newest: u32,
    oldest: u32,
    len: usize,
}

#[derive(Debug)]
struct Item<C> {
    /// `None` if the item is free.
    kept: Option<C>,
    peer: u32,
    newer: u32,
    older: u32,
    /// The same among the peer's.
    newer_of_peer: u32,
    older_of_peer: u32,
}

#[derive(Debug)]
struct Peer {
    /// `None` if the place is nobody's.
    key: Option<Key>,
    newest: u32,
    /// Its number in the set last told to [`Idle::retain`]; `usize::MAX` if it is not there.
    number: usize,
}

impl<C> Idle<C> {
    /// None yet; `limit` is at least 1.
    pub fn new(limit: usize) -> Idle<C> {
        Idle {
            limit: limit.clamp(1, NONE as usize),
            items: Vec::new(),
            free: NONE,
            peers: Vec::new(),
            spare: Vec::new(),
            places: HashMap::default(),
            newest: NONE,
            oldest: NONE,
            len: 0,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where a peer is, which may be where `hint` says; [`Hint::NONE`] if it has no connection.
    #[inline]
    pub fn find(&self, key: &Key, Hint(hint): Hint) -> Hint {
        match self.peers.get(hint as usize) {
            Some(peer) if peer.key.as_ref() == Some(key) => Hint(hint),
            _ => self.search(key),
        }
    }

    #[cold]
    fn search(&self, key: &Key) -> Hint {
        Hint(self.places.get(key).copied().unwrap_or(NONE))
    }

    /// The one that has been idle for longest.
    pub fn oldest(&self) -> Option<&C> {
        self.items.get(self.oldest as usize)?.kept.as_ref()
    }

    /// Keeps a connection to a peer, which may be where `hint` says. The one that was idle for
    /// longest makes room for it if need be, and is returned.
    pub fn put(&mut self, key: Key, Hint(hint): Hint, connection: C) -> (Spot, Option<(Key, C)>) {
        let evicted = if self.len >= self.limit { self.remove(Spot(self.oldest)) } else { None };
        let is_there = self.peers.get(hint as usize).is_some_and(|peer| peer.key == Some(key));
        let place = if is_there { hint } else { self.place_of(key) };
        let at = self.free_item();
        let below = std::mem::replace(&mut self.peers[place as usize].newest, at);
        if let Some(item) = self.items.get_mut(below as usize) {
            item.newer_of_peer = at;
        }
        let older = std::mem::replace(&mut self.newest, at);
        match self.items.get_mut(older as usize) {
            Some(item) => item.newer = at,
            None => self.oldest = at,
        }
        self.items[at as usize] = Item {
            kept: Some(connection),
            peer: place,
            newer: NONE,
            older,
            newer_of_peer: NONE,
            older_of_peer: below,
        };
        self.len += 1;
        (Spot(at), evicted)
    }

    /// Takes a connection to a peer that suits, the one that has been idle for the shortest time.
    #[inline(always)]
    pub fn take(&mut self, Hint(peer): Hint, mut suits: impl FnMut(&C) -> bool) -> Option<C> {
        let at = self.peers.get(peer as usize)?.newest;
        let item = self.items.get(at as usize)?;
        if item.kept.as_ref().is_some_and(&mut suits) {
            return self.unlink(at);
        }
        self.take_older(item.older_of_peer, &mut suits)
    }

    #[cold]
    fn take_older(&mut self, mut at: u32, suits: &mut dyn FnMut(&C) -> bool) -> Option<C> {
        for _ in 1..LOOKS {
            let item = self.items.get(at as usize)?;
            if item.kept.as_ref().is_some_and(&mut *suits) {
                return self.unlink(at);
            }
            at = item.older_of_peer;
        }
        None
    }

    /// Takes a certain connection; `None` if it is not kept there any more.
    pub fn remove(&mut self, Spot(at): Spot) -> Option<(Key, C)> {
        let peer = self.items.get(at as usize)?.peer;
        let connection = self.unlink(at)?;
        self.peers[peer as usize].key.zip(Some(connection))
    }

    #[inline(always)]
    fn unlink(&mut self, at: u32) -> Option<C> {
        let item = self.items.get_mut(at as usize)?;
        let connection = item.kept.take()?;
        let (newer, older) = (item.newer, std::mem::replace(&mut item.older, self.free));
        let (peer, above, below) = (item.peer, item.newer_of_peer, item.older_of_peer);
        self.free = at;
        self.len -= 1;
        match self.items.get_mut(newer as usize) {
            Some(item) => item.older = older,
            None => self.newest = older,
        }
        match self.items.get_mut(older as usize) {
            Some(item) => item.newer = newer,
            None => self.oldest = newer,
        }
        match self.items.get_mut(above as usize) {
            Some(item) => item.older_of_peer = below,
            None => self.peers[peer as usize].newest = below,
        }
        if let Some(item) = self.items.get_mut(below as usize) {
            item.newer_of_peer = above;
        }
        Some(connection)
    }

    /// Takes the connections of an owner that lead to nobody of its new set, or elsewhere than the
    /// peer of that number says (`leads_to`).
    pub fn retain(
        &mut self,
        owner: u32,
        set: impl Iterator<Item = Key>,
        leads_to: impl Fn(&C, usize) -> bool,
    ) -> Vec<(Key, C)> {
        if self.is_empty() {
            return Vec::new();
        }
        for peer in &mut self.peers {
            peer.number = usize::MAX;
        }
        for (number, key) in set.enumerate() {
            if let Some(&place) = self.places.get(&key) {
                self.peers[place as usize].number = number;
            }
        }
        let mut gone = Vec::new();
        for peer in &self.peers {
            if peer.key.is_none_or(|key| key.owner != owner) {
                continue;
            }
            let mut at = peer.newest;
            while let Some(item) = self.items.get(at as usize) {
                let stays = |connection: &C| leads_to(connection, peer.number);
                if peer.number == usize::MAX || !item.kept.as_ref().is_some_and(stays) {
                    gone.push(Spot(at));
                }
                at = item.older_of_peer;
            }
        }
        let gone = gone.into_iter().filter_map(|spot| self.remove(spot)).collect();
        self.forget(|peer| {
            peer.key.is_some_and(|key| key.owner == owner) && peer.number == usize::MAX
        });
        gone
    }

    /// The place of a peer, a new one if it has none.
    #[cold]
    fn place_of(&mut self, key: Key) -> u32 {
        if let Some(&place) = self.places.get(&key) {
            return place;
        }
        if self.places.len() >= self.limit.saturating_mul(2) {
            self.forget(|_| true);
        }
        let peer = Peer { key: Some(key), newest: NONE, number: usize::MAX };
        let place = self.spare.pop().unwrap_or(self.peers.len() as u32);
        match self.peers.get_mut(place as usize) {
            Some(spare) => *spare = peer,
            None => self.peers.push(peer),
        }
        self.places.insert(key, place);
        place
    }

    /// Forgets peers without connections.
    fn forget(&mut self, which: impl Fn(&Peer) -> bool) {
        for (peer, place) in self.peers.iter_mut().zip(0..) {
            if peer.newest == NONE && which(peer) {
                if let Some(key) = peer.key.take() {
                    self.places.remove(&key);
                    self.spare.push(place);
                }
            }
        }
    }

    fn free_item(&mut self) -> u32 {
        let at = self.free;
        if let Some(item) = self.items.get(at as usize) {
            self.free = item.older;
            return at;
        }
        self.items.push(Item {
            kept: None,
            peer: NONE,
            newer: NONE,
            older: NONE,
            newer_of_peer: NONE,
            older_of_peer: NONE,
        });
        (self.items.len() - 1) as u32
    }
}

#[cfg(test)]
mod tests;
