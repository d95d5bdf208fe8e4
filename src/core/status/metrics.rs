//! The status for Prometheus, in its text format or as OpenMetrics.
//!
//! It uses no client library: those keep counters of their own and write a family in one go, while
//! these counters are in the zone and have to be written in pieces. The formats require little: the
//! lines of a family together, after its help and type, and three characters of a label escaped.
//! promtool and the Python client's parser check the output (tests/e2e).

use std::collections::{BTreeMap, HashSet};
use std::fmt::{Display, Write as _};
use std::io::Write as _;

use strum::VariantArray;

use super::document::{Document, Peer, PeerConnections, PeerState, Service, Status, Upstream};
use crate::text::printable;

/// Most upstreams that a label names; the label has the number of the others.
const NAMED: usize = 4;

/// Names of the families, without the prefix `nginx_consul_`, and their help. Families that end with
/// `_total` are counters, the others gauges.
const FAMILIES: &[(&str, &str)] = &[
    ("info", "Versions of the module and of nginx; always 1."),
    ("zone_size_bytes", "Size of the shared zone, consul_zone."),
    ("zone_used_bytes", "Bytes of the shared zone in use."),
    ("connections", "Connections to Consul, those that Consul still counts included."),
    ("connections_max", "Most connections to Consul, consul_connections."),
    ("state_file_written_timestamp_seconds", "When the state file was last written."),
    ("state_file_error", "1 while the state file can't be written."),
    ("upstream_usable", "1 if a request to the upstream finds a usable peer or server line."),
    ("upstream_tier_in_use", "1 for the tier that requests go to now."),
    ("upstream_tier_peers", "Peers of a tier."),
    ("upstream_tier_usable_peers", "Peers of a tier that could take a request now."),
    ("upstream_panic", "1 while so many peers have failed that failures are ignored."),
    ("service_index", "X-Consul-Index of the last good answer."),
    ("service_generation", "Number that moves with every change of the peers."),
    ("service_last_good_timestamp_seconds", "When the last good answer came."),
    ("service_last_change_timestamp_seconds", "When the peers last changed."),
    ("service_source", "1 for where the peers come from: live, zone, state_file or none."),
    ("service_change_delay_seconds", "Longest expected time until a change is seen."),
    ("service_failures", "Failed queries in a row."),
    ("service_backoff_seconds", "Time until Consul is asked again after a failure."),
    ("service_refusals_total", "Answers that changed nothing, by reason."),
    ("service_pending_removals", "Peers whose removal waits to be confirmed."),
    ("service_zone_full", "1 while the zone has no room for the last good answer."),
    ("service_peers", "Peers by state."),
    ("service_in_flight", "Requests in flight to the peers of the service, over all workers."),
    ("on_demand_services_max", "Most services that requests may name, consul_max_services."),
    ("peer_info", "Node and service id of a peer; always 1."),
    ("peer_state", "1 for the state of the peer."),
    ("peer_picks_total", "Times the peer was picked."),
    ("peer_fails_total", "Failed attempts."),
    ("peer_in_flight", "Requests in flight to the peer, over all workers."),
    ("peer_weight", "Configured weight."),
    ("peer_effective_weight", "Weight in effect."),
    ("peer_latency_seconds", "Mean time to the response header, with least_time."),
    ("peer_connections", "Connections to the peer, idle and active, with consul_keepalive."),
    ("peer_connections_opened_total", "Connections opened to the peer, with consul_keepalive."),
    ("peer_connections_reused_total", "Requests over an idle connection, with consul_keepalive."),
];

/// The lines so far, by family.
pub(super) struct Metrics {
    is_open: bool,
    with_peers: bool,
    /// Their index in [`FAMILIES`], by name.
    families: BTreeMap<&'static str, usize>,
    lines: Vec<Vec<u8>>,
    time_ms: u64,
    /// Labels of the services so far: no two may have the same labels.
    seen: HashSet<String>,
    /// The service whose peers are being added.
    service: Option<Current>,
}

/// A service, and the sums over its peers.
struct Current {
    labels: String,
    states: [u64; PeerState::VARIANTS.len()],
    in_flight: u64,
}

impl Metrics {
    pub(super) fn new(head: &Status, is_open: bool, with_peers: bool) -> Metrics {
        let mut metrics = Metrics {
            is_open,
            with_peers,
            families: FAMILIES.iter().enumerate().map(|(at, (name, _))| (*name, at)).collect(),
            lines: vec![Vec::new(); FAMILIES.len()],
            time_ms: head.time_ms,
            seen: HashSet::new(),
            service: None,
        };
        metrics.head(head);
        metrics
    }

