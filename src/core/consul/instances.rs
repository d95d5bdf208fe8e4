//! Reads instances out of the answers of `/v1/health/service`, `/v1/catalog/service` and
//! `/v1/query/<name>/execute`.
//!
//! An element that breaks a rule, even one of a wrong JSON type, is skipped; the others of its list
//! stay.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::num::NonZeroU16;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::address;
use crate::model::{Health, Instance, Instances, Meta, MetaKeys, Skipped};
use crate::params::{BadParam, PREFIX, Params};
use crate::text::{beginning, printable, quote, shortened};

/// Longest name that is kept whole, in bytes: whoever registers instances can't fill the zone with
/// their names.
const MAX_NAME: usize = 512;
/// Longest value of `Service.Meta` that is kept whole, in bytes; Consul's own limit.
const MAX_VALUE: usize = 512;
/// Most flaws that are reported of one instance.
const MAX_FLAWS: usize = 4;

/// The body is not a JSON array.
#[derive(Debug, thiserror::Error)]
#[error("the answer is not a list of instances ({})", printable(beginning(&.0.to_string(), 200)))]
pub struct ParseError(#[from] serde_json::Error);

/// Which fields of each instance are taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fields<'a> {
    /// Which of its tagged addresses, if it has that one.
    pub address_tag: Option<&'a str>,
    /// Which keys of its `Service.Meta`.
    pub meta: Option<&'a MetaKeys>,
}

/// An instance with its flaws, or why there is none.
pub(super) type Element = Result<(Instance, Vec<String>), Skipped>;

/// Reads an answer of `/v1/health/service`.
///
/// # Errors
///
/// The body is not a JSON array, or ends early.
pub fn parse_health(body: &[u8], fields: Fields<'_>) -> Result<Instances, ParseError> {
    list(body, |json| element(json, ["/Node/Node", "/Service/ID"], of_health, fields))
}

/// Reads an answer of `/v1/query/<name>/execute`: the same list, as a member of an object.
///
/// # Errors
///
/// The body is not a JSON object with a list of nodes.
pub fn parse_executed(body: &[u8], fields: Fields<'_>) -> Result<Instances, ParseError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Executed<'a> {
        #[serde(borrow)]
        nodes: Option<&'a RawValue>,
    }
    let nodes = serde_json::from_slice::<Executed<'_>>(body)?.nodes;
    nodes.map_or(Ok(Instances::default()), |nodes| parse_health(nodes.get().as_bytes(), fields))
}

/// Reads an answer of `/v1/catalog/service`, which says nothing about health.
///
/// # Errors
///
/// The body is not a JSON array, or ends early.
pub fn parse_catalog(body: &[u8], fields: Fields<'_>) -> Result<Instances, ParseError> {
    let names = ["/Node", "/ServiceID"];
    list(body, |json| element(json, names, |raw| (raw, Health::Passing), fields))
}

fn list(body: &[u8], instance: impl Fn(&str) -> Element) -> Result<Instances, ParseError> {
    let mut instances = Instances::default();
    elements(body, |json| instances.add(instance(json)))?;
    instances.sort();
    Ok(instances)
}

/// Runs `take` on each element of a JSON array.
///
/// # Errors
///
/// The body is not a JSON array, or ends early.
pub(super) fn elements(body: &[u8], take: impl FnMut(&str)) -> Result<(), ParseError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    json.deserialize_seq(ListVisitor(take))?;
    Ok(json.end()?)
}

impl Instances {
    pub(super) fn add(&mut self, element: Element) {
        match element {
            Ok((instance, flaws)) => {
                let (node, id) = (&instance.node, &instance.id);
                let flaw = |reason| Skipped { node: node.clone(), id: id.clone(), reason };
                self.flawed.extend(flaws.into_iter().map(flaw));
                self.good.push(instance);
            }
            Err(skipped) => self.skipped.push(skipped),
        }
    }

    pub(super) fn sort(&mut self) {
        self.good.sort_by(|a, b| (&a.node, &a.id).cmp(&(&b.node, &b.id)));
    }
}

/// Takes one element after the other, so that no second copy of a large answer is made.
struct ListVisitor<F>(F);

impl<'de, F: FnMut(&str)> Visitor<'de> for ListVisitor<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while let Some(element) = list.next_element::<&RawValue>()? {
            (self.0)(element.get());
        }
        Ok(())
    }
}

