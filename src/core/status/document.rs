//! What the status says, whatever its format: `docs/status.md` describes it, `docs/status.schema.json`
//! its JSON.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;
use strum::{IntoStaticStr, VariantArray};

use crate::control::Frozen;
#[cfg(test)]
use crate::model::Reason;
use crate::model::{Admit, Health, Override, Pending, Source};
use crate::table::SetChange;

/// Version of the JSON. While it stays, names and meanings don't change; new members may be added.
pub const VERSION: u32 = 1;

/// A status that is being written. After the head come the upstreams, then the services, each followed
/// by its peers, and then the services that requests have named.
pub trait Document {
    /// An upstream.
    fn upstream(&mut self, upstream: Upstream);
    /// A service; its peers come next.
    fn service(&mut self, service: Service);
    /// A peer of the last service.
    fn peer(&mut self, peer: Peer);
    /// The services that follow were named by requests; there may be `max`.
    fn on_demand(&mut self, max: usize);
    /// The text, in one or several parts.
    fn finish(self: Box<Self>) -> Vec<Vec<u8>>;
}

/// The answer of `consul_status`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Status {
    /// Version of this format.
    #[cfg_attr(test, schemars(extend("const" = VERSION)))]
    pub version: u32,
    /// Now, milliseconds since the epoch.
    pub time_ms: u64,
    /// This module.
    pub module: Version,
    /// The nginx it runs in.
    pub nginx: Nginx,
    /// The shared zone.
    pub zone: Zone,
    /// The state file, with `consul_state`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<StateFile>,
    /// Connections to Consul.
    pub connections: Connections,
    /// The upstreams that follow Consul.
    pub upstreams: Vec<Upstream>,
    /// The services that upstreams follow, one for each selection of instances.
    pub services: Vec<Service>,
    /// Those that requests have named, with `consul_dynamic $variable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_demand: Option<OnDemand>,
}

/// The services that requests have named.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct OnDemand {
    /// `consul_max_services`.
    pub max: usize,
    /// One for each selection of instances.
    pub services: Vec<Service>,
}

/// Connections to Consul.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Connections {
    /// `consul_connections`.
    pub max: usize,
    /// Those that Consul counts, with what earlier workers have left there.
    pub used: usize,
    /// Most that worker 0 may have now.
    pub allowed: usize,
    /// That would give each service a blocking query of its own.
    pub needed: usize,
    /// What keeps these away: `consul_connections`, `threads`, `descriptors` or `consul`; `null` if
    /// they are within reach.
    #[cfg_attr(
        test,
        schemars(extend("enum" = ["consul_connections", "threads", "descriptors", "consul", null]))
    )]
    pub limited_by: Option<&'static str>,
}

/// An upstream.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Upstream {
    /// Its name.
    pub name: String,
    /// The service it follows.
    pub service: String,
    /// How it balances.
    pub method: String,
    /// Its tiers, in the order of use.
    pub tiers: Vec<Tier>,
    /// The tier that requests go to now; `null` if none has a usable peer.
    pub in_use: Option<String>,
    /// Whether so many peers have failed that failures are ignored; `null` without `consul_panic`.
    pub panic: Option<bool>,
}

/// Peers of equal priority.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Tier {
    /// The datacenter or `instances`, with ` backup` for those with `nginx_backup`; `servers` for
    /// the `server` lines of the upstream.
    pub name: String,
    /// How many peers it has; `null` for `servers`, which nginx manages.
    pub peers: Option<usize>,
    /// How many of them could take a request now; `null` for `servers`.
    pub usable: Option<usize>,
}

impl Upstream {
    /// The tier in use is the first with a usable peer.
    pub fn new(name: String, service: String, method: String, tiers: Vec<Tier>) -> Upstream {
        let in_use = tiers.iter().find(|tier| tier.usable != Some(0));
        let in_use = in_use.map(|tier| tier.name.clone());
        Upstream { name, service, method, tiers, in_use, panic: None }
    }
}

/// A version.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Version {
    /// As `1.2.3`.
    pub version: String,
}