    fn head(&mut self, head: &Status) {
        let version = label("version", &head.module.version);
        self.add("info", &with(&version, "nginx_version", &head.nginx.version), 1);
        let zone = label("zone", &head.zone.name);
        self.add("zone_size_bytes", &zone, head.zone.size);
        self.add("zone_used_bytes", &zone, head.zone.used);
        self.add("connections", "", head.connections.used);
        self.add("connections_max", "", head.connections.max);
        if let Some(state) = &head.state {
            self.add_time("state_file_written_timestamp_seconds", "", state.age_seconds);
            self.add("state_file_error", "", u8::from(state.error.is_some()));
        }
    }

    /// Adds a line. `labels` are formatted, without braces.
    fn add(&mut self, name: &str, labels: &str, value: impl Display) {
        let Some(&family) = self.families.get(name) else { return };
        let (lines, (name, help)) = (&mut self.lines[family], FAMILIES[family]);
        if lines.is_empty() {
            // In OpenMetrics only the samples of a counter have `_total`, not its name.
            let (family, kind) = match name.strip_suffix("_total") {
                Some(family) if self.is_open => (family, "counter"),
                Some(_) => (name, "counter"),
                None => (name, "gauge"),
            };
            let family = format!("nginx_consul_{family}");
            let _ = writeln!(lines, "# HELP {family} {help}\n# TYPE {family} {kind}");
        }
        // Writing to memory doesn't fail.
        let _ = match labels {
            "" => writeln!(lines, "nginx_consul_{name} {value}"),
            labels => writeln!(lines, "nginx_consul_{name}{{{labels}}} {value}"),
        };
    }

    /// Adds a time that is given as seconds ago, as seconds since the epoch. Adds nothing for `None`.
    fn add_time(&mut self, name: &str, labels: &str, seconds_ago: Option<f64>) {
        if let Some(seconds_ago) = seconds_ago {
            let ms = self.time_ms as f64 - (seconds_ago * 1000.0).round();
            self.add(name, labels, ms / 1000.0);
        }
    }

    fn end_service(&mut self) {
        let Some(Current { labels, states, in_flight }) = self.service.take() else { return };
        for (state, count) in PeerState::VARIANTS.iter().zip(states) {
            self.add("service_peers", &with(&labels, "state", state.into()), count);
        }
        self.add("service_in_flight", &labels, in_flight);
    }
}

impl Document for Metrics {
    fn upstream(&mut self, upstream: Upstream) {
        let labels = with(&label("upstream", &upstream.name), "service", &upstream.service);
        for tier in &upstream.tiers {
            let of_tier = with(&labels, "tier", &tier.name);
            let in_use = upstream.in_use.as_ref() == Some(&tier.name);
            self.add("upstream_tier_in_use", &of_tier, u8::from(in_use));
            if let (Some(peers), Some(usable)) = (tier.peers, tier.usable) {
                self.add("upstream_tier_peers", &of_tier, peers);
                self.add("upstream_tier_usable_peers", &of_tier, usable);
            }
        }
        self.add("upstream_usable", &labels, u8::from(upstream.in_use.is_some()));
        if let Some(panic) = upstream.panic {
            self.add("upstream_panic", &labels, u8::from(panic));
        }
    }

    fn service(&mut self, service: Service) {
        self.end_service();
        let labels = labels_of(&service);
        if !self.seen.insert(labels.clone()) {
            return;
        }
        let seconds = |ms: u64| ms as f64 / 1000.0;
        self.add("service_index", &labels, service.index);
        self.add("service_generation", &labels, service.generation);
        self.add_time("service_last_good_timestamp_seconds", &labels, service.last_good_seconds);
        let last_change = service.last_change_seconds;
        self.add_time("service_last_change_timestamp_seconds", &labels, last_change);
        let source = service.source.unwrap_or("none").replace(' ', "_");
        self.add("service_source", &with(&labels, "source", &source), 1);
        let delay = seconds(service.delay_ms.unwrap_or(0).into());
        self.add("service_change_delay_seconds", &with(&labels, "mode", service.mode), delay);
        self.add("service_failures", &labels, service.failures);
        self.add("service_backoff_seconds", &labels, seconds(service.backoff_ms.unwrap_or(0)));
        for (reason, count) in &service.refusals {
            self.add("service_refusals_total", &with(&labels, "reason", reason), count);
        }
        let pending = service.pending.map_or(0, |pending| pending.removals);
        self.add("service_pending_removals", &labels, pending);
        self.add("service_zone_full", &labels, u8::from(service.zone_full));
        self.service = Some(Current { labels, states: Default::default(), in_flight: 0 });
    }

