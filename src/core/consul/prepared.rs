//! An answer of `/v1/query/<name>/execute` as instances.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::health;
use super::instances::{Instances, ParseError, Want};

/// The part of the answer that matters; its elements are those of `/v1/health/service`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Executed<'a> {
    #[serde(borrow)]
    nodes: Option<Vec<&'a RawValue>>,
}

/// Reads the body of an answer; an element that breaks a rule is skipped.
///
/// # Errors
///
/// The body is not a JSON object with a list of nodes.
pub fn parse(body: &[u8], want: Want<'_>) -> Result<Instances, ParseError> {
    let executed: Executed<'_> = serde_json::from_slice(body)?;
    let mut instances = Instances::default();
    for node in executed.nodes.unwrap_or_default() {
        instances.add(health::instance(node.get(), want));
    }
    instances.sort();
    Ok(instances)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_nodes_are_instances_and_null_is_none() {
        let body = br#"{"Service":"web","Datacenter":"dc2","Failovers":1,"Nodes":[
            {"Node":{"Node":"n","Address":"10.0.0.1"},"Service":{"ID":"i","Port":80},"Checks":[]},
            {"Node":{"Node":"n"},"Service":{"ID":"j","Port":0}}]}"#;
        let want = Want::default();
        let found = parse(body, want).unwrap();
        assert_eq!((found.good[0].id.as_str(), found.skipped[0].id.as_str()), ("i", "j"));
        assert_eq!(parse(br#"{"Nodes":null}"#, want).unwrap(), Instances::default());
        assert!(parse(b"[]", want).is_err() && parse(b"", want).is_err());
    }
}
