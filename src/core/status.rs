//! What the status page says, and how.

use std::collections::BTreeMap;

use serde::Serialize;

mod html;

/// The whole page.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// This module.
    pub module: Version,
    /// The nginx it runs in.
    pub nginx: Nginx,
    /// The shared zone.
    pub zone: Zone,
    /// The state file, with `consul_state`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<StateFile>,
    /// The blocks, and where their requests go.
    pub upstreams: Vec<Upstream>,
    /// Every service that a block follows.
    pub services: Vec<Service>,
    /// Those that requests have named, if they can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub named: Option<Named>,
}

/// The services that requests have named.
#[derive(Clone, Debug, Serialize)]
pub struct Named {
    /// `consul_max_services`.
    pub max: usize,
    /// Followed now.
    pub services: Vec<NamedService>,
}

/// A service that a request has named.
#[derive(Clone, Debug, Serialize)]
pub struct NamedService {
    /// Seconds since a request named it last; good to a second.
    pub last_used_seconds: f64,
    /// As of the others.
    #[serde(flatten)]
    pub service: Service,
}

/// A block.
#[derive(Clone, Debug, Serialize)]
pub struct Upstream {
    /// Its name.
    pub name: String,
    /// The service it follows.
    pub service: String,
    /// How it balances.
    pub method: String,
    /// Where requests may go, first choice first.
    pub tiers: Vec<Tier>,
    /// The tier that requests go to now; `null` if none has a usable peer.
    pub in_use: Option<String>,
    /// Whether so many peers have failed that failures keep nobody out; `null` without
    /// `consul_panic`.
    pub panic: Option<bool>,
}

/// Peers of equal standing.
#[derive(Clone, Debug, Serialize)]
pub struct Tier {
    /// The datacenter or `instances`, with ` backup` for those with `nginx_backup`; `servers` for
    /// the block's `server` lines.
    pub name: String,
    /// How many there are; `null` for `servers`, which nginx looks after.
    pub peers: Option<usize>,
    /// How many of them could take a request now; `null` for `servers`.
    pub usable: Option<usize>,
}

impl Upstream {
    /// Says which tier is in use: the first with a usable peer.
    pub fn new(name: String, service: String, method: String, tiers: Vec<Tier>) -> Upstream {
        let in_use = tiers.iter().find(|tier| tier.usable != Some(0));
        let in_use = in_use.map(|tier| tier.name.clone());
        Upstream { name, service, method, tiers, in_use, panic: None }
    }
}

/// A version.
#[derive(Clone, Debug, Serialize)]
pub struct Version {
    /// As `1.2.3`.
    pub version: String,
}

/// The nginx that answers.
#[derive(Clone, Debug, Serialize)]
pub struct Nginx {
    /// As `1.2.3`.
    pub version: String,
    /// Pid of the worker that answers.
    pub pid: u32,
    /// Its number.
    pub worker: usize,
}

/// The shared zone.
#[derive(Clone, Debug, Serialize)]
pub struct Zone {
    /// Name.
    pub name: String,
    /// Bytes, as configured.
    pub size: usize,
    /// Bytes in use.
    pub used: usize,
}

/// The state file.
#[derive(Clone, Debug, Serialize)]
pub struct StateFile {
    /// Where it is.
    pub path: String,
    /// Age of what is in it; `null` if it was never written.
    pub age_seconds: Option<f64>,
    /// Why it can't be written now.
    pub error: Option<String>,
}

