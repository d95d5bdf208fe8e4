//! What variables learn of an attempt.

use super::StockAttempt;
use crate::peer::served::{Served, Way};

impl StockAttempt {
    /// Whom the request went to last; `None` if that was a `server` line.
    pub(in crate::peer) fn served(&self) -> Option<Served<'_>> {
        if self.on_servers {
            return None;
        }
        let of_present = self.snapshot.as_ref().zip(self.counted.last());
        let of_past = || self.past.as_ref().and_then(|past| past.served.as_ref());
        let peer = match of_present {
            Some((snapshot, peer)) => Some((&**snapshot.view(), peer)),
            None => of_past().map(|(view, peer)| (&**view, *peer)),
        };
        let view = self.snapshot.as_ref().map(|snapshot| &**snapshot.view());
        Some(Served { block: self.block(), view, peer })
    }

    /// The request, and the block that it was sent to.
    pub(in crate::peer) fn way(&self) -> Way {
        let upstream = self.stock().map_or(std::ptr::null_mut(), |stock| stock.upstream);
        Way { request: self.request, upstream }
    }

    /// The request has gone elsewhere.
    pub(in crate::peer) fn disown(&mut self) {
        self.request = std::ptr::null_mut();
    }
}
