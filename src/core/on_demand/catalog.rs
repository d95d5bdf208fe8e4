//! The names of all services that a catalog lists.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::consul::client::{Client, Request};
use crate::consul::fetch::check_headers;
use crate::consul::overview::key;
use crate::consul::query::{Fetch, View};
use crate::model::{Consistency, Query};
use crate::stop::Stop;
use crate::watch::{Endpoint, Target};

/// Longest time to an answer, if all servers have been slower than the requests that wait.
const LONGEST: Duration = Duration::from_secs(4);
/// How often the first server is tried while another one answers, and for how long.
const RETURN: Duration = Duration::from_secs(30);
const PROBE: Duration = Duration::from_millis(250);
/// How long Consul is asked to wait for a change.
pub(super) const WAIT: Duration = Duration::from_secs(20);

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
    pub(super) began: Instant,
    /// When the answer came: Consul listed them a moment before.
    pub(super) received: Instant,
    /// `X-Consul-Index`.
    pub(super) index: u64,
    /// The tags that the instances of each service have, both by [`key`].
    names: HashMap<u64, Vec<u64>>,
}

/// What a catalog says about a service. Of several catalogs, the greatest value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Listing {
    /// It does not exist.
    Absent,
    /// It exists, and no instance has the tags.
    Untagged,
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
}

/// Reads a catalog again and again, for one thread.
///
/// A read takes no longer than the requests that wait for it. Only if none is answered in that time
/// the next ones take longer, up to [`LONGEST`]: a datacenter may be far away.
pub(super) struct CatalogReader {
    catalog: Catalog,
    client: Client,
    /// The server that answered last, and when the first one was tried last.
    server: usize,
    first_tried: Instant,
    /// How long a read takes at most, and how long it should.
    limit: Duration,
    patience: Duration,
}

impl CatalogReader {
    /// `stop` aborts a read.
    pub(super) fn new(catalog: Catalog, patience: Duration, stop: Arc<Stop>) -> CatalogReader {
        CatalogReader {
            catalog,
            client: Client::new(stop),
            server: 0,
            first_tried: Instant::now(),
            limit: patience,
            patience,
        }
    }

    /// The server that answered last.
    pub(super) fn server(&self) -> usize {
        self.server
    }

    /// Goes on after a stop with another one.
    pub(super) fn restart(&mut self, stop: Arc<Stop>) {
        self.client = Client::new(stop);
    }

    /// Reads the names from the first server that answers, beginning with the one that did so last.
    pub(super) fn read(&mut self) -> Result<CatalogNames, String> {
        let began = Instant::now();
        let count = self.catalog.endpoint.servers.len();
        let share = self.limit / u32::try_from(count).unwrap_or(u32::MAX);
        if self.server != 0 && self.first_tried.elapsed() > RETURN {
            self.first_tried = began;
            if let Ok(names) = self.fetch(0, None, share.min(PROBE)) {
                self.server = 0;
                return Ok(names);
            }
        }
        let (mut failure, first) = (String::new(), self.server);
        for server in (0..count).map(|turn| (first + turn) % count) {
            match self.fetch(server, None, share) {
                Ok(names) => {
                    if self.server == 0 {
                        self.first_tried = began;
                    }
                    (self.server, self.limit) = (server, self.patience.max(began.elapsed() * 2));
                    return Ok(CatalogNames { began, ..names });
                }
                Err(error) => {
                    let name = &self.catalog.endpoint.servers[server];
                    failure = format!("{error}, server \"{name}\"");
                }
            }
        }
        if began.elapsed() >= share {
            self.limit = (self.limit * 2).min(LONGEST).max(self.patience);
        }
        Err(failure)
    }

    /// Waits until the catalog changes, for [`WAIT`] at most. The index is good for the connection
    /// over which it came: over a new one, the names are read at once.
    pub(super) fn read_change(
        &mut self,
        server: usize,
        known: u64,
    ) -> Result<CatalogNames, String> {
        let changed = self.fetch(server, Some(known), WAIT);
        changed.or_else(|_| self.fetch(server, None, LONGEST))
    }

    fn fetch(
        &mut self,
        server: usize,
        index: Option<u64>,
        timeout: Duration,
    ) -> Result<CatalogNames, String> {
        let Catalog { query, endpoint, max_stale } = &self.catalog;
        let (view, began) = (View::Names, Instant::now());
        let fetch = Fetch { index, ..Fetch::read(server, WAIT) };
        let timeout = index.is_none().then_some(timeout);
        let response = self.client.get_in_time(Request { endpoint, query, view, fetch, timeout });
        let response = response.map_err(|error| error.to_string())?;
        // `Filtered-By-ACLs` is no failure here: a service that the token hides can't be used either.
        let index = check_headers(&response, response.index, *max_stale)
            .map_err(|error| error.to_string())?;
        let names =
            parse(&response.body).map_err(|error| self.client.redact(&error.to_string()))?;
        Ok(CatalogNames { began, received: Instant::now(), index, names })
    }
}

fn parse(body: &[u8]) -> Result<HashMap<u64, Vec<u64>>, serde_json::Error> {
    let names: BTreeMap<String, Option<Vec<String>>> = serde_json::from_slice(body)?;
    let tags = |tags: Option<Vec<String>>| tags.iter().flatten().map(|tag| key(tag)).collect();
    Ok(names.into_iter().map(|(name, all)| (key(&name), tags(all))).collect())
}

impl CatalogNames {
    /// Whether a service that was named `at` this time exists, with instances that have all of the
    /// tags. A service in the list is taken as existing for `valid`, and while the list
    /// `is_current`: Consul would have said otherwise. One that is missing does not exist only if the
    /// list was read after it was named: it may have been registered in between.
    pub(super) fn find(
        &self,
        (name, tags): (&str, &[String]),
        at: Instant,
        (valid, is_current): (Duration, bool),
    ) -> Listing {
        match self.names.get(&key(name)) {
            Some(_) if !is_current && at > self.received + valid => Listing::Outdated,
            Some(known) if tags.iter().all(|tag| known.contains(&key(tag))) => Listing::Listed,
            Some(_) => Listing::Untagged,
            None if at > self.began => Listing::Outdated,
            None => Listing::Absent,
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
        let names = CatalogNames { began, received: began, index: 1, names };
        let (soon, late) = (began + VALID, began + VALID * 2);
        for (name, tags, at, expected) in [
            ("web", &[][..], soon, Listing::Listed),
            ("web", &["PUBLIC", "v1"], soon, Listing::Listed),
            ("web", &["v1", "v2"], soon, Listing::Untagged),
            ("api", &[], began, Listing::Listed),
            ("old", &["v1"], began, Listing::Untagged),
            ("web", &[], late, Listing::Outdated),
            ("api", &["v1"], late, Listing::Outdated),
            ("none", &[], began, Listing::Absent),
            ("none", &[], soon, Listing::Outdated),
        ] {
            let tags: Vec<String> = tags.iter().map(|&tag| tag.to_owned()).collect();
            let asked = (name, &*tags);
            assert_eq!(names.find(asked, at, (VALID, false)), expected, "{name} {tags:?}");
            let current = names.find(asked, at, (VALID, true));
            if expected == Listing::Outdated && name != "none" {
                assert!(current > Listing::Absent && current != Listing::Outdated, "{name}");
            } else {
                assert_eq!(current, expected, "{name} {tags:?}");
            }
        }
    }

    #[test]
    fn what_is_no_catalog_is_refused() {
        for body in ["", "[]", "null", r#"{"web":1}"#] {
            assert!(parse(body.as_bytes()).is_err(), "{body}");
        }
    }
}