    fn peer(&mut self, peer: Peer) {
        let Some(current) = &mut self.service else { return };
        current.states[peer.state as usize] += 1;
        current.in_flight += peer.in_flight;
        if !self.with_peers {
            return;
        }
        let labels = with(&current.labels, "server", &peer.server);
        let info = with(&with(&labels, "node", &peer.node), "service_id", &peer.service_id);
        self.add("peer_info", &info, 1);
        self.add("peer_state", &with(&labels, "state", peer.state.into()), 1);
        self.add("peer_picks_total", &labels, peer.picks);
        self.add("peer_fails_total", &labels, peer.fails);
        self.add("peer_in_flight", &labels, peer.in_flight);
        self.add("peer_weight", &labels, peer.weight);
        self.add("peer_effective_weight", &labels, peer.effective_weight);
        if let Some(ms) = peer.latency_ms {
            self.add("peer_latency_seconds", &labels, ms / 1000.0);
        }
        if let Some(PeerConnections { idle, active, opened, reused }) = peer.connections {
            for (state, count) in [("idle", idle), ("active", active)] {
                self.add("peer_connections", &with(&labels, "state", state), count);
            }
            self.add("peer_connections_opened_total", &labels, opened);
            self.add("peer_connections_reused_total", &labels, reused);
        }
    }

    fn on_demand(&mut self, max: usize) {
        self.end_service();
        self.add("on_demand_services_max", "", max);
    }

    fn finish(mut self: Box<Self>) -> Vec<Vec<u8>> {
        self.end_service();
        let mut parts = self.lines;
        if self.is_open {
            parts.push(b"# EOF\n".to_vec());
        }
        parts.retain(|lines| !lines.is_empty());
        parts
    }
}

/// The labels that identify a service: an upstream follows each (name, datacenter) once.
fn labels_of(service: &Service) -> String {
    let mut upstream = service.upstreams.iter().take(NAMED).cloned().collect::<Vec<_>>().join(",");
    if let Some(more @ 1..) = service.upstreams.len().checked_sub(NAMED) {
        let _ = write!(upstream, ",+{more}");
    }
    let labels = with(&label("service", &service.service), "upstream", &upstream);
    match &service.datacenter {
        Some(datacenter) => with(&labels, "datacenter", datacenter),
        None => labels,
    }
}

