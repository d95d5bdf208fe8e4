//! What an operator has ordered, as worker 0 sees to it and as it is shown.

use std::collections::HashMap;

use nginx_consul_core::control::{self, Frozen, Override};
use nginx_consul_core::status::PeerState;
use nginx_consul_core::sync::{Engine, Level, Sink};
use nginx_consul_core::table::{Action, Order, Subject, Table};

use crate::sink::{TableSink, now_ms};

/// What worker 0 has done of what workers ask of it.
#[derive(Default)]
pub(crate) struct Orders {
    asked: u64,
}

impl Orders {
    /// Has Consul asked about the services that somebody wants asked about.
    pub(crate) fn ask(&mut self, table: Table<'_>, sink: &TableSink, engine: Option<&Engine>) {
        let asked = table.asked();
        let Some(engine) = engine.filter(|_| asked != self.asked) else { return };
        self.asked = asked;
        for (entry, key) in table.take_asked() {
            if let Some(number) = sink.number_of(entry, key) {
                engine.ask_again(number);
            }
        }
    }
}

/// Once a second, in worker 0: ends what is over.
pub(crate) fn check(table: Table<'_>, sink: &TableSink) {
    table.heal(sink.me());
    let now = now_ms();
    // A frozen set must not go because nobody asks for it.
    for order in table.orders() {
        if let Some(entry) = frozen_entry(table, &order) {
            table.note_used(entry, now);
        }
    }
    if !table.has_overdue(now) {
        return;
    }
    let over = table.lift_orders(|order| !order.is_in_force(now), sink.me());
    for order in over.unwrap_or_default() {
        sink.log(Level::Notice, control::over(&order));
        if let Some(entry) = frozen_entry(table, &order) {
            table.ask_again(entry);
        }
    }
}

fn frozen_entry(table: Table<'_>, order: &Order) -> Option<usize> {
    match order.subject {
        Subject::Target(key) => table.find(key),
        Subject::Instance { .. } => None,
    }
}

/// The orders in force, for who shows many services.
#[derive(Default)]
pub(crate) struct Shown {
    frozen: HashMap<u128, Order>,
    /// By scope and identity: for all upstreams, or else the first one that is narrowed.
    instances: HashMap<(u64, u64), Order>,
}

impl Shown {
    pub(crate) fn new(table: Table<'_>, now_ms: u64) -> Shown {
        let mut shown = Shown::default();
        for order in table.orders().into_iter().filter(|order| order.is_in_force(now_ms)) {
            match order.subject {
                Subject::Target(key) => drop(shown.frozen.insert(key, order)),
                Subject::Instance { scope, upstream, identity } => {
                    let held = shown.instances.entry((scope, identity));
                    let held = held.or_insert_with(|| order.clone());
                    if upstream == 0 {
                        *held = order;
                    }
                }
            }
        }
        shown
    }

    /// Whether the target of this key is frozen.
    pub(crate) fn frozen(&self, table: Table<'_>, key: u128, entry: usize) -> Option<Frozen> {
        self.frozen.get(&key).map(|order| Frozen::new(order, table.withheld(entry)))
    }

    /// What is ordered of an instance, by the scope of its target.
    pub(crate) fn of_instance(&self, scope: u64, identity: u64) -> Option<&Order> {
        if self.instances.is_empty() {
            return None;
        }
        self.instances.get(&(scope, identity))
    }
}

/// What the status says of an instance that this is ordered of.
pub(crate) fn shown(order: Option<&Order>) -> Option<Override> {
    order.map(Override::from)
}

/// Its state, where it is ordered for all upstreams.
pub(crate) fn state(order: Option<&Order>) -> Option<PeerState> {
    match for_all(order)?.action {
        Action::Drain => Some(PeerState::Draining),
        Action::Down => Some(PeerState::Down),
        Action::Up => Some(PeerState::Up),
        Action::Weight(_) | Action::Freeze => None,
    }
}

/// Its weight, where it is ordered for all upstreams.
pub(crate) fn weight(order: Option<&Order>) -> Option<u32> {
    match for_all(order)?.action {
        Action::Weight(weight) => Some(weight.into()),
        _ => None,
    }
}

fn for_all(order: Option<&Order>) -> Option<&Order> {
    order.filter(|order| order.upstream.is_empty())
}
