//! The status for Prometheus, in its text format or as OpenMetrics.
//!
//! Written by hand: the client libraries of the two formats keep counters of their own and write a
//! family in one go, while these counters are in the zone and have to be written in pieces. What the
//! formats ask for is little: the lines of a family together, after its help and type, and three
//! characters of a label escaped. promtool and the Python client's parser check it (tests/e2e).

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Write as _;

use self::families::{Family, Kind};
use super::{Document, Head, Peer, PeerConnections, PeerState, Service, Upstream};

mod families;

/// Blocks that a label names; of the others it has the number.
const NAMED: usize = 4;

/// The lines so far, by family.
pub(super) struct Metrics {
    is_open: bool,
    with_peers: bool,
    lines: Vec<Vec<u8>>,
    time_ms: u64,
    /// Labels of the services so far: a set of labels must not come twice.
    seen: HashSet<String>,
    /// The service whose peers come now.
    service: Option<Current>,
}

/// A service, and what its peers add up to.
struct Current {
    labels: String,
    states: [u64; PeerState::ALL.len()],
    in_flight: u64,
}

impl Metrics {
    pub(super) fn new(is_open: bool, with_peers: bool) -> Metrics {
        let lines = vec![Vec::new(); Family::COUNT];
        Metrics { is_open, with_peers, lines, time_ms: 0, seen: HashSet::new(), service: None }
    }

    /// Adds a line. `labels` are written, and without braces.
    fn add(&mut self, family: Family, labels: &str, value: impl std::fmt::Display) {
        let lines = &mut self.lines[family as usize];
        let (name, kind, help) = family.describe();
        if lines.is_empty() {
            // OpenMetrics names the counter, and its samples with `_total`.
            let suffix = if self.is_open && kind == Kind::Counter { "_total" } else { "" };
            let family = name.strip_suffix(suffix).unwrap_or(name);
            let _ = writeln!(lines, "# HELP {family} {help}\n# TYPE {family} {}", kind.word());
        }
        // Writing to memory doesn't fail.
        let _ = match labels {
            "" => writeln!(lines, "{name} {value}"),
            labels => writeln!(lines, "{name}{{{labels}}} {value}"),
        };
    }

    /// Adds a line of the service whose peers come now.
    fn of_service(&mut self, family: Family, value: impl std::fmt::Display) {
        if let Some(current) = self.service.take() {
            self.add(family, &current.labels, value);
            self.service = Some(current);
        }
    }

    fn end_service(&mut self) {
        let Some(Current { labels, states, in_flight }) = self.service.take() else { return };
        for (state, word) in PeerState::ALL {
            let labels = with(&labels, "state", word);
            self.add(Family::ServicePeers, &labels, states[state as usize]);
        }
        self.add(Family::ServiceInFlight, &labels, in_flight);
    }

    /// The time so many seconds ago, in seconds since the epoch.
    fn at(&self, seconds_ago: f64) -> f64 {
        let ms = self.time_ms as f64 - (seconds_ago * 1000.0).round();
        ms / 1000.0
    }
}

impl Document for Metrics {
    fn head(&mut self, head: Head) {
        self.time_ms = head.time_ms;
        let mut labels = String::new();
        label(&mut labels, "version", &head.module.version);
        label(&mut labels, "nginx_version", &head.nginx.version);
        self.add(Family::Info, &labels, 1);
        let mut zone = String::new();
        label(&mut zone, "zone", &head.zone.name);
        self.add(Family::ZoneSize, &zone, head.zone.size);
        self.add(Family::ZoneUsed, &zone, head.zone.used);
        self.add(Family::Connections, "", head.connections.used);
        self.add(Family::ConnectionsMax, "", head.connections.max);
        if let Some(state) = head.state {
            if let Some(age) = state.age_seconds {
                self.add(Family::StateWritten, "", self.at(age));
            }
            self.add(Family::StateError, "", u8::from(state.error.is_some()));
        }
    }

    fn upstream(&mut self, upstream: Upstream) {
        let mut labels = String::new();
        label(&mut labels, "upstream", &upstream.name);
        label(&mut labels, "service", &upstream.service);
        for tier in &upstream.tiers {
            let of_tier = with(&labels, "tier", &tier.name);
            let in_use = upstream.in_use.as_ref() == Some(&tier.name);
            self.add(Family::TierInUse, &of_tier, u8::from(in_use));
            if let (Some(peers), Some(usable)) = (tier.peers, tier.usable) {
                self.add(Family::TierPeers, &of_tier, peers);
                self.add(Family::TierUsable, &of_tier, usable);
            }
        }
        self.add(Family::Usable, &labels, u8::from(upstream.in_use.is_some()));
        if let Some(panic) = upstream.panic {
            self.add(Family::Panic, &labels, u8::from(panic));
        }
    }

