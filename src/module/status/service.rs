//! What the status says of a service and of its peers.

use std::collections::BTreeMap;
use std::rc::Rc;

use nginx_consul_core::balance::{FULL_SHARE, Latency, Rules, share};
use nginx_consul_core::model::Admit;
use nginx_consul_core::status::{Peer, PeerConnections, PeerState, Pending, Service};
use nginx_consul_core::sync::Target;
use nginx_consul_core::table::{Freshness, Image, Mode, Order, Record, Table, orders::scope};

use crate::orders::{self, Shown};
use crate::peer::monotonic;

/// Who uses a service, and how.
#[derive(Default)]
pub(super) struct Users {
    pub(super) upstreams: Vec<String>,
    pub(super) rules: Rules,
    pub(super) is_single: bool,
    /// One of them has `consul_keepalive`.
    pub(super) keeps_alive: bool,
}

/// The peers of a service, taken one by one.
pub(super) struct Peers {
    image: Image,
    next: usize,
    detail_at: usize,
    rules: Rules,
    is_single: bool,
    keeps_alive: bool,
    orders: Rc<Shown>,
    /// Of the orders.
    scope: u64,
}

/// A target with what its entry says, if it has one, and its peers.
pub(super) fn service(
    target: &Target,
    key: u128,
    (table, entry): (Table<'_>, Option<usize>),
    users: Users,
    (orders, now): (&Rc<Shown>, u64),
) -> (Service, Option<Peers>) {
    let Target { query, selection, endpoint, .. } = target;
    let fresh = entry.map(|e| table.freshness(e));
    let fresh = fresh.as_ref();
    let servers: Vec<String> = endpoint.servers.iter().map(ToString::to_string).collect();
    let ago = |at: u64| (at != 0).then(|| now.saturating_sub(at) as f64 / 1000.0);
    let image = entry.and_then(|e| table.read(e, key));
    let (mode, delay_ms) = match fresh.map_or(Mode::Blocking, |f| f.mode) {
        Mode::Blocking => ("blocking", None),
        Mode::Gated(ms) => ("gated", Some(ms)),
        Mode::Sweep(ms) => ("sweep", Some(ms)),
    };
    let history = image.as_ref().map_or_else(Vec::new, Image::history);
    let service = Service {
        service: query.service.clone(),
        from: query.source.name(),
        datacenter: query.datacenter.clone(),
        upstreams: users.upstreams,
        tags: selection.tags.clone(),
        status: match selection.admit {
            Admit::Passing => "passing",
            Admit::Warning => "warning",
            Admit::Any => "any",
        },
        filter: query.filter.clone(),
        server: fresh.and_then(|f| servers.get(f.server).cloned()),
        servers,
        mode,
        delay_ms,
        index: fresh.map_or(0, |f| f.index),
        generation: image.as_ref().map_or(0, |i| i.generation),
        source: fresh.and_then(source),
        last_good_seconds: fresh.and_then(|f| ago(f.last_good)),
        last_change_seconds: fresh.and_then(|f| ago(f.last_change)),
        last_error: fresh.filter(|f| !f.error.is_empty()).map(|f| f.error.clone()),
        failures: fresh.map_or(0, |f| f.failures),
        backoff_ms: fresh.filter(|f| f.retry_at != 0).map(|f| f.retry_at.saturating_sub(now)),
        // An error without a failure is that of a good answer that found no room.
        zone_full: fresh.is_none_or(|f| f.failures == 0 && !f.error.is_empty()),
        refusals: entry.map_or_else(BTreeMap::new, |e| {
            table.refusals(e).into_iter().map(|(reason, n)| (reason.word(), n)).collect()
        }),
        pending: fresh.and_then(|f| f.pending).map(|p| Pending {
            removals: p.removals,
            confirmed: p.confirmed,
            of: p.of,
        }),
        frozen: entry.and_then(|entry| orders.frozen(table, key, entry)),
        history: history.into_iter().map(Into::into).collect(),
        last_used_seconds: None,
    };
    let Users { rules, is_single, keeps_alive, .. } = users;
    let peers = image.map(|image| Peers {
        image,
        next: 0,
        detail_at: 0,
        rules,
        is_single,
        keeps_alive,
        orders: Rc::clone(orders),
        scope: scope(&query.service, query.datacenter.as_deref()),
    });
    (service, peers)
}

fn source(fresh: &Freshness) -> Option<&'static str> {
    match fresh {
        Freshness { restored: true, .. } => Some("state file"),
        Freshness { last_good: 0, .. } => None,
        Freshness { confirmed: true, .. } => Some("live"),
        _ => Some("zone"),
    }
}

impl Peers {
    /// The next one; `now` is in milliseconds since the epoch.
    pub(super) fn next(&mut self, table: Table<'_>, now: u64) -> Option<Peer> {
        let record = self.image.records.get(self.next)?;
        self.next += 1;
        let detail = self.image.next_detail(&mut self.detail_at).unwrap_or_default();
        let params = record.params();
        let rules = self.rules.of(&params);
        let (slot, counters) = (table.slot(record.place), table.counters(record.place));
        let share = share(rules.slow_start.into(), slot.started(), now);
        let failed = !self.is_single && slot.is_failed(rules.limits(), monotonic());
        let full = rules.max_conns != 0 && counters.in_flight >= rules.max_conns.into();
        let ordered = self.orders.of_instance(self.scope, record.identity);
        let state = orders::state(ordered).unwrap_or(match (params.down, failed, full) {
            (true, ..) => PeerState::Down,
            (_, true, _) => PeerState::Unavail,
            (.., true) => PeerState::Busy,
            _ if share < FULL_SHARE => PeerState::Recovering,
            _ => PeerState::Up,
        });
        let latency = Latency::from_raw(slot.latency());
        Some(Peer {
            server: record.addr().to_string(),
            node: detail.node,
            service_id: detail.id,
            datacenter: Some(detail.datacenter).filter(|name| !name.is_empty()),
            tags: detail.tags,
            health: detail.health,
            weight: record.weight,
            effective_weight: effective_weight(record, ordered, state, share),
            backup: params.backup,
            max_conns: rules.max_conns,
            in_flight: counters.in_flight,
            picks: counters.picks,
            fails: counters.failed,
            latency_ms: (!latency.is_none()).then(|| rounded(latency.at(now).into())),
            state,
            ordered: orders::shown(ordered),
            connections: self.keeps_alive.then_some(PeerConnections {
                idle: counters.idle,
                active: counters.in_flight,
                opened: counters.opened,
                reused: counters.reused,
            }),
        })
    }
}

fn effective_weight(record: &Record, order: Option<&Order>, state: PeerState, share: u32) -> f64 {
    let weight = orders::weight(order).unwrap_or(record.weight);
    match state {
        PeerState::Down | PeerState::Draining => 0.0,
        _ => rounded(f64::from(weight) * f64::from(share) / f64::from(FULL_SHARE)),
    }
}

/// To a thousandth.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
