//! The status of a service and of its peers.

use std::rc::Rc;
use std::time::Duration;

use nginx_consul_core::balance::{FULL_SHARE, Latency, ServerParams, slow_start_share};
use nginx_consul_core::clock::age;
use nginx_consul_core::control::Frozen;
use nginx_consul_core::model::{Action, Mode, Override};
use nginx_consul_core::status::{Peer, PeerConnections, PeerState, Service};
use nginx_consul_core::table::{Freshness, Overrides, PeerRecord, PeerSnapshot, Table};

use crate::services::Followed;

/// The peers of a service, one by one.
pub(crate) struct Peers {
    is_single: bool,
    image: PeerSnapshot,
    next: usize,
    detail_at: usize,
    rules: ServerParams,
    has_slow_start: bool,
    /// One of the upstreams has `consul_keepalive`.
    keeps_alive: bool,
    overrides: Rc<Overrides>,
    /// The scope of its overrides.
    scope: u64,
}

/// The status of a service at `now`, milliseconds of the monotonic clock, and its peers.
pub(crate) fn service(
    followed: &Followed<'_>,
    table: Table<'_>,
    overrides: &Rc<Overrides>,
    now: u64,
) -> (Service, Peers) {
    let query = &followed.target.query;
    let entry = followed.entry;
    let fresh = entry.map(|e| table.freshness(e));
    let fresh = fresh.as_ref();
    let servers: Vec<String> =
        followed.target.endpoint.servers.iter().map(ToString::to_string).collect();
    let ago = |at: u64| (at != 0).then(|| age(at, now) as f64 / 1000.0);
    let ms = |delay: Duration| u32::try_from(delay.as_millis()).ok();
    let (mode, delay_ms) = match fresh.map_or(Mode::Blocking, |f| f.mode) {
        Mode::Blocking => ("blocking", None),
        Mode::Triggered { delay } => ("triggered", ms(delay)),
        Mode::Polling { delay } => ("polling", ms(delay)),
    };
    let image = entry.and_then(|e| table.read(e, followed.key)).unwrap_or_default();
    let unused = |e| age(table.last_used(e), now) as f64 / 1000.0;
    let refusals = entry.map_or_else(Vec::new, |e| table.refusals(e));
    let service = Service {
        service: query.service.clone(),
        from: query.source,
        datacenter: query.datacenter.clone(),
        upstreams: followed.upstreams(),
        tags: followed.target.selection.tags.clone(),
        status: followed.target.selection.admit,
        filter: query.filter.clone(),
        server: fresh.and_then(|f| servers.get(f.server).cloned()),
        servers,
        mode,
        delay_ms,
        index: fresh.map_or(0, |f| f.index),
        generation: image.generation,
        source: fresh.and_then(source),
        last_good_seconds: fresh.and_then(|f| ago(f.last_good)),
        last_change_seconds: fresh.and_then(|f| ago(f.last_change)),
        last_error: fresh.filter(|f| !f.error.is_empty()).map(|f| f.error.clone()),
        failures: fresh.map_or(0, |f| f.failures),
        backoff_ms: fresh.filter(|f| f.retry_at != 0).map(|f| f.retry_at.saturating_sub(now)),
        // An error without a failure: the answer was valid, but the zone had no room for it.
        zone_full: fresh.is_none_or(|f| f.failures == 0 && !f.error.is_empty()),
        refusals: refusals.into_iter().map(|(reason, n)| (reason.word(), n)).collect(),
        pending: fresh.and_then(|f| f.pending),
        frozen: entry.and_then(|entry| {
            Some(Frozen::new(overrides.frozen(followed.key)?, table.frozen_diff(entry)))
        }),
        history: image.history(),
        last_used_seconds: entry.filter(|_| followed.is_named).map(unused),
        peers: Vec::new(),
    };
    let first = followed.blocks.first();
    let peers = Peers {
        is_single: followed.is_single,
        image,
        next: 0,
        detail_at: 0,
        rules: first.map(|block| block.rules()).unwrap_or_default(),
        has_slow_start: first.is_some_and(|block| block.has_slow_start()),
        keeps_alive: followed.blocks.iter().any(|block| block.keeps_alive()),
        overrides: Rc::clone(overrides),
        scope: followed.scope(),
    };
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
    /// The next peer; `now` is in milliseconds of the monotonic clock.
    pub(crate) fn next(&mut self, table: Table<'_>, now: u64) -> Option<(PeerRecord, Peer)> {
        let record = *self.image.records.get(self.next)?;
        self.next += 1;
        let detail = self.image.next_metadata(&mut self.detail_at).unwrap_or_default();
        let params = record.params();
        let rules = self.rules.merged_with(&params);
        let (slot, counters) =
            (table.peer_counters(record.slot), table.counter_values(record.slot));
        let slow_start = if self.has_slow_start { rules.slow_start } else { 0 };
        let share = slow_start_share(slow_start.into(), slot.started(), now);
        let failed = !self.is_single && slot.is_failed(rules.limits(), now);
        let full = rules.max_conns != 0 && counters.in_flight >= rules.max_conns.into();
        let held = self.overrides.of_instance(self.scope, record.identity);
        let for_all = held.iter().find(|held| held.upstream.is_none());
        let state = match for_all.map(|held| held.action) {
            Some(Action::Drain) => PeerState::Draining,
            Some(Action::Down) => PeerState::Down,
            Some(Action::Up) => PeerState::Up,
            _ if params.down => PeerState::Down,
            _ if failed => PeerState::Unavail,
            _ if full => PeerState::Busy,
            _ if share < FULL_SHARE => PeerState::Recovering,
            _ => PeerState::Up,
        };
        let latency = Latency::from_raw(slot.latency());
        let peer = Peer {
            server: record.addr().to_string(),
            node: detail.node,
            service_id: detail.id,
            datacenter: Some(detail.datacenter).filter(|name| !name.is_empty()),
            tags: detail.tags,
            health: detail.health,
            weight: record.weight,
            effective_weight: effective_weight(record.weight, for_all, state, share),
            backup: params.backup,
            max_conns: rules.max_conns,
            in_flight: counters.in_flight,
            picks: counters.picks,
            fails: counters.failed,
            latency_ms: (!latency.is_none()).then(|| rounded(latency.at(now).into())),
            state,
            override_: for_all.or(held.first()).cloned(),
            connections: self.keeps_alive.then_some(PeerConnections {
                idle: counters.idle,
                active: counters.in_flight,
                opened: counters.opened,
                reused: counters.reused,
            }),
        };
        Some((record, peer))
    }
}

fn effective_weight(weight: u32, held: Option<&Override>, state: PeerState, share: u32) -> f64 {
    let weight = held.and_then(|held| held.weight).map_or(weight, |weight| weight.get().into());
    match state {
        PeerState::Down | PeerState::Draining => 0.0,
        _ => rounded(f64::from(weight) * f64::from(share) / f64::from(FULL_SHARE)),
    }
}

/// Rounded to three digits.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
