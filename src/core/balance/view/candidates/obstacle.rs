//! Why a request passes over a peer, for the debug log.

use std::fmt;

use super::PickContext;

/// What keeps a peer from being picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It says so itself.
    Down,
    /// The request has tried it.
    Tried,
    /// `max_fails` failures within `fail_timeout`.
    Failed,
    /// `max_conns` requests are in flight.
    Full,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Obstacle::Down => "it is down",
            Obstacle::Tried => "tried before",
            Obstacle::Failed => "its failures keep it out",
            Obstacle::Full => "it has max_conns requests",
        })
    }
}

impl PickContext<'_, '_> {
    /// Why the peer is passed over; `None` if it may be picked.
    pub fn obstacle(&self, peer: usize) -> Option<Obstacle> {
        let info = self.view.info(peer);
        let checks = [
            (info.down, Obstacle::Down),
            (self.tried.contains(peer), Obstacle::Tried),
            (self.is_failed(info), Obstacle::Failed),
            (self.is_full(info), Obstacle::Full),
        ];
        checks.into_iter().find(|(holds, _)| *holds).map(|(_, obstacle)| obstacle)
    }
}
