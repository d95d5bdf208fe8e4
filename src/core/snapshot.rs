//! Turns the instances of an answer into the set of peers of one upstream: selection by health, tags
//! and address, weights, one peer for each address of a host name.

use std::net::SocketAddr;
use std::num::NonZeroU16;

use crate::consul::instances::Skipped;
use crate::model::{Admit, Health, Instance, Peer, PeerSet, Selection, identity};
use crate::params::Params;
use crate::resolve::Names;
use crate::text::shortened;

/// Longest tag that is kept whole, and room for all tags of an instance, in bytes.
const MAX_TAG: usize = 512;
const MAX_TAGS: usize = 4096;

/// The peers that `selection` takes from the instances of an answer, and the instances that it skips
/// because of their address.
///
/// A host name gives one peer for each of its addresses. Instances without an address are left
/// out, as are those in warning whose `Weights.Warning` is 0.
pub fn peers(
    instances: &[Instance],
    selection: &Selection,
    names: &Names,
) -> (PeerSet, Vec<Skipped>) {
    let mut peers = Vec::new();
    let mut skipped = Vec::new();
    for instance in instances {
        let Some(weight) = weight(instance, selection.admit) else { continue };
        if !has_tags(instance, &selection.tags) {
            continue;
        }
        let (addresses, _) = names.addresses(&instance.host);
        let several = addresses.len() > 1;
        for ip in addresses {
            if let Some(by) = selection.addresses.refusal(ip) {
                skipped.push(Skipped {
                    node: instance.node.clone(),
                    id: instance.id.clone(),
                    reason: format!("address {ip} is excluded {by}"),
                });
                continue;
            }
            let addr = SocketAddr::new(ip, instance.port);
            peers.push(Peer {
                addr,
                weight,
                // With one address the identity doesn't contain it: a host name that moves to
                // another address is still the same instance.
                identity: identity(&instance.node, &instance.id, several.then_some(addr)),
                node: instance.node.clone(),
                id: instance.id.clone(),
                tags: kept(&instance.tags),
                health: instance.health,
                datacenter: instance.datacenter.clone(),
                // The weight is already in effect.
                params: Params { weight: None, ..instance.params },
                meta: instance.meta.clone(),
            });
        }
    }
    (PeerSet::new(peers), skipped)
}