/// An instance as `/v1/catalog/service` lays it out.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawInstance<'a> {
    pub(super) node: Option<String>,
    #[serde(rename = "Address")]
    pub(super) node_address: Option<String>,
    pub(super) datacenter: Option<String>,
    #[serde(rename = "TaggedAddresses")]
    pub(super) node_tagged: Option<HashMap<String, String>>,
    #[serde(rename = "ServiceID")]
    pub(super) id: Option<String>,
    #[serde(rename = "ServiceTags")]
    pub(super) tags: Option<Vec<String>>,
    #[serde(rename = "ServiceAddress")]
    pub(super) address: Option<String>,
    #[serde(rename = "ServicePort")]
    pub(super) port: Option<i64>,
    #[serde(rename = "ServiceTaggedAddresses")]
    pub(super) tagged: Option<HashMap<String, Tagged>>,
    #[serde(rename = "ServiceWeights")]
    pub(super) weights: Option<Weights>,
    #[serde(rename = "ServiceMeta", borrow)]
    pub(super) meta: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Weights {
    passing: Option<i64>,
    warning: Option<i64>,
}

/// An address of `Service.TaggedAddresses`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Tagged {
    address: Option<String>,
    port: Option<i64>,
}

/// An element of `/v1/health/service`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HealthEntry<'a> {
    node: Option<Node>,
    #[serde(borrow)]
    service: Option<Service<'a>>,
    #[serde(borrow)]
    checks: Option<Vec<Option<Check<'a>>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    node: Option<String>,
    address: Option<String>,
    datacenter: Option<String>,
    tagged_addresses: Option<HashMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service<'a> {
    #[serde(rename = "ID")]
    id: Option<String>,
    tags: Option<Vec<String>>,
    address: Option<String>,
    port: Option<i64>,
    tagged_addresses: Option<HashMap<String, Tagged>>,
    weights: Option<Weights>,
    #[serde(borrow)]
    meta: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check<'a> {
    #[serde(borrow)]
    status: Option<Cow<'a, str>>,
}

fn of_health(entry: HealthEntry<'_>) -> (RawInstance<'_>, Health) {
    let health = worst(entry.checks.as_deref().unwrap_or_default());
    let (node, service) = (entry.node.unwrap_or_default(), entry.service.unwrap_or_default());
    let raw = RawInstance {
        node: node.node,
        node_address: node.address,
        datacenter: node.datacenter,
        node_tagged: node.tagged_addresses,
        id: service.id,
        tags: service.tags,
        address: service.address,
        port: service.port,
        tagged: service.tagged_addresses,
        weights: service.weights,
        meta: service.meta,
    };
    (raw, health)
}

