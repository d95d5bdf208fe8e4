//! An answer of `/v1/health/service`, or of `/v1/query/<name>/execute`, as instances.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::instances::{Draft, Instances, ParseError, Tagged, Want, Weights, element, list};
use crate::model::Health;

/// Reads the body of an answer.
///
/// An element that breaks a rule, even one of a wrong JSON type, is skipped; it never costs the
/// list.
///
/// # Errors
///
/// The body is not a JSON array, or ends early.
pub fn parse(body: &[u8], want: Want<'_>) -> Result<Instances, ParseError> {
    list(body, |json| element(json, ["/Node/Node", "/Service/ID"], draft, want))
}

/// Reads what a prepared query gives: the same list, as a member of an object.
///
/// # Errors
///
/// The body is not a JSON object with a list of nodes.
pub fn parse_executed(body: &[u8], want: Want<'_>) -> Result<Instances, ParseError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Executed<'a> {
        #[serde(borrow)]
        nodes: Option<&'a RawValue>,
    }
    let executed: Executed<'_> = serde_json::from_slice(body)?;
    executed.nodes.map_or(Ok(Instances::default()), |nodes| parse(nodes.get().as_bytes(), want))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
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

fn draft(entry: Entry<'_>) -> (Draft<'_>, Health) {
    let health = health(entry.checks.as_deref().unwrap_or_default());
    let (node, service) = (entry.node.unwrap_or_default(), entry.service.unwrap_or_default());
    let draft = Draft {
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
    (draft, health)
}

/// The worst of all checks, those of the node included.
fn health(checks: &[Option<Check<'_>>]) -> Health {
    // Also critical: a word that Consul may learn one day.
    let status = |check: &Option<Check<'_>>| check.as_ref()?.status.as_ref()?.parse().ok();
    checks.iter().map(|c| status(c).unwrap_or(Health::Critical)).max().unwrap_or(Health::Passing)
}

#[cfg(test)]
mod tests;
