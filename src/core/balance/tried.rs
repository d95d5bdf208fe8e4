//! The peers a request has tried.

const INLINE: usize = 4;

/// Peers already tried. Up to four are kept without an allocation.
#[derive(Debug, Default)]
pub struct Tried {
    count: u32,
    first: [u32; INLINE],
    /// A bit for each peer, once there are more than four.
    bits: Box<[u64]>,
}

impl Tried {
    /// Whether the peer was tried.
    #[inline]
    pub fn contains(&self, peer: usize) -> bool {
        self.count != 0 && self.has(peer)
    }

    fn has(&self, peer: usize) -> bool {
        match self.first.get(..self.count as usize) {
            Some(first) => first.contains(&(peer as u32)),
            None => self.bits.get(peer / 64).is_some_and(|word| word >> (peer % 64) & 1 != 0),
        }
    }

    /// Adds a peer.
    #[inline]
    pub fn insert(&mut self, peer: usize) {
        match self.first.get_mut(self.count as usize) {
            Some(place) => *place = peer as u32,
            None => self.insert_more(peer),
        }
        self.count += 1;
    }

    #[cold]
    fn insert_more(&mut self, peer: usize) {
        if self.count as usize == INLINE {
            for first in self.first {
                self.set_bit(first as usize);
            }
        }
        self.set_bit(peer);
    }

    fn set_bit(&mut self, peer: usize) {
        let word = peer / 64;
        if self.bits.len() <= word {
            let mut bits = std::mem::take(&mut self.bits).into_vec();
            bits.resize((word + 1).next_power_of_two(), 0);
            self.bits = bits.into();
        }
        self.bits[word] |= 1 << (peer % 64);
    }

    /// How many were tried.
    #[inline]
    pub fn count(&self) -> usize {
        self.count as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_peers_than_fit_inline_are_remembered() {
        let mut tried = Tried::default();
        (0..40).step_by(2).for_each(|p| tried.insert(p));
        assert_eq!((0..40).filter(|&p| tried.contains(p)).count(), 20);
        assert!(tried.contains(0) && tried.contains(38) && !tried.contains(37));
        assert!(!tried.contains(100_000));
    }
}
