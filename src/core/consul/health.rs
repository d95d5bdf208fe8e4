//! An answer of `/v1/health/service` as instances.

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::fmt;

use super::instances::{
    Draft, Element, Instances, ParseError, Skipped, Tagged, Want, Weights, list, meta,
};
use crate::model::Health;
use crate::text::quote;

/// Reads the body of an answer.
///
/// An element that breaks a rule, even one of a wrong JSON type, is skipped; it never costs the
/// list.
///
/// # Errors
///
/// The body is not a JSON array, or ends early.
pub fn parse(body: &[u8], want: Want<'_>) -> Result<Instances, ParseError> {
    list(body, |json| instance(json, want))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    node: Option<Node>,
    #[serde(borrow)]
    service: Option<Service<'a>>,
    checks: Option<Vec<Option<Check>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    node: Option<String>,
    address: Option<String>,
    datacenter: Option<String>,
    tagged_addresses: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
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

/// One element; those of a prepared query's answer are the same.
pub(super) fn instance(json: &str, want: Want<'_>) -> Element {
    let skip = |error: serde_json::Error| {
        let (node, id) = name_of(json);
        Skipped { node, id, reason: quote(&error.to_string()) }
    };
    let entry: Entry<'_> = serde_json::from_str(json).map_err(skip)?;
    let health = health(entry.checks.as_deref().unwrap_or_default());
    let node = entry.node.unwrap_or_default();
    let Some(service) = entry.service else {
        let node = node.node.unwrap_or_default();
        return Err(Skipped { node, id: String::new(), reason: "no service".to_owned() });
    };
    let draft = Draft {
        node: node.node,
        node_address: node.address,
        datacenter: node.datacenter,
        id: service.id,
        address: service.address,
        port: service.port,
        tagged: service.tagged_addresses,
        node_tagged: node.tagged_addresses,
        tags: service.tags,
        weights: service.weights,
        meta: meta::parse(service.meta, want.meta).map_err(skip)?,
    };
    draft.finish(health, want.tag)
}

/// The worst of all checks, those of the node included.
fn health(checks: &[Option<Check>]) -> Health {
    let status = |check: &Option<Check>| {
        let status = check.as_ref().and_then(|check| check.status.as_ref());
        status.map_or(Health::Critical, |status| status.0)
    };
    checks.iter().map(status).max().unwrap_or(Health::Passing)
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
