//! Whether a request can use a peer now: its counters, its limits and what the request has tried.

use std::fmt;

use super::candidates::FULL_SHARE;
use super::view::{PeerInfo, Tried, View};
use crate::table::{PROBE_PACE, PeerCounters, Table};

/// A view, and what decides whether a request can use a peer of it now.
#[derive(Clone, Copy)]
pub struct PickContext<'a, 'z> {
    /// The sets.
    pub view: &'a View,
    /// The shared counters.
    pub table: &'a Table<'z>,
    /// The peers this request has tried.
    pub tried: &'a Tried,
    /// Milliseconds of the monotonic clock.
    pub now: u64,
    /// The request's key; empty unless the method hashes.
    pub key: &'a [u8],
    /// `consul_panic`: failures are ignored.
    pub panic: bool,
    /// There are no `server` lines to fall back to.
    pub alone: bool,
}

/// A peer of the view, with its counters.
#[derive(Clone, Copy, Debug)]
pub struct Picked<'a, 'z> {
    /// Its part of the view.
    pub info: &'a PeerInfo,
    /// Its counters.
    pub counters: PeerCounters<'z>,
}

impl<'a, 'z> PickContext<'a, 'z> {
    /// Whether there is only one peer. As in nginx, failures never exclude it, and a request may try it
    /// again, which nginx asks for when a kept connection turned out to be closed.
    pub(super) fn is_single(&self) -> bool {
        self.alone && self.view.records.len() == 1
    }

    /// Whether a request that has tried no peer could use this one.
    pub fn is_usable(&self, peer: usize) -> bool {
        let info = self.view.info(peer);
        !info.down && !self.is_full(info) && !self.is_failed(info)
    }

    /// A peer of the view.
    #[inline]
    pub fn peer(&self, number: usize) -> Picked<'a, 'z> {
        let info = self.view.info(number);
        Picked { info, counters: self.counters_of(info) }
    }

    /// Percentage of peers that failures don't exclude; those with `down` are not counted. 100 if there
    /// is no peer.
    // Not inlined: few upstreams have `consul_panic`.
    #[inline(never)]
    pub fn healthy_percent(&self) -> usize {
        let (mut all, mut healthy) = (0, 0);
        for info in self.view.infos.iter().filter(|info| !info.down) {
            all += 1;
            healthy += usize::from(!self.has_failed(info));
        }
        (healthy * 100usize).checked_div(all).unwrap_or(100)
    }

    #[inline]
    pub(super) fn counters_of(&self, info: &PeerInfo) -> PeerCounters<'z> {
        self.table.peer_counters(info.slot)
    }

    pub(super) fn is_full(&self, info: &PeerInfo) -> bool {
        let max_conns = u64::from(info.params.max_conns);
        max_conns != 0 && self.table.in_flight_at(info.slot, self.counters_of(info)) >= max_conns
    }

    pub(super) fn has_failed(&self, info: &PeerInfo) -> bool {
        self.counters_of(info).is_failed(info.limits(), self.now)
    }

    pub(super) fn is_failed(&self, info: &PeerInfo) -> bool {
        self.is_out(Picked { info, counters: self.counters_of(info) })
    }

    /// Whether failures exclude the peer. After its `fail_timeout`, and with `consul_panic` at any
    /// time, one request at a time may try it.
    pub(super) fn is_out(&self, Picked { info, counters }: Picked<'_, 'z>) -> bool {
        let (limits, now) = (info.limits(), self.now);
        if !counters.is_marked(limits) || self.is_single() {
            return false;
        }
        let is_due = self.panic || !counters.is_failed(limits, now);
        !is_due || !counters.is_probe_free(limits, now, self.probe_pace())
    }

    pub(super) fn probe_pace(&self) -> u64 {
        if self.panic { 0 } else { PROBE_PACE }
    }

    pub(super) fn share(&self, info: &PeerInfo) -> u32 {
        let slow_start = u64::from(info.params.slow_start);
        if slow_start == 0 {
            return FULL_SHARE;
        }
        slow_start_share(slow_start, self.counters_of(info).started(), self.now)
    }
}

/// The share of its weight that a peer gets at `now`, of [`FULL_SHARE`], with a slow start of so many
/// milliseconds since it appeared or recovered; times are milliseconds of the monotonic clock, 0 is
/// never.
pub fn slow_start_share(slow_start: u64, started: u64, now: u64) -> u32 {
    let age = now.saturating_sub(started);
    if started == 0 || age >= slow_start {
        return FULL_SHARE;
    }
    let share = u128::from(FULL_SHARE) * u128::from(age) / u128::from(slow_start);
    (share as u32).max(FULL_SHARE / 100)
}

/// Why a request passes over a peer, for the debug log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// `nginx_down` or an override.
    Down,
    /// The request has already tried it.
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
