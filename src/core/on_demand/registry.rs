//! The services that are followed on demand, and which of them are dropped first. No I/O.

use std::collections::HashMap;
use std::time::Duration;

use crate::model::ServiceName;

/// The services that are followed, with the numbers of their targets.
pub(super) type ServiceRegistry = HashMap<ServiceName, Vec<usize>>;

/// The service that no request has named for the longest time, other than `except`. Those that Consul
/// can't be asked about now are the last ones.
pub(super) fn least_recently_used(
    registry: &ServiceRegistry,
    except: Option<&ServiceName>,
    is_in_step: impl Fn(usize) -> bool,
    unused_for: impl Fn(usize) -> Duration,
) -> Option<ServiceName> {
    let others = registry.iter().filter(|(service, _)| Some(*service) != except);
    let rank = |targets: &[usize]| {
        (targets.iter().all(|target| is_in_step(*target)), unused(targets, &unused_for))
    };
    let oldest = others.max_by_key(|(_, targets)| rank(targets))?;
    Some(oldest.0.clone())
}

/// The services that no request has named for longer than `limit` of their template, and for how long
/// beyond it.
pub(super) fn idle(
    registry: &ServiceRegistry,
    limit: impl Fn(u128) -> Duration,
    unused_for: impl Fn(usize) -> Duration,
) -> Vec<(ServiceName, Duration)> {
    let idle = |(service, targets): (&ServiceName, &Vec<usize>)| {
        let beyond = unused(targets, &unused_for).checked_sub(limit(service.template))?;
        (!beyond.is_zero()).then(|| (service.clone(), beyond))
    };
    registry.iter().filter_map(idle).collect()
}

/// How long ago a request last named one of the targets.
fn unused(targets: &[usize], unused_for: impl Fn(usize) -> Duration) -> Duration {
    targets.iter().map(|target| unused_for(*target)).min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> ServiceName {
        ServiceName { template: 1, name: name.to_owned() }
    }

    #[test]
    fn the_service_that_was_named_longest_ago_goes_first() {
        let unused = |target: usize| Duration::from_secs([50, 90, 10, 95][target]);
        let mut registry = ServiceRegistry::default();
        let in_step = |_| true;
        assert_eq!(least_recently_used(&registry, None, in_step, unused), None);
        for (target, name) in ["a", "b"].iter().enumerate() {
            registry.insert(service(name), vec![target]);
        }
        // The second datacenter of `c` was never used.
        registry.insert(service("c"), vec![2, 3]);
        let (a, b) = (service("a"), service("b"));
        assert_eq!(least_recently_used(&registry, None, in_step, unused), Some(b.clone()));
        assert_eq!(least_recently_used(&registry, Some(&b), in_step, unused), Some(a.clone()));
        let b_is_not = |target| target != 1;
        assert_eq!(least_recently_used(&registry, None, b_is_not, unused), Some(a));
        let idle = |limit| idle(&registry, |_| Duration::from_secs(limit), unused);
        assert_eq!((idle(90), idle(89)), (vec![], vec![(b, Duration::from_secs(1))]));
    }
}