/// The tags of an instance that are stored, after they have been matched. They are limited, so that
/// whoever registers an instance can't fill the zone.
fn kept(tags: &[String]) -> Vec<String> {
    let mut room = MAX_TAGS;
    let mut kept = Vec::new();
    for tag in tags {
        let tag = shortened(tag.clone(), MAX_TAG);
        // The table adds three bytes: quotes and a comma.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{AddressFilter, network};
    use crate::resolve::tests::{Script, TIMES, instance};

    fn of(health: Health, weight_warning: u16) -> Instance {
        let weight_passing = NonZeroU16::new(9).unwrap();
        Instance { health, weight_passing, weight_warning, ..instance("i", "10.0.0.1") }
    }

    fn weights(admit: Admit, instance: Instance) -> Vec<u16> {
        let selection = Selection { admit, ..Selection::default() };
        let set = peers(&[instance], &selection, &Names::default()).0;
        set.peers().iter().map(|p| p.weight.get()).collect()
    }

    #[test]
    fn health_decides_admission_and_weight() {
        use Admit::{Any, Passing, Warning};
        for (admit, health, expected) in [
            (Passing, Health::Passing, &[9][..]),
            (Passing, Health::Warning, &[]),
            (Passing, Health::Critical, &[]),
            (Warning, Health::Passing, &[9]),
            (Warning, Health::Warning, &[2]),
            (Warning, Health::Critical, &[]),
            (Any, Health::Passing, &[9]),
            (Any, Health::Warning, &[2]),
            (Any, Health::Critical, &[9]),
        ] {
            assert_eq!(weights(admit, of(health, 2)), expected, "{admit:?} {health:?}");
        }
    }

    #[test]
    fn a_warning_weight_of_zero_keeps_the_instance_out() {
        assert_eq!(weights(Admit::Warning, of(Health::Warning, 0)), [0u16; 0]);
        assert_eq!(weights(Admit::Any, of(Health::Warning, 0)), [0u16; 0]);
    }

    #[test]
    fn every_tag_must_be_there_whatever_its_case() {
        let mut tagged = instance("i", "10.0.0.1");
        tagged.tags = vec!["V1".to_owned(), "http".to_owned(), "Größe".to_owned()];
        let count = |tags: &[&str]| {
            let tags = tags.iter().map(|&t| t.to_owned()).collect();
            let selection = Selection { tags, ..Selection::default() };
            peers(&[tagged.clone()], &selection, &Names::default()).0.peers().len()
        };
        assert_eq!(count(&[]), 1);
        assert_eq!(count(&["v1", "HTTP"]), 1);
        assert_eq!(count(&["GRÖSSE"]), 0);
        assert_eq!(count(&["GRÖßE"]), 1);
        assert_eq!(count(&["v1", "v2"]), 0);
        assert_eq!(count(&["v"]), 0);
    }

    #[test]
    fn tags_match_whole_and_are_kept_in_part() {
        let mut tagged = instance("i", "10.0.0.1");
        let long = "x".repeat(100_000);
        let many = (0..50_000).map(|n| format!("tag{n}"));
        tagged.tags = [long.clone(), "v1".to_owned()].into_iter().chain(many).collect();
        let tags = vec![long, "tag49999".to_owned()];
        let selection = Selection { tags, ..Selection::default() };
        let (set, _) = peers(&[tagged], &selection, &Names::default());
        let kept = &set.peers()[0].tags;
        assert_eq!((kept[0].len(), kept[1].as_str()), (512, "v1"));
        assert_eq!(kept.last().map(String::as_str), Some("…"));
        let bytes: usize = kept.iter().map(String::len).sum();
        assert!((2000..=4096).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_name_gives_a_peer_for_each_address() {
        let script = Script::default();
        script.answers.borrow_mut().insert("a", vec!["10.0.0.2", "10.0.0.1"]);
        script.answers.borrow_mut().insert("b", vec!["10.0.0.3"]);
        let instances = [instance("1", "a"), instance("2", "b"), instance("3", "c")];
        let mut names = Names::default();
        assert_eq!(names.refresh(&instances, &script, TIMES).len(), 1);
        let set = peers(&instances, &Selection::default(), &names).0;
        let addresses: Vec<_> = set.peers().iter().map(|p| p.addr.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
        assert_ne!(set.peers()[0].identity, set.peers()[1].identity);
        assert_eq!(set.peers()[2].identity, identity("n", "2", None));
    }

    #[test]
    fn the_order_of_an_answer_does_not_matter() {
        let mut instances: Vec<_> =
            (0..5).map(|i| instance(&format!("i{i}"), &format!("10.0.0.{}", i / 2))).collect();
        let digest = |i: &[Instance]| peers(i, &Selection::default(), &Names::default()).0.digest();
        let before = digest(&instances);
        instances.reverse();
        assert_eq!(digest(&instances), before);
        let (set, _) = peers(&instances, &Selection::default(), &Names::default());
        assert_eq!(set.peers().len(), 3);
    }

    #[test]
    fn an_excluded_address_is_skipped_also_if_a_name_leads_to_it() {
        let script = Script::default();
        script.answers.borrow_mut().insert("a", vec!["10.0.0.2", "127.0.0.1"]);
        let instances = [instance("1", "a"), instance("2", "127.0.0.9"), instance("3", "10.0.0.3")];
        let mut names = Names::default();
        names.refresh(&instances, &script, TIMES);
        let deny = vec![network("127.0.0.0/8").unwrap()];
        let addresses = AddressFilter { allow: Vec::new(), deny };
        let selection = Selection { addresses, ..Selection::default() };
        let (set, skipped) = peers(&instances, &selection, &names);
        let left: Vec<_> = set.peers().iter().map(|p| p.addr.to_string()).collect();
        assert_eq!(left, ["10.0.0.2:80", "10.0.0.3:80"]);
        let told: Vec<_> = skipped.iter().map(|s| format!("{} {}", s.id, s.reason)).collect();
        assert_eq!(
            told,
            [
                "1 address 127.0.0.1 is excluded by consul_deny",
                "2 address 127.0.0.9 is excluded by consul_deny"
            ]
        );
    }
}