    fn service(&mut self, service: Service) {
        self.end_service();
        let labels = labels_of(&service);
        if !self.seen.insert(labels.clone()) {
            return;
        }
        self.service =
            Some(Current { labels: labels.clone(), states: Default::default(), in_flight: 0 });
        self.of_service(Family::Index, service.index);
        self.of_service(Family::Generation, service.generation);
        if let Some(age) = service.last_good_seconds {
            self.of_service(Family::LastGood, self.at(age));
        }
        if let Some(age) = service.last_change_seconds {
            self.of_service(Family::LastChange, self.at(age));
        }
        let source = service.source.map_or("none".to_owned(), |word| word.replace(' ', "_"));
        self.add(Family::Source, &with(&labels, "source", &source), 1);
        let seconds = |ms: u64| ms as f64 / 1000.0;
        let delay = with(&labels, "mode", service.mode);
        self.add(Family::ChangeDelay, &delay, seconds(service.delay_ms.unwrap_or(0).into()));
        self.of_service(Family::Failures, service.failures);
        self.of_service(Family::Backoff, seconds(service.backoff_ms.unwrap_or(0)));
        for (reason, count) in &service.refusals {
            self.add(Family::Refusals, &with(&labels, "reason", reason), count);
        }
        self.of_service(Family::Pending, service.pending.map_or(0, |pending| pending.removals));
        self.of_service(Family::ZoneFull, u8::from(service.zone_full));
    }

    fn peer(&mut self, peer: Peer) {
        let Some(current) = &mut self.service else { return };
        current.states[peer.state as usize] += 1;
        current.in_flight += peer.in_flight;
        if !self.with_peers {
            return;
        }
        let labels = with(&current.labels, "server", &peer.server);
        let mut info = with(&labels, "node", &peer.node);
        label(&mut info, "service_id", &peer.service_id);
        self.add(Family::PeerInfo, &info, 1);
        self.add(Family::PeerState, &with(&labels, "state", peer.state.word()), 1);
        self.add(Family::PeerPicks, &labels, peer.picks);
        self.add(Family::PeerFails, &labels, peer.fails);
        self.add(Family::PeerInFlight, &labels, peer.in_flight);
        self.add(Family::PeerWeight, &labels, peer.weight);
        self.add(Family::PeerEffectiveWeight, &labels, peer.effective_weight);
        if let Some(ms) = peer.latency_ms {
            self.add(Family::PeerLatency, &labels, ms / 1000.0);
        }
        if let Some(PeerConnections { idle, active, opened, reused }) = peer.connections {
            for (state, count) in [("idle", idle), ("active", active)] {
                self.add(Family::PeerConnections, &with(&labels, "state", state), count);
            }
            self.add(Family::PeerOpened, &labels, opened);
            self.add(Family::PeerReused, &labels, reused);
        }
    }

    fn named(&mut self, max: usize) {
        self.end_service();
        self.add(Family::NamedMax, "", max);
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

/// What tells a service from the others: a block follows each (name, datacenter) once.
fn labels_of(service: &Service) -> String {
    let mut labels = String::new();
    label(&mut labels, "service", &service.service);
    let mut upstream = service.upstreams.iter().take(NAMED).cloned().collect::<Vec<_>>().join(",");
    if let Some(more @ 1..) = service.upstreams.len().checked_sub(NAMED) {
        let _ = write!(upstream, ",+{more}");
    }
    label(&mut labels, "upstream", &upstream);
    if let Some(datacenter) = &service.datacenter {
        label(&mut labels, "datacenter", datacenter);
    }
    labels
}

/// The labels and one more.
fn with(labels: &str, name: &str, value: &str) -> String {
    let mut all = String::with_capacity(labels.len() + name.len() + value.len() + 4);
    all.push_str(labels);
    label(&mut all, name, value);
    all
}

fn label(labels: &mut String, name: &str, value: &str) {
    if !labels.is_empty() {
        labels.push(',');
    }
    labels.push_str(name);
    labels.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => labels.push_str("\\\\"),
            '"' => labels.push_str("\\\""),
            '\n' => labels.push_str("\\n"),
            c => labels.push(c),
        }
    }
    labels.push('"');
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::super::testing::{head, peer, service, upstream, write};
    use super::*;

    fn tell(doc: &mut dyn Document) {
        doc.head(head());
        doc.upstream(upstream("api", "web"));
        doc.service(service("web", "api"));
        doc.peer(peer("10.0.0.1:80", PeerState::Up));
        doc.peer(peer("10.0.0.2:80", PeerState::Busy));
        doc.named(9);
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
    fn hostile_labels_are_escaped() {
        let text = write(Format::Text, true, |doc| {
            doc.head(head());
            doc.service(service("a\"} 1\n\\", "api"));
        });
        let line = "nginx_consul_service_index{service=\"a\\\"} 1\\n\\\\\",upstream=\"api\"}";
        assert_eq!(value(&text, line), "42");
    }

    #[test]
    fn many_blocks_make_no_endless_label() {
        let mut many = service("web", "u0");
        many.upstreams = (0..100).map(|n| format!("u{n}")).collect();
        assert_eq!(labels_of(&many), "service=\"web\",upstream=\"u0,u1,u2,u3,+96\"");
    }

    #[test]
    fn every_family_is_named_by_the_conventions() {
        let mut names = HashSet::new();
        for family in Family::ALL {
            let (name, kind, help) = family.describe();
            assert!(name.starts_with("nginx_consul_") && names.insert(name), "{name}");
            assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name}");
            assert!(!help.is_empty() && !help.contains(['\n', '\\']), "{name}: {help}");
        }
        assert_eq!(Family::ALL.len(), Family::COUNT);
        assert!(Family::ALL.iter().enumerate().all(|(at, family)| *family as usize == at));
    }
}