/// A service with one selection of its instances.
#[derive(Clone, Debug, Serialize)]
pub struct Service {
    /// Name in Consul.
    pub service: String,
    /// Where in Consul it is looked for: `health`, `catalog`, `kv` or `query`.
    pub from: &'static str,
    /// Datacenter asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<String>,
    /// The blocks that use it.
    pub upstreams: Vec<String>,
    /// Tags asked for.
    pub tags: Vec<String>,
    /// Health asked for: `passing`, `warning` or `any`.
    pub status: &'static str,
    /// Filter asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The Consul agents.
    pub servers: Vec<String>,
    /// The one in use.
    pub server: Option<String>,
    /// `blocking`, `gated` or `sweep`.
    pub mode: &'static str,
    /// With `gated` and `sweep`: the longest expected time until a change is seen, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u32>,
    /// `X-Consul-Index` of the last good answer.
    pub index: u64,
    /// Moves with every change of the peers.
    pub generation: u64,
    /// Where the peers come from: `consul`, `state file`, or `null` if there are none yet.
    pub source: Option<&'static str>,
    /// Age of the last good answer; `null` before the first.
    pub last_good_seconds: Option<f64>,
    /// Age of the last change; `null` before the first.
    pub last_change_seconds: Option<f64>,
    /// What went wrong since the last good answer.
    pub last_error: Option<String>,
    /// Failures in a row.
    pub failures: u64,
    /// How often answers changed nothing, by reason; reasons that never were are left out.
    pub refusals: BTreeMap<&'static str, u64>,
    /// A removal of peers that is not in force yet.
    pub pending: Option<Pending>,
    /// The peers.
    pub peers: Vec<Peer>,
}

/// A removal of peers that is to be confirmed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pending {
    /// Peers that would leave.
    pub removals: u32,
    /// Reads that have agreed so far.
    pub confirmed: u16,
    /// Reads that have to; 0: none are enough (`consul_empty keep`).
    pub of: u16,
}

/// A peer.
#[derive(Clone, Debug, Serialize)]
pub struct Peer {
    /// Address and port.
    pub server: String,
    /// Node.
    pub node: String,
    /// Service id.
    pub service_id: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Consul's word for its health.
    pub health: String,
    /// Weight in effect.
    pub weight: u32,
    /// Whether it is only used when those without are not usable.
    pub backup: bool,
    /// Requests with it now, over all workers.
    pub in_flight: u64,
    /// Times it was picked.
    pub picks: u64,
    /// Failed attempts.
    pub fails: u64,
    /// `up`, `unavail` while `max_fails` keeps it out, or `down` by `nginx_down`.
    pub state: &'static str,
    /// Connections to it; `null` unless a block has `consul_keepalive`.
    pub connections: Option<Connections>,
}

/// Connections to a peer, over all workers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Connections {
    /// Kept for the next request.
    pub idle: u64,
    /// With a request.
    pub active: u64,
    /// Opened so far.
    pub opened: u64,
    /// Requests so far over a connection that was there.
    pub reused: u64,
}

