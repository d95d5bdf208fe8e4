//! An answer of `/v1/health/service` as instances.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::model::{Health, Instance};
use crate::text::{beginning, printable, quote, shortened};

mod meta;

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

/// Reads the body of an answer.
///
/// An element that breaks a rule, even one of a wrong JSON type, is skipped; it never costs the
/// list.
///
/// # Errors
///
/// The body is not a JSON array, or ends early.
pub fn parse(body: &[u8]) -> Result<Instances, ParseError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let mut instances = json.deserialize_seq(ListVisitor)?;
    json.end()?;
    instances.good.sort_by(|a, b| (&a.node, &a.id).cmp(&(&b.node, &b.id)));
    Ok(instances)
}

/// Takes one element after the other, so that no second copy of a large answer is made.
struct ListVisitor;

impl<'de> Visitor<'de> for ListVisitor {
    type Value = Instances;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Instances, A::Error> {
        let mut instances = Instances::default();
        while let Some(element) = list.next_element::<&RawValue>()? {
            match instance(element.get()) {
                Ok((instance, flaws)) => {
                    let (node, id) = (&instance.node, &instance.id);
                    instances.flawed.extend(flaws.into_iter().map(|reason| Skipped {
                        node: node.clone(),
                        id: id.clone(),
                        reason,
                    }));
                    instances.good.push(instance);
                }
                Err(skipped) => instances.skipped.push(skipped),
            }
        }
        Ok(instances)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: Option<Node>,
    service: Option<Service>,
    checks: Option<Vec<Option<Check>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    node: Option<String>,
    address: Option<String>,
    datacenter: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID")]
    id: Option<String>,
    tags: Option<Vec<String>>,
    address: Option<String>,
    port: Option<i64>,
    weights: Option<Weights>,
    #[serde(default, deserialize_with = "meta::parse")]
    meta: meta::Own,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: Option<i64>,
    warning: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    status: Option<Status>,
}

struct Status(Health);

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct StatusVisitor;
        impl Visitor<'_> for StatusVisitor {
            type Value = Status;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status")
            }

            fn visit_str<E>(self, text: &str) -> Result<Status, E> {
                Ok(Status(match text {
                    "passing" => Health::Passing,
                    "warning" => Health::Warning,
                    // Also a word that Consul may learn one day.
                    _ => Health::Critical,
                }))
            }
        }
        json.deserialize_str(StatusVisitor)
    }
}

/// An instance, and what is wrong with its `Service.Meta`.
fn instance(json: &str) -> Result<(Instance, Vec<String>), Skipped> {
    let entry: Entry = serde_json::from_str(json).map_err(|error| {
        let (node, id) = name_of(json);
        Skipped { node, id, reason: quote(&error.to_string()) }
    })?;
    let health = health(entry.checks.as_deref().unwrap_or_default());
    let (node, node_address, datacenter) = match entry.node {
        Some(node) => (node.node, node.address, node.datacenter),
        None => (None, None, None),
    };
    let node = shortened(node.unwrap_or_default(), MAX_NAME);
    let skip =
        |id: &str, reason: String| Err(Skipped { node: node.clone(), id: id.to_owned(), reason });
    let Some(service) = entry.service else { return skip("", "no service".to_owned()) };
    let id = shortened(service.id.unwrap_or_default(), MAX_NAME);
    if node.is_empty() {
        return skip(&id, "no node name".to_owned());
    }
    if id.is_empty() {
        return skip("", "no service id".to_owned());
    }
    let address = [service.address, node_address].into_iter().flatten().find(|a| !a.is_empty());
    let host = match host(address.as_deref().unwrap_or_default()) {
        Ok(host) => host,
        Err(reason) => return skip(&id, reason),
    };
    let port = service.port.unwrap_or(0);
    let Some(port) = u16::try_from(port).ok().filter(|port| *port > 0) else {
        return skip(&id, format!("port {port} is not in 1-65535"));
    };
    let (weight_passing, weight_warning) = weights(service.weights.as_ref());
    let (params, flaws) = service.meta;
    let instance = Instance {
        node,
        id,
        host,
        port,
        tags: service.tags.unwrap_or_default(),
        health,
        weight_passing,
        weight_warning,
        datacenter: shortened(datacenter.unwrap_or_default(), MAX_NAME),
        params,
    };
    Ok((instance, flaws))
}

/// The worst of all checks, those of the node included.
fn health(checks: &[Option<Check>]) -> Health {
    let status = |check: &Option<Check>| {
        let status = check.as_ref().and_then(|check| check.status.as_ref());
        status.map_or(Health::Critical, |status| status.0)
    };
    checks.iter().map(status).max().unwrap_or(Health::Passing)
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

/// Node and id of an element that is not an instance, as far as they can be told.
fn name_of(json: &str) -> (String, String) {
    let json: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let text = |a: &str, b: &str| match &json[a][b] {
        serde_json::Value::String(text) => text.clone(),
        _ => String::new(),
    };
    (text("Node", "Node"), text("Service", "ID"))
}

#[cfg(test)]
mod tests;
