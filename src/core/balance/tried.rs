//! The peers a request has tried.

const INLINE: usize = 8;

/// Peers already tried. Up to eight are kept without an allocation.
#[derive(Debug, Default)]
pub struct Tried {
    first: [u32; INLINE],
    count: u32,
    /// A bit for each peer, once there are more than eight.
    bits: Vec<u64>,
}

impl Tried {
    /// Whether the peer was tried.
    #[inline]
    pub fn contains(&self, peer: usize) -> bool {
        let count = self.count as usize;
        match self.first.get(..count) {
            Some(first) => first.contains(&(peer as u32)),
            None => self.bits.get(peer / 64).is_some_and(|word| word >> (peer % 64) & 1 != 0),
        }
    }

    /// Adds a peer.
    pub fn insert(&mut self, peer: usize) {
        if let Some(place) = self.first.get_mut(self.count as usize) {
            *place = peer as u32;
        } else {
            if self.count as usize == INLINE {
                for first in self.first {
                    self.set_bit(first as usize);
                }
            }
            self.set_bit(peer);
        }
        self.count += 1;
    }

    fn set_bit(&mut self, peer: usize) {
        let word = peer / 64;
        if self.bits.len() <= word {
            self.bits.resize((word + 1).next_power_of_two(), 0);
        }
        self.bits[word] |= 1 << (peer % 64);
    }

    /// How many were tried.
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
