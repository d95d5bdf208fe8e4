//! Answers about all services of a datacenter, compared to find the services that have changed.
//!
//! Three blocking queries cover thousands of services: the critical checks, the checks in warning,
//! and the names. Each answer is compared with the one before.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Deserialize;

use crate::consul::query::View;

/// The hash of a name in [`Difference`]. Consul ignores the case of service and node names.
pub fn key(name: &str) -> u64 {
    hash(&name.to_lowercase())
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// By the hash of a check or name: which service or node it belongs to, and a digest.
    parts: HashMap<u64, (Owner, u64)>,
}

/// What a check or name belongs to, by [`key`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Service(u64),
    Node(u64),
}

/// The services and nodes that differ between two overviews, by [`key`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Services.
    pub services: HashSet<u64>,
    /// Nodes: all services that have an instance there.
    pub nodes: HashSet<u64>,
}

impl Difference {
    /// The overviews are equal.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.nodes.is_empty()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    node: String,
    #[serde(rename = "CheckID")]
    check_id: String,
    #[serde(rename = "ServiceID", default)]
    service_id: String,
    #[serde(default)]
    service_name: String,
    /// Always sent by Consul. Without it, a check that changes twice between two answers is missed.
    #[serde(default)]
    modify_index: u64,
}

impl Overview {
    /// Reads the body of an answer.
    ///
    /// # Errors
    ///
    /// It is not an answer about that view.
    pub fn parse(view: View, body: &[u8]) -> Result<Overview, serde_json::Error> {
        let parts = if view == View::Names {
            let names: BTreeMap<String, Option<Vec<String>>> = serde_json::from_slice(body)?;
            let part = |(name, tags): (String, Option<Vec<String>>)| {
                let mut tags = tags.unwrap_or_default();
                tags.sort_unstable();
                (hash(&name), (Owner::Service(key(&name)), hash(&tags)))
            };
            names.into_iter().map(part).collect()
        } else {
            let checks: Vec<Check> = serde_json::from_slice(body)?;
            let part = |check: Check| {
                let owner = if check.service_name.is_empty() {
                    Owner::Node(key(&check.node))
                } else {
                    Owner::Service(key(&check.service_name))
                };
                let id = (&check.node, &check.check_id, &check.service_id);
                (hash(&id), (owner, check.modify_index))
            };
            checks.into_iter().map(part).collect()
        };
        Ok(Overview { parts })
    }

    /// The services and nodes that differ.
    pub fn difference(&self, other: &Overview) -> Difference {
        let mut difference = Difference::default();
        for (one, two) in [(self, other), (other, self)] {
            for (id, part) in &one.parts {
                if two.parts.get(id) == Some(part) {
                    continue;
                }
                match part.0 {
                    Owner::Service(name) => difference.services.insert(name),
                    Owner::Node(name) => difference.nodes.insert(name),
                };
            }
        }
        difference
    }

    /// Digest of the parts, in any order.
    pub fn digest(&self) -> u128 {
        let part = |(id, (_, digest)): (&u64, &(Owner, u64))| u128::from(hash(&(id, digest)));
        self.parts.iter().map(part).fold(0, u128::wrapping_add)
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut h = DefaultHasher::new();
    value.hash(&mut h);
    h.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(node: &str, service: &str, modified: u64) -> String {
        let id =
            if service.is_empty() { "serfHealth".into() } else { format!("service:{service}") };
        format!(
            r#"{{"Node":"{node}","CheckID":"{id}","Status":"critical","ServiceID":"{service}-1",
            "ServiceName":"{service}","ServiceTags":null,"ModifyIndex":{modified}}}"#
        )
    }

    fn critical(checks: &[String]) -> Overview {
        Overview::parse(View::Critical, format!("[{}]", checks.join(",")).as_bytes()).unwrap()
    }

    fn names(body: &str) -> Overview {
        Overview::parse(View::Names, body.as_bytes()).unwrap()
    }

    #[test]
    fn a_check_that_enters_leaves_or_comes_back_names_its_service() {
        let (web, api) = (check("n", "web", 5), check("n", "api", 6));
        let before = critical(&[web.clone(), api.clone()]);
        let of = |checks: &[String]| before.difference(&critical(checks)).services;
        assert_eq!(of(&[api.clone(), web.clone()]), HashSet::new(), "the order says nothing");
        assert_eq!(of(std::slice::from_ref(&web)), [key("api")].into());
        assert_eq!(of(&[web.clone(), api.clone(), check("n", "db", 7)]), [key("DB")].into());
        assert_eq!(of(&[web, check("n", "api", 9)]), [key("api")].into());
    }

    #[test]
    fn a_check_of_a_node_names_the_node() {
        let difference = critical(&[]).difference(&critical(&[check("n1", "", 3)]));
        assert_eq!((difference.services.len(), difference.nodes), (0, [key("n1")].into()));
    }

    #[test]
    fn names_that_come_go_or_have_other_tags_are_named() {
        let before = names(r#"{"web":["a","b"],"api":[],"old":null}"#);
        let after = names(r#"{"web":["b","a"],"api":["v2"],"new":[]}"#);
        let changed = before.difference(&after);
        assert_eq!(changed.services, ["api", "old", "new"].map(key).into());
        assert!(changed.nodes.is_empty() && !changed.is_empty());
        assert!(before.difference(&before.clone()).is_empty());
    }

    #[test]
    fn the_digest_follows_what_is_said() {
        let (web, api) = (check("n", "web", 5), check("n", "api", 6));
        let one = critical(&[web.clone(), api.clone()]);
        assert_eq!(one.digest(), critical(&[api.clone(), web.clone()]).digest());
        assert_ne!(one.digest(), critical(&[api, check("n", "web", 6)]).digest());
        assert_eq!(critical(&[]).digest(), Overview::default().digest());
    }

    #[test]
    fn what_is_no_overview_is_refused() {
        for body in ["", "{}", "[{}]", "null", "[1]"] {
            assert!(Overview::parse(View::Critical, body.as_bytes()).is_err(), "{body}");
        }
        for body in ["", "[]", "null", r#"{"web":1}"#] {
            assert!(Overview::parse(View::Names, body.as_bytes()).is_err(), "{body}");
        }
    }
}
