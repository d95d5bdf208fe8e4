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

/// What a source says of an instance.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) node: Option<String>,
    pub(super) node_address: Option<String>,
    pub(super) datacenter: Option<String>,
    pub(super) id: Option<String>,
    pub(super) address: Option<String>,
    pub(super) port: Option<i64>,
    pub(super) tagged: Option<HashMap<String, Tagged>>,
    pub(super) node_tagged: Option<HashMap<String, String>>,
    pub(super) tags: Option<Vec<String>>,
    pub(super) weights: Option<Weights>,
    pub(super) meta: meta::Own,
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

impl Draft {
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

    /// The instance, if it has all that one needs. `tag`: which of its addresses to take.
    pub(super) fn finish(mut self, health: Health, tag: Option<&str>) -> Element {
        if let Some(tag) = tag {
            self.choose(tag);
        }
        let node = shortened(self.node.unwrap_or_default(), MAX_NAME);
        let id = shortened(self.id.unwrap_or_default(), MAX_NAME);
        let skip = |reason: String| Err(Skipped { node: node.clone(), id: id.clone(), reason });
        if node.is_empty() {
            return skip("no node name".to_owned());
        }
        if id.is_empty() {
            return skip("no service id".to_owned());
        }
        let address = [self.address, self.node_address].into_iter().flatten();
        let address = address.into_iter().find(|a| !a.is_empty());
        let host = match host(address.as_deref().unwrap_or_default()) {
            Ok(host) => host,
            Err(reason) => return skip(reason),
        };
        let port = match port(self.port.unwrap_or(0)) {
            Ok(port) => port,
            Err(reason) => return skip(reason),
        };
        let (weight_passing, weight_warning) = weights(self.weights.as_ref());
        let meta::Own { params, flaws, meta } = self.meta;
        let instance = Instance {
            node,
            id,
            host,
            port,
            tags: self.tags.unwrap_or_default(),
            health,
            weight_passing,
            weight_warning,
            datacenter: shortened(self.datacenter.unwrap_or_default(), MAX_NAME),
            params,
            meta,
        };
        Ok((instance, flaws))
    }
}

/// A port that can be connected to.
pub(super) fn port(port: i64) -> Result<u16, String> {
    let valid = u16::try_from(port).ok().filter(|port| *port > 0);
    valid.ok_or_else(|| format!("port {port} is not in 1-65535"))
}

/// An IP address without brackets, or a host name.
pub(super) fn host(address: &str) -> Result<String, String> {
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
    let of = |weight: Option<i64>| {
        u16::try_from(weight.unwrap_or(1).clamp(0, i64::from(u16::MAX))).unwrap_or(u16::MAX)
    };
    let (passing, warning) = match weights {
        None => (1, 1),
        Some(weights) => match (of(weights.passing), of(weights.warning)) {
            (0, 0) => (1, 1),
            both => both,
        },
    };
    (NonZeroU16::new(passing).unwrap_or(NonZeroU16::MIN), warning)
}
