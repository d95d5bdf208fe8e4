//! The services that requests have named and that are followed, without any I/O.

use std::collections::HashMap;
use std::time::Duration;

use crate::table::Named;

/// The services that are followed, with the numbers of their targets.
#[derive(Debug, Default)]
pub(super) struct ServiceRegistry(HashMap<Named, Vec<usize>>);

impl ServiceRegistry {
    /// The targets of a service, if it is followed.
    pub(super) fn targets(&self, service: &Named) -> Option<&[usize]> {
        self.0.get(service).map(Vec::as_slice)
    }

    pub(super) fn insert(&mut self, service: Named, targets: Vec<usize>) {
        self.0.insert(service, targets);
    }

    /// Gives the service's targets.
    pub(super) fn remove(&mut self, service: &Named) -> Vec<usize> {
        self.0.remove(service).unwrap_or_default()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The service that was named longest ago, and is not `except`.
    pub(super) fn least_recent(
        &self,
        except: Option<&Named>,
        unused_for: impl Fn(usize) -> Duration,
    ) -> Option<Named> {
        let others = self.0.iter().filter(|(service, _)| Some(*service) != except);
        let oldest = others.max_by_key(|(_, targets)| unused(targets, &unused_for))?;
        Some(oldest.0.clone())
    }

    /// Those that nobody has named for the time that `limit` gives for their template.
    pub(super) fn idle(
        &self,
        limit: impl Fn(u128) -> Duration,
        unused_for: impl Fn(usize) -> Duration,
    ) -> Vec<Named> {
        let is_idle = |(service, targets): &(&Named, &Vec<usize>)| {
            unused(targets, &unused_for) > limit(service.template)
        };
        self.0.iter().filter(is_idle).map(|(service, _)| service.clone()).collect()
    }
}

/// How long ago a request last asked for one of the targets.
fn unused(targets: &[usize], unused_for: impl Fn(usize) -> Duration) -> Duration {
    targets.iter().map(|target| unused_for(*target)).min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Named {
        Named { template: 1, name: name.to_owned() }
    }

    #[test]
    fn the_service_that_was_named_longest_ago_goes_first() {
        let unused = |target: usize| Duration::from_secs([50, 90, 10, 95][target]);
        let mut registry = ServiceRegistry::default();
        assert_eq!(registry.least_recent(None, unused), None);
        for (target, name) in ["a", "b"].iter().enumerate() {
            registry.insert(service(name), vec![target]);
        }
        // The second datacenter of `c` was never used.
        registry.insert(service("c"), vec![2, 3]);
        assert_eq!(registry.least_recent(None, unused), Some(service("b")));
        assert_eq!(registry.least_recent(Some(&service("b")), unused), Some(service("a")));
        let idle = |limit| registry.idle(|_| Duration::from_secs(limit), unused);
        assert_eq!((idle(90), idle(89)), (vec![], vec![service("b")]));
        assert_eq!((registry.remove(&service("b")), registry.len()), (vec![1], 2));
        assert_eq!(registry.remove(&service("b")), [0; 0]);
    }
}