impl Status {
    /// For programs.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// For people.
    pub fn to_html(&self) -> Vec<u8> {
        html::page(self).into_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(tag: &str) -> Status {
        Status {
            module: Version { version: "0.1.0".into() },
            nginx: Nginx { version: "1.22.1".into(), pid: 7, worker: 0 },
            zone: Zone { name: "consul".into(), size: 10, used: 1 },
            state: Some(StateFile {
                path: "/var/<state>".into(),
                age_seconds: Some(7.5),
                error: Some("disk <full>".into()),
            }),
            upstreams: vec![Upstream::new(
                "api".into(),
                "web".into(),
                "round_robin".into(),
                vec![
                    Tier { name: "dc1".into(), peers: Some(3), usable: Some(0) },
                    Tier { name: "dc<2>".into(), peers: Some(2), usable: Some(1) },
                    Tier { name: "servers".into(), peers: None, usable: None },
                ],
            )],
            services: vec![Service {
                service: "web".into(),
                from: "health",
                datacenter: None,
                upstreams: vec!["api".into()],
                tags: vec![],
                status: "passing",
                filter: None,
                servers: vec!["http://127.0.0.1:8500".into()],
                server: None,
                mode: "blocking",
                delay_ms: None,
                index: 42,
                generation: 3,
                source: Some("state file"),
                last_good_seconds: Some(0.31),
                last_change_seconds: None,
                last_error: Some("<b>&\u{7}".into()),
                failures: 0,
                refusals: BTreeMap::from([("no_leader", 3), ("stale", 1)]),
                pending: Some(Pending { removals: 2, confirmed: 1, of: 3 }),
                peers: vec![Peer {
                    server: "127.0.0.1:80".into(),
                    node: "n".into(),
                    service_id: "web-1".into(),
                    tags: vec![tag.into()],
                    health: "passing".into(),
                    weight: 1,
                    backup: false,
                    in_flight: 0,
                    picks: 9,
                    fails: 0,
                    state: "up",
                    connections: Some(Connections { idle: 2, active: 1, opened: 3, reused: 9 }),
                }],
            }],
            named: None,
        }
    }

    #[test]
    fn a_hostile_tag_is_text_in_html_and_json() {
        let tag = "<script>alert(\"1\")</script>";
        let html = String::from_utf8(status(tag).to_html()).unwrap();
        assert!(!html.contains("<script>") && html.contains("&lt;script&gt;"), "{html}");
        let json: serde_json::Value = serde_json::from_slice(&status(tag).to_json()).unwrap();
        assert_eq!(json["services"][0]["peers"][0]["tags"][0], tag);
        assert_eq!(json["services"][0]["last_error"], "<b>&\u{7}");
    }

    #[test]
    fn the_page_has_a_row_for_each_peer() {
        let html = String::from_utf8(status("v1").to_html()).unwrap();
        for part in [
            "<table",
            "127.0.0.1:80",
            "web-1",
            "v1",
            "0.3 s ago",
            "passing",
            "no_leader 3, stale 1",
            "/var/&lt;state&gt;",
            "7.5 s ago",
            "disk &lt;full&gt;",
            "from state file",
        ] {
            assert!(html.contains(part), "{part} in {html}");
        }
    }

    #[test]
    fn the_tier_in_use_is_the_first_with_a_usable_peer() {
        let json: serde_json::Value = serde_json::from_slice(&status("v1").to_json()).unwrap();
        assert_eq!(json["upstreams"][0]["in_use"], "dc<2>");
        let html = String::from_utf8(status("v1").to_html()).unwrap();
        assert!(html.contains("<strong>dc&lt;2&gt; (1 of 2)</strong>"), "{html}");
        let none = vec![Tier { name: "dc1".into(), peers: Some(0), usable: Some(0) }];
        assert_eq!(Upstream::new("a".into(), "b".into(), "random".into(), none).in_use, None);
    }

    #[test]
    fn services_that_requests_have_named_stand_apart() {
        let mut status = status("v1");
        let service = Service { service: "shop".into(), ..status.services[0].clone() };
        let services = vec![NamedService { last_used_seconds: 2.5, service }];
        status.named = Some(Named { max: 5000, services });
        let json: serde_json::Value = serde_json::from_slice(&status.to_json()).unwrap();
        assert_eq!(json["services"].as_array().unwrap().len(), 1);
        let named = &json["named"]["services"][0];
        assert_eq!((&named["service"], &named["last_used_seconds"]), (&"shop".into(), &2.5.into()));
        let html = String::from_utf8(status.to_html()).unwrap();
        assert!(html.contains("1 of at most 5000") && html.contains("named 2.5 s ago"), "{html}");
    }

    #[test]
    fn refusals_and_what_is_pending_show() {
        let json: serde_json::Value = serde_json::from_slice(&status("v1").to_json()).unwrap();
        let service = &json["services"][0];
        assert_eq!(service["refusals"], serde_json::json!({"no_leader": 3, "stale": 1}));
        let pending = serde_json::json!({"removals": 2, "confirmed": 1, "of": 3});
        assert_eq!(service["pending"], pending);
        let html = String::from_utf8(status("v1").to_html()).unwrap();
        assert!(html.contains("2 would leave, confirmed by 1 of 3 reads"), "{html}");
    }
}
