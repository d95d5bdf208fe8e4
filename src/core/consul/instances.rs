//! What every source's answer becomes: a list of instances.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::model::{Health, Instance, MetaKeys};
use crate::text::{beginning, printable, quote, shortened};

pub(crate) mod meta;

/// The longest name that is kept whole, in bytes: whoever registers instances can't fill the zone
/// with their names.
const MAX_NAME: usize = 512;

/// What an answer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instances {
    /// The believable ones, sorted by node and id: Consul's own order means nothing.
    pub good: Vec<Instance>,
    /// The others.
    pub skipped: Vec<Skipped>,
    /// Good ones with something that is ignored.
    pub flawed: Vec<Skipped>,
}

/// An element of the answer that cannot be an instance, or has a part that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Skipped {
    /// Name of the node, empty if that cannot be told.
    pub node: String,
    /// Service id, empty if that cannot be told.
    pub id: String,
    /// What is wrong with it: one line, printable, short.
    pub reason: String,
}

/// The body is not a JSON array.
#[derive(Debug, thiserror::Error)]
#[error("the answer is not a list of instances ({})", printable(beginning(&.0.to_string(), 200)))]
pub struct ParseError(#[from] serde_json::Error);

/// What is wanted of each instance.
#[derive(Clone, Copy, Debug, Default)]
pub struct Want<'a> {
    /// Which of its tagged addresses to take, if it has that one.
    pub tag: Option<&'a str>,
    /// What to keep of its `Service.Meta`.
    pub meta: Option<&'a MetaKeys>,
}

/// An instance, and what is wrong with it nevertheless.
pub(super) type Element = Result<(Instance, Vec<String>), Skipped>;

/// Reads a JSON array of instances.
///
/// # Errors
///
/// The body is not a JSON array, or ends early.
pub(super) fn list(
    body: &[u8],
    instance: impl Fn(&str) -> Element,
) -> Result<Instances, ParseError> {
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

/// What a source says of an instance, in the layout of `/v1/catalog/service`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Draft<'a> {
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

/// Reads one element of an answer, of the layout `T`. Where that is not possible, `names` are the
/// JSON pointers to its node and its service id.
pub(super) fn element<'a, T: Deserialize<'a>>(
    json: &'a str,
    names: [&str; 2],
    draft: impl FnOnce(T) -> (Draft<'a>, Health),
    want: Want<'_>,
) -> Element {
    let skip = |error: serde_json::Error| {
        let json: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
        let [node, id] = names
            .map(|at| json.pointer(at).and_then(|v| v.as_str()).unwrap_or_default().to_owned());
        Skipped { node, id, reason: quote(&error.to_string()) }
    };
    let (mut draft, health) = draft(serde_json::from_str(json).map_err(skip)?);
    let meta = meta::parse(draft.meta, want.meta).map_err(skip)?;
    if let Some(tag) = want.tag {
        draft.choose(tag);
    }
    let missing = [(&draft.node, "no node name"), (&draft.id, "no service id")];
    match missing.iter().find(|(name, _)| name.as_deref().is_none_or(str::is_empty)) {
        Some((_, reason)) => Err(draft.skip((*reason).to_owned())),
        None => draft.finish(health, meta),
    }
}

impl Draft<'_> {
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
    pub(super) fn finish(self, health: Health, meta: meta::Own) -> Element {
        let address = [&self.address, &self.node_address].into_iter().flatten();
        let address = address.map(String::as_str).find(|a| !a.is_empty()).unwrap_or_default();
        let host = host(address).map_err(|reason| self.skip(reason))?;
        let port = port(self.port.unwrap_or(0)).map_err(|reason| self.skip(reason))?;
        let (weight_passing, weight_warning) = weights(self.weights.as_ref());
        let name = |name: Option<String>| shortened(name.unwrap_or_default(), MAX_NAME);
        let meta::Own { params, flaws, meta } = meta;
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

/// An IP address without brackets, or a host name.
fn host(address: &str) -> Result<String, String> {
    if address.is_empty() {
        return Err("no address".to_owned());
    }
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(ip.to_string());
    }
    let label = |label: &str| !label.is_empty() && label.len() <= 63 && !label.starts_with('-');
    let name = address.strip_suffix('.').unwrap_or(address);
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if letters && name.len() <= 253 && name.split('.').all(label) {
        Ok(address.to_owned())
    } else {
        Err(format!("invalid address \"{}\"", quote(address)))
    }
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
