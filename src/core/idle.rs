//! A worker's idle connections, by the peers they lead to.
//!
//! Storing and taking one takes the same time, however many connections and peers there are. All are
//! in one array, linked in the order in which they became idle, and each peer has a list of its own.
//! Memory is allocated only when there are more of them than ever before.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use crate::table::SlotRef;

/// How many of a peer's connections are tried for a suitable one. They rarely differ at all.
const LOOKS: usize = 32;

/// No connection.
const NONE: u32 = u32::MAX;

/// The peer that a connection leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerKey {
    /// Which of the sets that share the connections the peer is from.
    pub owner: usize,
    /// Slot of the counters, for an instance.
    pub slot: Option<SlotRef>,
    /// Owner of the slot, for an instance; for another peer a hash of its name.
    pub identity: u64,
    /// Hash of the address, for an instance: its address may change.
    pub address: u64,
}

impl Hash for PeerKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The identity is a good hash already, but without the set.
        state.write_u64(self.identity ^ (self.owner as u64).rotate_left(32));
    }
}

/// Spreads the bits of a single word.
#[derive(Clone, Copy, Debug, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Position of a stored connection, valid until it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleRef(u32);

/// The connections, at most `limit` of them.
#[derive(Debug)]
pub struct Idle<C> {
    limit: usize,
    items: Vec<Item<C>>,
    /// First of the free items, linked by `older`.
    free: u32,
    /// The items of each peer, the one that became idle last at the end. Empty lists of former peers
    /// stay for a while.
    peers: HashMap<PeerKey, Vec<u32>, BuildHasherDefault<Spread>>,
    newest: u32,
    oldest: u32,
    len: usize,
}

#[derive(Debug)]
struct Item<C> {
    /// `None` if the item is free.
    kept: Option<(PeerKey, C)>,
    newer: u32,
    older: u32,
}

impl<C> Idle<C> {
    /// An empty one; `limit` is at least 1.
    pub fn new(limit: usize) -> Idle<C> {
        Idle {
            limit: limit.clamp(1, NONE as usize),
            items: Vec::new(),
            free: NONE,
            peers: HashMap::default(),
            newest: NONE,
            oldest: NONE,
            len: 0,
        }
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The one that has been idle for longest.
    pub fn oldest(&self) -> Option<&C> {
        Some(&self.items.get(self.oldest as usize)?.kept.as_ref()?.1)
    }

    /// Stores a connection to a peer. If there are too many, the one that was idle for longest is
    /// removed and returned.
    pub fn put(&mut self, key: PeerKey, connection: C) -> (IdleRef, Option<(PeerKey, C)>) {
        let evicted = if self.len >= self.limit { self.remove(IdleRef(self.oldest)) } else { None };
        let item = Item { kept: Some((key, connection)), newer: NONE, older: self.newest };
        let at = match self.items.get_mut(self.free as usize) {
            Some(free) => {
                let at = std::mem::replace(&mut self.free, free.older);
                *free = item;
                at
            }
            None => {
                self.items.push(item);
                self.items.len() as u32 - 1
            }
        };
        self.link(self.newest, at);
        self.newest = at;
        self.len += 1;
        if self.peers.len() > self.limit.saturating_mul(2) {
            self.peers.retain(|_, items| !items.is_empty());
        }
        self.peers.entry(key).or_default().push(at);
        (IdleRef(at), evicted)
    }

    /// Takes a suitable connection to a peer: the one that has been idle for the shortest time.
    #[inline]
    pub fn take(&mut self, key: &PeerKey, mut suits: impl FnMut(&C) -> bool) -> Option<C> {
        let items = self.peers.get_mut(key)?;
        let mut suits = |&at: &u32| {
            let item = self.items.get(at as usize).and_then(|item| item.kept.as_ref());
            item.is_some_and(|(_, connection)| suits(connection))
        };
        let from_end = items.iter().rev().take(LOOKS).position(&mut suits)?;
        let at = items.remove(items.len() - 1 - from_end);
        self.unlink(at).map(|(_, connection)| connection)
    }

    /// Takes the connection at a position; `None` if it was taken before.
    pub fn remove(&mut self, IdleRef(at): IdleRef) -> Option<(PeerKey, C)> {
        let (key, connection) = self.unlink(at)?;
        if let Some(items) = self.peers.get_mut(&key) {
            items.retain(|&item| item != at);
        }
        Some((key, connection))
    }

    /// Takes the connections of `owner` to peers that `goes` selects.
    pub fn remove_owned(
        &mut self,
        owner: usize,
        goes: impl Fn(&PeerKey) -> bool,
    ) -> Vec<(PeerKey, C)> {
        let mut items = Vec::new();
        self.peers.retain(|key, own| {
            let stays = key.owner != owner || !goes(key);
            if !stays {
                items.append(own);
            }
            stays
        });
        items.into_iter().filter_map(|at| self.unlink(at)).collect()
    }

    fn unlink(&mut self, at: u32) -> Option<(PeerKey, C)> {
        let item = self.items.get_mut(at as usize)?;
        let kept = item.kept.take()?;
        let (newer, older) = (item.newer, std::mem::replace(&mut item.older, self.free));
        self.free = at;
        self.len -= 1;
        self.link(older, newer);
        match self.items.get_mut(newer as usize) {
            Some(item) => item.older = older,
            None => self.newest = older,
        }
        Some(kept)
    }

    /// Links `newer` after `older`; without `older` it is the oldest.
    fn link(&mut self, older: u32, newer: u32) {
        match self.items.get_mut(older as usize) {
            Some(item) => item.newer = newer,
            None => self.oldest = newer,
        }
    }
}

#[cfg(test)]
mod tests;
