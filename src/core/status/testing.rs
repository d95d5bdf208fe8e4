//! What the tests of the formats share.

use std::collections::BTreeMap;

use super::*;
use crate::model::{Admit, Health, Pending, Source};
use crate::table::SetChange;

/// A document of what it is told.
pub(super) fn write(
    format: Format,
    with_peers: bool,
    tell: impl FnOnce(&mut dyn Document),
) -> String {
    let mut document = document(format, with_peers, head());
    tell(&mut *document);
    String::from_utf8(document.finish().concat()).unwrap()
}

fn head() -> Status {
    Status {
        version: VERSION,
        time_ms: 1_700_000_000_500,
        module: Version { version: "0.1.0".into() },
        nginx: Nginx { version: "1.22.1".into(), pid: 7, worker: 0 },
        zone: Zone { name: "consul".into(), size: 10, used: 1 },
        state: Some(StateFile {
            path: "/var/<state>".into(),
            age_seconds: Some(7.5),
            error: Some("disk <full>".into()),
        }),
        connections: Connections { max: 64, used: 3, allowed: 64, needed: 2, limited_by: None },
        upstreams: vec![],
        services: vec![],
        on_demand: None,
    }
}

pub(super) fn upstream(name: &str, service: &str) -> Upstream {
    let tiers = vec![
        Tier { name: "dc1".into(), peers: Some(3), usable: Some(0) },
        Tier { name: "dc<2>".into(), peers: Some(2), usable: Some(1) },
        Tier { name: "servers".into(), peers: None, usable: None },
    ];
    Upstream::new(name.into(), service.into(), "round_robin".into(), tiers)
}

pub(super) fn service(name: &str, upstream: &str) -> Service {
    Service {
        service: name.into(),
        from: Source::Health,
        datacenter: None,
        upstreams: vec![upstream.into()],
        tags: vec![],
        status: Admit::Passing,
        filter: None,
        servers: vec!["http://127.0.0.1:8500".into()],
        server: None,
        mode: "blocking",
        delay_ms: None,
        index: 42,
        generation: 3,
        source: Some("state file"),
        last_good_seconds: Some(0.25),
        last_change_seconds: None,
        last_error: Some("<b>&\u{7}".into()),
        failures: 2,
        backoff_ms: Some(250),
        zone_full: false,
        refusals: BTreeMap::from([("no_leader", 3), ("stale", 1)]),
        pending: Some(Pending { removals: 2, confirmed: 1, of: 3 }),
        frozen: None,
        history: vec![SetChange {
            time_ms: 1_000,
            generation: 3,
            joined: vec!["10.0.0.1:80".into()],
            left: vec![],
            joined_total: 9,
            left_total: 0,
            changed_total: 1,
        }],
        last_used_seconds: None,
        peers: vec![],
    }
}

pub(super) fn peer(server: &str, state: PeerState) -> Peer {
    Peer {
        server: server.into(),
        node: "n".into(),
        service_id: "web-1".into(),
        datacenter: None,
        tags: vec!["v1".into()],
        health: Health::Passing,
        weight: 4,
        effective_weight: 1.5,
        backup: false,
        max_conns: 0,
        in_flight: 2,
        picks: 9,
        fails: 1,
        latency_ms: Some(12.5),
        state,
        override_: None,
        connections: Some(PeerConnections { idle: 2, active: 1, opened: 3, reused: 9 }),
    }
}