/// The nginx that answers.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
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
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
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
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
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
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Service {
    /// Name in Consul.
    pub service: String,
    /// The source in Consul: `health`, `catalog`, `kv` or `query`.
    pub from: Source,
    /// Datacenter asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<String>,
    /// The upstreams that use it.
    pub upstreams: Vec<String>,
    /// Tags asked for.
    pub tags: Vec<String>,
    /// Health asked for: `passing`, `warning` or `any`.
    pub status: Admit,
    /// Filter asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The Consul agents.
    pub servers: Vec<String>,
    /// The one in use.
    pub server: Option<String>,
    /// `blocking`, `triggered` or `polling`.
    #[cfg_attr(test, schemars(extend("enum" = ["blocking", "triggered", "polling"])))]
    pub mode: &'static str,
    /// With `triggered` and `polling`: the longest expected time until a change is seen, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u32>,
    /// `X-Consul-Index` of the last good answer.
    pub index: u64,
    /// Number that moves with every change of the peers.
    pub generation: u64,
    /// Where the peers come from: `live`, an answer of Consul to the watcher that runs now; `zone`, kept
    /// over a start, a reload or the end of a worker, and not confirmed since; `state file`; `null`
    /// before the first answer.
    #[cfg_attr(test, schemars(extend("enum" = ["live", "zone", "state file", null])))]
    pub source: Option<&'static str>,
    /// Age of the last good answer; `null` before the first.
    pub last_good_seconds: Option<f64>,
    /// Age of the last change; `null` before the first.
    pub last_change_seconds: Option<f64>,
    /// The last error since the last good answer.
    pub last_error: Option<String>,
    /// Failures in a row.
    pub failures: u64,
    /// After a failure: milliseconds until Consul is asked again.
    pub backoff_ms: Option<u64>,
    /// The last good answer is not in force, because the zone has no room.
    pub zone_full: bool,
    /// How often answers changed nothing, by reason; reasons with none are left out.
    #[cfg_attr(test, schemars(extend("propertyNames" = { "enum": reasons() })))]
    pub refusals: BTreeMap<&'static str, u64>,
    /// A removal of peers that is not in force yet.
    pub pending: Option<Pending>,
    /// Its freeze (`consul_api`).
    pub frozen: Option<Frozen>,
    /// The last changes, newest first.
    pub history: Vec<SetChange>,
    /// For services that requests have named: seconds since a request last named it, accurate to a
    /// second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_seconds: Option<f64>,
    /// Its peers, each written when it is added.
    #[cfg_attr(test, schemars(with = "Vec<Peer>"))]
    pub peers: Vec<Box<RawValue>>,
}

#[cfg(test)]
fn reasons() -> Vec<&'static str> {
    Reason::ALL.iter().map(|reason| reason.word()).collect()
}

/// A peer.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Peer {
    /// Address and port.
    pub server: String,
    /// Node.
    pub node: String,
    /// Service id.
    pub service_id: String,
    /// Datacenter of its node, if Consul states it.
    pub datacenter: Option<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// Health in Consul.
    pub health: Health,
    /// Configured weight.
    pub weight: u32,
    /// Weight in effect now: less during a slow start, 0 for one that is down.
    pub effective_weight: f64,
    /// Whether it is used only while no peer without `backup` is usable.
    pub backup: bool,
    /// Most requests in flight; 0: no limit.
    pub max_conns: u32,
    /// Requests in flight, over all workers.
    pub in_flight: u64,
    /// Times it was picked.
    pub picks: u64,
    /// Failed attempts.
    pub fails: u64,
    /// Mean time to the response header, milliseconds, which decays without answers; `null` before
    /// the first answer, and without `consul_balance least_time`.
    pub latency_ms: Option<f64>,
    /// Whether it gets requests.
    pub state: PeerState,
    /// Its override (`consul_api`).
    #[serde(rename = "override")]
    pub override_: Option<Override>,
    /// Connections to it; `null` without `consul_keepalive`.
    pub connections: Option<PeerConnections>,
}

/// Connections to a peer, over all workers.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct PeerConnections {
    /// Idle.
    pub idle: u64,
    /// In use by a request.
    pub active: u64,
    /// Opened so far.
    pub opened: u64,
    /// Requests so far over an idle connection.
    pub reused: u64,
}

/// Whether a peer gets requests, in the words of NGINX Plus and Angie.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, IntoStaticStr, VariantArray,
)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum PeerState {
    /// It gets requests.
    Up,
    /// It gets less than its share, because it is new or has recovered (`slow_start`).
    Recovering,
    /// It has `max_conns` requests in flight.
    Busy,
    /// Failures exclude it (`max_fails`).
    Unavail,
    /// An operator drains it: it gets no new requests.
    Draining,
    /// `nginx_down`, or an operator has set it down.
    Down,
}

#[cfg(test)]
mod tests {
    use schemars::generate::SchemaSettings;
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_tier_in_use_is_the_first_with_a_usable_peer() {
        let tier = |usable| Tier { name: format!("{usable:?}"), peers: Some(2), usable };
        let of = |tiers| Upstream::new("a".into(), "b".into(), "random".into(), tiers).in_use;
        assert_eq!(of(vec![tier(Some(0)), tier(Some(1)), tier(None)]), Some("Some(1)".into()));
        assert_eq!(of(vec![tier(Some(0)), tier(None)]), Some("None".into()));
        assert_eq!(of(vec![tier(Some(0))]), None);
    }

    #[test]
    fn the_schema_of_the_documentation_is_that_of_the_types() {
        let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
        let schema = generator.into_root_schema_for::<Status>().to_value();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/status.schema.json");
        if std::env::var_os("WRITE_SCHEMA").is_some() {
            std::fs::write(path, format!("{schema:#}\n")).unwrap();
        }
        let written: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert!(written == schema, "with WRITE_SCHEMA=1 this test writes {path}");
    }

    #[test]
    fn a_state_has_the_same_word_everywhere() {
        for state in PeerState::VARIANTS {
            let word: &str = state.into();
            assert_eq!(serde_json::to_value(state).unwrap(), word);
        }
    }
}
