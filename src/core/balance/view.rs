//! A worker's own copy of a set, ready to pick from.

use super::{FULL_SHARE, Order, Peers, Tried, Weighted};
use crate::table::{Image, Record, Table};

/// One set of peers as a worker uses it: never changed, so a request that holds it sees one
/// generation from beginning to end.
#[derive(Debug)]
pub struct View {
    generation: u64,
    records: Vec<Record>,
    weights: Weighted,
    order: Order,
}

/// nginx's parameters of a `server`, for all peers of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Failures within `fail_timeout` that take a peer out; 0 never does.
    pub max_fails: u32,
    /// Seconds.
    pub fail_timeout: u32,
    /// Most requests in flight to a peer over all workers; 0 is no limit.
    pub max_conns: u32,
    /// Milliseconds over which a new peer's share grows; 0 is at once.
    pub slow_start: u64,
}

impl Default for Rules {
    /// nginx's defaults.
    fn default() -> Rules {
        Rules { max_fails: 1, fail_timeout: 10, max_conns: 0, slow_start: 0 }
    }
}

/// The time, as the event loop knows it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// Seconds since the epoch.
    pub seconds: u64,
    /// Milliseconds since the epoch.
    pub millis: u64,
}

/// A view together with what decides whether a peer can be used just now.
pub struct Candidates<'a> {
    /// The set.
    pub view: &'a View,
    /// The shared counters.
    pub table: Table<'a>,
    /// The block's parameters.
    pub rules: &'a Rules,
    /// The peers this request has tried.
    pub tried: &'a Tried,
    /// The time.
    pub now: Clock,
}

impl View {
    /// Prepares a set for picking.
    pub fn new(image: Image) -> View {
        let weights = Weighted::new(image.records.iter().map(|r| r.weight));
        let order = Order::new(&weights);
        View { generation: image.generation, records: image.records, weights, order }
    }

    /// Generation of the set.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The peers.
    pub fn records(&self) -> &[Record] {
        &self.records
    }
}

impl Candidates<'_> {
    fn slot(&self, peer: usize) -> usize {
        self.view.records[peer].slot as usize
    }
}

impl Peers for Candidates<'_> {
    fn len(&self) -> usize {
        self.view.records.len()
    }

    fn weights(&self) -> &Weighted {
        &self.view.weights
    }

    fn order(&self) -> &Order {
        &self.view.order
    }

    /// A single peer may be tried again: nginx asks for it when a kept connection turned out stale.
    fn is_free(&self, peer: usize) -> bool {
        let max_conns = u64::from(self.rules.max_conns);
        (self.view.records.len() == 1 || !self.tried.contains(peer))
            && (max_conns == 0 || self.table.in_flight(self.slot(peer)) < max_conns)
    }

    /// A single peer is never out, as in nginx.
    fn is_failed(&self, peer: usize) -> bool {
        let Rules { max_fails, fail_timeout, .. } = *self.rules;
        self.view.records.len() > 1
            && self.table.is_failed(
                self.slot(peer),
                u64::from(max_fails),
                u64::from(fail_timeout),
                self.now.seconds,
            )
    }

    fn share(&self, peer: usize) -> u32 {
        let slow_start = self.rules.slow_start;
        if slow_start == 0 {
            return FULL_SHARE;
        }
        let age = self.now.millis.saturating_sub(self.table.started(self.slot(peer)));
        if age >= slow_start {
            return FULL_SHARE;
        }
        let share = u128::from(FULL_SHARE) * u128::from(age) / u128::from(slow_start);
        (share as u32).max(FULL_SHARE / 100)
    }

    fn has_tried(&self) -> bool {
        self.tried.count() != 0
    }

    fn load(&self, peer: usize) -> u64 {
        self.table.in_flight(self.slot(peer))
    }
}
