//! The peers a request has tried.

const INLINE: usize = 8;

/// Peers already tried. Up to eight are kept without an allocation.
#[derive(Debug, Default)]
pub struct Tried {
    first: [u32; INLINE],
    len: u32,
    more: Vec<u32>,
}

impl Tried {
    /// Whether the peer was tried.
    #[inline]
    pub fn contains(&self, peer: usize) -> bool {
        let first = &self.first[..(self.len as usize).min(INLINE)];
        first.iter().chain(&self.more).any(|&p| p as usize == peer)
    }

    /// Adds a peer.
    pub fn insert(&mut self, peer: usize) {
        match self.first.get_mut(self.len as usize) {
            Some(place) => *place = peer as u32,
            None => self.more.push(peer as u32),
        }
        self.len += 1;
    }

    /// How many were tried.
    pub fn count(&self) -> usize {
        self.len as usize
    }

    /// Forgets them all.
    pub fn clear(&mut self) {
        self.len = 0;
        self.more.clear();
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
        assert!(tried.contains(38) && !tried.contains(37));
        tried.clear();
        assert!(!tried.contains(0) && !tried.contains(38));
    }
}
