//! The names of all services that a catalog lists.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::consul::client::{Client, Request};
use crate::consul::fetch::check_headers;
use crate::consul::overview::key;
use crate::consul::query::{Fetch, View};
use crate::model::{Consistency, Query};
use crate::watch::{Endpoint, Target};

/// A catalog: the services of one datacenter, as one token sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalog {
    query: Query,
    endpoint: Arc<Endpoint>,
    max_stale: Option<Duration>,
}

/// What a catalog lists.
#[derive(Debug)]
pub(super) struct CatalogNames {
    /// When the read began: it lists the services registered before.
    began: Instant,
    /// The tags that the instances of each service have, both by [`key`].
    names: HashMap<u64, Vec<u64>>,
}

/// What a catalog says about a service. Of several catalogs, the greatest value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Listing {
    /// It does not exist, or no instance has the tags.
    Absent,
    /// The catalog could not be read.
    Failed,
    /// The names read last are too old.
    Outdated,
    /// It exists.
    Listed,
}

impl Catalog {
    /// The catalog that lists a target's service.
    pub(super) fn of(target: &Target) -> Catalog {
        let Target { query, endpoint, timing, .. } = target;
        let consistency = match query.consistency {
            // Entries of the agent's cache have different ages.
            Consistency::Cached => Consistency::Default,
            other => other,
        };
        let query = Query {
            datacenter: query.datacenter.clone(),
            namespace: query.namespace.clone(),
            partition: query.partition.clone(),
            consistency,
            ..Query::default()
        };
        Catalog { query, endpoint: Arc::clone(endpoint), max_stale: timing.max_stale }
    }

    /// Reads the names from the first server that answers.
    pub(super) fn read(&self, client: &mut Client) -> Result<CatalogNames, String> {
        let began = Instant::now();
        let mut failure = String::new();
        for (server, name) in self.endpoint.servers.iter().enumerate() {
            match self.fetch(client, server) {
                Ok(names) => return Ok(CatalogNames { began, names }),
                Err(error) => failure = format!("{error}, server \"{name}\""),
            }
        }
        Err(failure)
    }

    fn fetch(&self, client: &mut Client, server: usize) -> Result<HashMap<u64, Vec<u64>>, String> {
        let (endpoint, query, view) = (&self.endpoint, &self.query, View::Names);
        let fetch = Fetch::read(server, Duration::ZERO);
        let response = client.get(Request { endpoint, query, view, fetch, timeout: None });
        let response = response.map_err(|error| error.to_string())?;
        // `Filtered-By-ACLs` is no failure here: a service that the token hides can't be used either.
        check_headers(&response, response.index, self.max_stale)
            .map_err(|error| error.to_string())?;
        parse(&response.body).map_err(|error| client.redact(&error.to_string()))
    }
}

fn parse(body: &[u8]) -> Result<HashMap<u64, Vec<u64>>, serde_json::Error> {
    let names: BTreeMap<String, Option<Vec<String>>> = serde_json::from_slice(body)?;
    let tags = |tags: Option<Vec<String>>| tags.iter().flatten().map(|tag| key(tag)).collect();
    Ok(names.into_iter().map(|(name, all)| (key(&name), tags(all))).collect())
}

impl CatalogNames {
    /// Whether a service that was named `at` this time exists, with instances that have all of the
    /// tags. A service in the list is taken as existing for `valid`. One that is missing does not
    /// exist only if the list was read after it was named: it may have been registered in between.
    pub(super) fn find(
        &self,
        (name, tags): (&str, &[String]),
        at: Instant,
        valid: Duration,
    ) -> Listing {
        match self.names.get(&key(name)) {
            Some(_) if at > self.began + valid => Listing::Outdated,
            Some(known) if tags.iter().all(|tag| known.contains(&key(tag))) => Listing::Listed,
            None if at > self.began => Listing::Outdated,
            _ => Listing::Absent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: Duration = Duration::from_secs(1);

    #[test]
    fn a_name_that_is_not_listed_is_absent_only_for_requests_from_before_the_names_were_read() {
        let began = Instant::now();
        let names = parse(br#"{"Web":["Public","v1"],"api":[],"old":null}"#).unwrap();
        let names = CatalogNames { began, names };
        let (soon, late) = (began + VALID, began + VALID * 2);
        for (name, tags, at, expected) in [
            ("web", &[][..], soon, Listing::Listed),
            ("web", &["PUBLIC", "v1"], soon, Listing::Listed),
            ("web", &["v1", "v2"], soon, Listing::Absent),
            ("api", &[], began, Listing::Listed),
            ("old", &["v1"], began, Listing::Absent),
            ("web", &[], late, Listing::Outdated),
            ("api", &["v1"], late, Listing::Outdated),
            ("none", &[], began, Listing::Absent),
            ("none", &[], soon, Listing::Outdated),
        ] {
            let tags: Vec<String> = tags.iter().map(|&tag| tag.to_owned()).collect();
            assert_eq!(names.find((name, &tags), at, VALID), expected, "{name} {tags:?}");
        }
    }

    #[test]
    fn what_is_no_catalog_is_refused() {
        for body in ["", "[]", "null", r#"{"web":1}"#] {
            assert!(parse(body.as_bytes()).is_err(), "{body}");
        }
    }
}
