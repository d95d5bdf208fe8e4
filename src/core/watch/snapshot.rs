//! From the instances of an answer to the peers of one target: host names are resolved, and a
//! [`Selection`] is applied.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use crate::model::{Admit, Health, Instance, Peer, PeerSet, Selection, Skipped, identity};
use crate::params::Params;
use crate::resolve::Resolve;
use crate::text::shortened;

/// A name is not looked up again within this time, however often its service changes.
const FRESH: Duration = Duration::from_secs(5);

/// Longest tag that is kept whole, and most bytes of all tags of an instance.
const MAX_TAG: usize = 512;
const MAX_TAGS: usize = 4096;

/// The peers that `selection` takes from the instances of an answer, and the instances whose address
/// is not used.
///
/// A host name gives one peer for each of its addresses. Instances without an address are left
/// out, as are those in warning whose `Weights.Warning` is 0.
pub(super) fn peers(
    instances: &[Instance],
    selection: &Selection,
    names: &HostNames,
) -> (PeerSet, Vec<Skipped>) {
    let mut peers = Vec::new();
    let mut skipped = Vec::new();
    for instance in instances {
        let Some(weight) = weight(instance, selection.admit) else { continue };
        if !has_tags(instance, &selection.tags) {
            continue;
        }
        let addresses = names.addresses(&instance.host);
        let several = addresses.len() > 1;
        for ip in addresses {
            if let Some(why) = selection.addresses.refusal(ip) {
                skipped.push(Skipped {
                    node: instance.node.clone(),
                    id: instance.id.clone(),
                    reason: format!("address {ip} is {why}"),
                });
                continue;
            }
            let addr = SocketAddr::new(ip, instance.port);
            peers.push(Peer {
                addr,
                weight,
                // A name that moves to another address is still the same instance.
                identity: identity(&instance.node, &instance.id, several.then_some(addr)),
                node: instance.node.clone(),
                id: instance.id.clone(),
                tags: kept(&instance.tags),
                health: instance.health,
                datacenter: instance.datacenter.clone(),
                // Its weight is in effect already.
                params: Params { weight: None, ..instance.params },
                meta: instance.meta.clone(),
            });
        }
    }
    (PeerSet::new(peers), skipped)
}

/// The tags of an instance, shortened after they were matched: whoever registers it can't fill the
/// zone with them.
fn kept(tags: &[String]) -> Vec<String> {
    let mut room = MAX_TAGS;
    let mut kept = Vec::new();
    for tag in tags {
        let tag = shortened(tag.clone(), MAX_TAG);
        // Three bytes: the quotes and comma that the table stores with it.
        let Some(left) = room.checked_sub(tag.len() + 3) else {
            kept.push("…".to_owned());
            break;
        };
        room = left;
        kept.push(tag);
    }
    kept
}

/// Weight of an instance, `None` if it is not admitted.
fn weight(instance: &Instance, admit: Admit) -> Option<NonZeroU16> {
    match (instance.health, admit) {
        (Health::Passing, _) => Some(instance.params.weight.unwrap_or(instance.weight_passing)),
        (Health::Warning, Admit::Warning | Admit::Any) => NonZeroU16::new(instance.weight_warning),
        (Health::Critical, Admit::Any) => {
            Some(instance.params.weight.unwrap_or(instance.weight_passing))
        }
        _ => None,
    }
}

fn has_tags(instance: &Instance, wanted: &[String]) -> bool {
    let has = |wanted: &String| instance.tags.iter().any(|tag| same_tag(tag, wanted));
    wanted.iter().all(has)
}

/// Consul compares tags in lower case.
fn same_tag(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b) || (!a.is_ascii() && a.to_lowercase() == b.to_lowercase())
}

/// Addresses of the host names in the answers to one query.
#[derive(Debug, Default)]
pub(super) struct HostNames {
    /// By name: addresses, and when they were looked up.
    known: HashMap<String, (Vec<IpAddr>, Instant)>,
}

impl HostNames {
    /// Looks up the names of `instances` and forgets all others; IP addresses are not names.
    ///
    /// Takes at most `budget`, and looks a name up again after `every`. A name whose lookup fails
    /// keeps its last addresses. Returns the names that have no address, and why.
    pub(super) fn refresh(
        &mut self,
        instances: &[Instance],
        resolver: &dyn Resolve,
        (budget, every): (Duration, Duration),
    ) -> Vec<(String, String)> {
        let hosts: HashSet<&str> = instances
            .iter()
            .map(|i| i.host.as_str())
            .filter(|h| h.parse::<IpAddr>().is_err())
            .collect();
        self.known.retain(|host, _| hosts.contains(host.as_str()));
        let mut hosts: Vec<&str> = hosts.into_iter().collect();
        // Unknown names first: the others have addresses already.
        hosts.sort_by_key(|host| (self.known.contains_key(*host), *host));
        let deadline = Instant::now() + budget;
        let mut unresolved = Vec::new();
        for host in hosts {
            let now = Instant::now();
            let last = self.known.get(host);
            if last.is_some_and(|(_, at)| now.duration_since(*at) < FRESH.min(every / 2)) {
                continue;
            }
            let found = if now < deadline {
                resolver.resolve(host, deadline)
            } else {
                Err(io::Error::new(io::ErrorKind::TimedOut, "no time left for name lookups"))
            };
            match found {
                Ok(mut addresses) => {
                    addresses.sort_unstable();
                    addresses.dedup();
                    self.known.insert(host.to_owned(), (addresses, now));
                }
                Err(_) if last.is_some() => {}
                Err(error) => unresolved.push((host.to_owned(), error.to_string())),
            }
        }
        unresolved
    }

    /// Addresses of a host as [`Instance::host`] has it; empty if unknown.
    fn addresses(&self, host: &str) -> Vec<IpAddr> {
        match host.parse() {
            Ok(ip) => vec![ip],
            Err(_) => self.known.get(host).map(|(all, _)| all.clone()).unwrap_or_default(),
        }
    }

    /// Whether any name is in use: their addresses may change though Consul's answer does not.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests;