/// The labels and one more.
fn with(labels: &str, name: &str, value: &str) -> String {
    format!("{labels},{}", label(name, value))
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn label(name: &str, value: &str) -> String {
    // The formats escape three characters; what else no terminal should get is written out.
    let lines: Vec<String> = value.split('\n').map(|line| escaped(&printable(line))).collect();
    format!("{name}=\"{}\"", lines.join("\\n"))
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::super::testing::{peer, service, upstream, write};
    use super::*;

    fn tell(doc: &mut dyn Document) {
        doc.upstream(upstream("api", "web"));
        doc.service(service("web", "api"));
        doc.peer(peer("10.0.0.1:80", PeerState::Up));
        doc.peer(peer("10.0.0.2:80", PeerState::Busy));
        doc.on_demand(9);
        doc.service(service("shop", "any"));
        doc.peer(peer("10.0.0.1:80", PeerState::Down));
    }

    /// The value of a line, by what stands before it.
    fn value(text: &str, line: &str) -> String {
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {line} in\n{text}")).to_owned()
    }

    #[test]
    fn units_are_seconds_and_counts_are_by_state() {
        let text = write(Format::Text, true, tell);
        let web = "{service=\"web\",upstream=\"api\"}";
        let of_web = |name: &str| value(&text, &format!("nginx_consul_service_{name}{web}"));
        assert_eq!(of_web("last_good_timestamp_seconds"), "1700000000.25");
        assert_eq!(of_web("backoff_seconds"), "0.25");
        assert_eq!(of_web("in_flight"), "4");
        let busy = "nginx_consul_service_peers{service=\"web\",upstream=\"api\",state=\"busy\"}";
        assert_eq!(value(&text, busy), "1");
        let latency = "nginx_consul_peer_latency_seconds{service=\"web\",upstream=\"api\",\
                       server=\"10.0.0.2:80\"}";
        assert_eq!(value(&text, latency), "0.0125");
        assert!(text.contains("nginx_consul_service_refusals_total{service=\"web\""), "{text}");
        let of_peer = |name: &str, more: &str| {
            let labels = "service=\"web\",upstream=\"api\",server=\"10.0.0.1:80\"";
            value(&text, &format!("nginx_consul_peer_connections{name}{{{labels}{more}}}"))
        };
        let states = [of_peer("", ",state=\"idle\""), of_peer("", ",state=\"active\"")];
        assert_eq!(states, ["2", "1"]);
        assert_eq!([of_peer("_opened_total", ""), of_peer("_reused_total", "")], ["3", "9"]);
    }

    #[test]
    fn a_family_is_in_one_place_with_help_and_type_and_no_series_comes_twice() {
        for format in [Format::Text, Format::OpenMetrics] {
            let text = write(format, true, |doc| {
                tell(doc);
                // As when a service moves to another entry while it is written.
                doc.service(service("shop", "any"));
                doc.peer(peer("10.0.0.1:80", PeerState::Down));
            });
            let (mut types, mut series) = (HashSet::new(), HashSet::new());
            for line in text.lines() {
                if let Some(kind) = line.strip_prefix("# TYPE ") {
                    assert!(types.insert(kind.to_owned()), "{kind} twice");
                } else if !line.starts_with('#') {
                    let name = line.rsplit_once(' ').unwrap().0;
                    assert!(series.insert(name.to_owned()), "{name} twice");
                }
            }
            assert!(types.len() > 20, "{types:?}");
            assert_eq!(text.ends_with("# EOF\n"), format == Format::OpenMetrics);
        }
    }

    #[test]
    fn peers_can_be_left_out() {
        let text = write(Format::Text, false, tell);
        assert!(!text.contains("nginx_consul_peer_"), "{text}");
        assert!(text.contains("nginx_consul_service_peers{"), "{text}");
    }

    #[test]
    fn labels_are_escaped_and_of_many_blocks_not_endless() {
        let many: Vec<String> = (0..100).map(|n| format!("u{n}")).collect();
        let datacenter = |name: &str| Some(name.to_owned());
        for (name, upstreams, datacenter, expected) in [
            ("web", &many[..1], None, r#"service="web",upstream="u0""#),
            ("web", &many[..4], None, r#"service="web",upstream="u0,u1,u2,u3""#),
            ("web", &many[..], None, r#"service="web",upstream="u0,u1,u2,u3,+96""#),
            ("a\"} 1\n\\", &many[..0], None, r#"service="a\"} 1\n\\",upstream="""#),
            ("\r\u{1b}[1m", &many[..0], None, r#"service="\\r\\u{1b}[1m",upstream="""#),
            ("\u{202e}bew", &many[..0], None, r#"service="\\u{202e}bew",upstream="""#),
            ("web", &many[..0], datacenter("d"), r#"service="web",upstream="",datacenter="d""#),
        ] {
            let service =
                Service { upstreams: upstreams.to_vec(), datacenter, ..service(name, "") };
            assert_eq!(labels_of(&service), expected);
            let text = write(Format::Text, true, |doc| doc.service(service));
            assert_eq!(value(&text, &format!("nginx_consul_service_index{{{expected}}}")), "42");
        }
    }

    #[test]
    fn every_family_is_used_once_and_described_on_one_line() {
        let mut full = service("web", "api");
        full.last_change_seconds = Some(1.0);
        let metrics = write(Format::OpenMetrics, true, |doc| {
            let mut upstream = upstream("api", "web");
            upstream.panic = Some(true);
            doc.upstream(upstream);
            doc.service(full);
            doc.peer(peer("10.0.0.1:80", PeerState::Up));
            doc.on_demand(9);
        });
        let described = |line: &&str| line.starts_with("# HELP nginx_consul_");
        assert_eq!(metrics.lines().filter(described).count(), FAMILIES.len(), "{metrics}");
        let names: HashSet<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), FAMILIES.len());
        assert!(FAMILIES.iter().all(|(_, help)| !help.is_empty() && !help.contains(['\n', '\\'])));
    }
}