/// The worst of all checks, those of the node included.
fn worst(checks: &[Option<Check<'_>>]) -> Health {
    // A status that Consul may have one day counts as critical.
    let status = |check: &Option<Check<'_>>| check.as_ref()?.status.as_ref()?.parse().ok();
    checks.iter().map(|c| status(c).unwrap_or(Health::Critical)).max().unwrap_or(Health::Passing)
}

/// Reads one element of an answer, of the layout `T`. Where that is not possible, `names` are the
/// JSON pointers to its node and its service id.
pub(super) fn element<'a, T: Deserialize<'a>>(
    json: &'a str,
    names: [&str; 2],
    convert: impl FnOnce(T) -> (RawInstance<'a>, Health),
    fields: Fields<'_>,
) -> Element {
    let skip = |error: serde_json::Error| {
        let json: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
        let [node, id] = names
            .map(|at| json.pointer(at).and_then(|v| v.as_str()).unwrap_or_default().to_owned());
        Skipped { node, id, reason: quote(&error.to_string()) }
    };
    let (mut raw, health) = convert(serde_json::from_str(json).map_err(skip)?);
    let meta = service_meta(raw.meta, fields.meta).map_err(skip)?;
    if let Some(tag) = fields.address_tag {
        raw.choose(tag);
    }
    let missing = [(&raw.node, "no node name"), (&raw.id, "no service id")];
    match missing.iter().find(|(name, _)| name.as_deref().is_none_or(str::is_empty)) {
        Some((_, reason)) => Err(raw.skip((*reason).to_owned())),
        None => raw.finish(health, meta),
    }
}

impl RawInstance<'_> {
    /// Takes the tagged address in place of the plain one, in the order of Consul's own DNS
    /// interface (`translate_wan_addrs`): of the service, the service's only one, of the node.
    fn choose(&mut self, tag: &str) {
        let is_there = |address: &Option<String>| address.as_ref().is_some_and(|a| !a.is_empty());
        let of_service = self.tagged.as_mut().and_then(|tagged| tagged.remove(tag));
        if let Some(tagged) = of_service.filter(|tagged| is_there(&tagged.address)) {
            self.address = tagged.address;
            self.port = tagged.port.filter(|port| *port != 0).or(self.port);
        } else if !is_there(&self.address) {
            let of_node = self.node_tagged.as_mut().and_then(|tagged| tagged.remove(tag));
            if is_there(&of_node) {
                self.node_address = of_node;
            }
        }
    }

    fn skip(&self, reason: String) -> Skipped {
        let name = |name: &Option<String>| shortened(name.clone().unwrap_or_default(), MAX_NAME);
        Skipped { node: name(&self.node), id: name(&self.id), reason }
    }

    /// The instance, if its address and port can be connected to.
    pub(super) fn finish(self, health: Health, meta: ServiceMeta) -> Element {
        let address = [&self.address, &self.node_address].into_iter().flatten();
        let address = address.map(String::as_str).find(|a| !a.is_empty()).unwrap_or_default();
        let host = address::host(address).map_err(|reason| self.skip(reason))?;
        let port = port(self.port.unwrap_or(0)).map_err(|reason| self.skip(reason))?;
        let (weight_passing, weight_warning) = weights(self.weights.as_ref());
        let name = |name: Option<String>| shortened(name.unwrap_or_default(), MAX_NAME);
        let ServiceMeta { params, flaws, meta } = meta;
        let instance = Instance {
            node: name(self.node),
            id: name(self.id),
            host,
            port,
            tags: self.tags.unwrap_or_default(),
            health,
            weight_passing,
            weight_warning,
            datacenter: name(self.datacenter),
            params,
            meta,
        };
        Ok((instance, flaws))
    }
}

/// A port that can be connected to.
fn port(port: i64) -> Result<u16, String> {
    let valid = u16::try_from(port).ok().filter(|port| *port > 0);
    valid.ok_or_else(|| format!("port {port} is not in 1-65535"))
}

/// Absent weights are 1, as is a passing weight of 0; 0/0 is how `/catalog` writes "none".
fn weights(weights: Option<&Weights>) -> (NonZeroU16, u16) {
    let of = |weight: Option<i64>| weight.unwrap_or(1).clamp(0, i64::from(u16::MAX)) as u16;
    let (passing, warning) = match weights {
        None => (1, 1),
        Some(weights) => match (of(weights.passing), of(weights.warning)) {
            (0, 0) => (1, 1),
            both => both,
        },
    };
    (NonZeroU16::new(passing).unwrap_or(NonZeroU16::MIN), warning)
}

/// The parts of `Service.Meta` that are used.
#[derive(Debug, Default)]
pub(super) struct ServiceMeta {
    pub(super) params: Params,
    /// What is wrong with its parameters.
    pub(super) flaws: Vec<String>,
    pub(super) meta: Meta,
}

/// Reads the pairs that are used, without reading the values of the others. `None` (Consul's `null`)
/// has none.
fn service_meta(
    json: Option<&RawValue>,
    keys: Option<&MetaKeys>,
) -> serde_json::Result<ServiceMeta> {
    let mut meta = ServiceMeta::default();
    let Some(json) = json else { return Ok(meta) };
    // In order, as Consul writes it.
    let pairs: BTreeMap<String, &RawValue> = serde_json::from_str(json.get())?;
    for (key, value) in pairs {
        let wanted = keys.and_then(|keys| keys.wanted(&key));
        let parameter = key.strip_prefix(PREFIX);
        if wanted.is_none() && parameter.is_none() {
            continue;
        }
        let value: String = serde_json::from_str(value.get())?;
        if let Some(parameter) = parameter {
            meta.set(parameter, (&key, &value));
        }
        if let Some(name) = wanted {
            // Keys that differ only in case or hyphens have one variable: the first counts.
            let value = || shortened(value, MAX_VALUE);
            meta.meta.entry(name.clone()).or_insert_with(value);
        }
    }
    Ok(meta)
}

impl ServiceMeta {
    /// Takes a pair that is a parameter.
    fn set(&mut self, name: &str, (key, value): (&str, &str)) {
        let flaw = match self.params.set(name, value) {
            Ok(()) => return,
            Err(BadParam::Name) => format!("unknown parameter \"{}\"", quote(key)),
            Err(BadParam::Value) => {
                format!("invalid value \"{}\" of \"{}\"", quote(value), quote(key))
            }
        };
        if self.flaws.len() < MAX_FLAWS {
            self.flaws.push(format!("{flaw} in Service.Meta"));
        }
    }
}

#[cfg(test)]
mod tests;
