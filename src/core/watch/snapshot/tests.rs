use std::cell::RefCell;

use super::*;
use crate::address::{AddressFilter, Network};

/// Time for a lookup, and between lookups.
const TIMES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Answers from a list and notes what was asked.
#[derive(Default)]
struct Script {
    answers: RefCell<HashMap<&'static str, Vec<&'static str>>>,
    asked: RefCell<Vec<String>>,
}

impl Resolve for Script {
    fn resolve(&self, host: &str, _: Instant) -> io::Result<Vec<IpAddr>> {
        self.asked.borrow_mut().push(host.to_owned());
        let answers = self.answers.borrow();
        let found = answers.get(host).ok_or_else(|| io::Error::other("no such name"))?;
        Ok(found.iter().map(|ip| ip.parse().unwrap()).collect())
    }
}

fn instance(id: &str, host: &str) -> Instance {
    Instance {
        node: "n".to_owned(),
        id: id.to_owned(),
        host: host.to_owned(),
        port: 80,
        tags: Vec::new(),
        health: Health::Passing,
        weight_passing: NonZeroU16::MIN,
        weight_warning: 1,
        datacenter: String::new(),
        params: Params::default(),
        meta: Default::default(),
    }
}

fn refresh(names: &mut HostNames, script: &Script, hosts: &[&str]) -> Vec<String> {
    let instances: Vec<_> = hosts.iter().map(|host| instance("i", host)).collect();
    for name in names.known.values_mut() {
        name.1 -= FRESH;
    }
    let unresolved = names.refresh(&instances, script, TIMES);
    unresolved.into_iter().map(|(host, error)| format!("{host}: {error}")).collect()
}

fn addresses(names: &HostNames, host: &str) -> Vec<String> {
    names.addresses(host).iter().map(ToString::to_string).collect()
}

#[test]
fn addresses_never_touch_the_resolver() {
    let (mut names, script) = (HostNames::default(), Script::default());
    assert!(refresh(&mut names, &script, &["10.0.0.1", "::1"]).is_empty());
    assert!(script.asked.borrow().is_empty());
    assert_eq!(addresses(&names, "::1"), ["::1"]);
}

#[test]
fn all_addresses_of_a_name_are_taken_in_one_order() {
    let (mut names, script) = (HostNames::default(), Script::default());
    script.answers.borrow_mut().insert("a", vec!["::1", "10.0.0.2", "10.0.0.1", "10.0.0.2"]);
    assert!(refresh(&mut names, &script, &["a", "a"]).is_empty());
    assert_eq!(addresses(&names, "a"), ["10.0.0.1", "10.0.0.2", "::1"]);
    assert_eq!(script.asked.borrow().len(), 1, "one lookup per name");
}

#[test]
fn a_failing_name_keeps_its_last_addresses_and_an_unknown_one_is_told() {
    let (mut names, script) = (HostNames::default(), Script::default());
    script.answers.borrow_mut().insert("a", vec!["10.0.0.1"]);
    assert_eq!(refresh(&mut names, &script, &["a", "b"]), ["b: no such name"]);
    script.answers.borrow_mut().clear();
    assert_eq!(refresh(&mut names, &script, &["a", "b"]), ["b: no such name"]);
    assert_eq!(addresses(&names, "a"), ["10.0.0.1"]);
    assert!(addresses(&names, "b").is_empty());
}

#[test]
fn names_that_are_gone_are_forgotten_and_fresh_ones_left_alone() {
    let (mut names, script) = (HostNames::default(), Script::default());
    script.answers.borrow_mut().insert("a", vec!["10.0.0.1"]);
    names.refresh(&[instance("i", "a")], &script, TIMES);
    names.refresh(&[instance("i", "a")], &script, TIMES);
    assert_eq!(script.asked.borrow().len(), 1);
    refresh(&mut names, &script, &[]);
    assert!(names.is_empty());
}

#[test]
fn the_budget_bounds_the_lookups() {
    let (mut names, script) = (HostNames::default(), Script::default());
    let unresolved = names.refresh(&[instance("i", "a")], &script, (Duration::ZERO, TIMES.1));
    assert_eq!(unresolved[0].1, "no time left for name lookups");
    assert!(script.asked.borrow().is_empty());
}

fn of(health: Health, weight_warning: u16) -> Instance {
    let weight_passing = NonZeroU16::new(9).unwrap();
    Instance { health, weight_passing, weight_warning, ..instance("i", "10.0.0.1") }
}

fn weights(admit: Admit, instance: Instance) -> Vec<u16> {
    let selection = Selection { admit, ..Selection::default() };
    let set = peers(&[instance], &selection, &HostNames::default()).0;
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
        peers(&[tagged.clone()], &selection, &HostNames::default()).0.peers().len()
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
    let (set, _) = peers(&[tagged], &selection, &HostNames::default());
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
    let mut names = HostNames::default();
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
    let digest = |i: &[Instance]| peers(i, &Selection::default(), &HostNames::default()).0.digest();
    let before = digest(&instances);
    instances.reverse();
    assert_eq!(digest(&instances), before);
    let (set, _) = peers(&instances, &Selection::default(), &HostNames::default());
    assert_eq!(set.peers().len(), 3);
}

#[test]
fn an_excluded_address_is_skipped_also_if_a_name_leads_to_it() {
    let script = Script::default();
    script.answers.borrow_mut().insert("a", vec!["10.0.0.2", "127.0.0.1", "0.0.0.0"]);
    let instances = [instance("1", "a"), instance("2", "127.0.0.9"), instance("3", "10.0.0.3")];
    let mut names = HostNames::default();
    names.refresh(&instances, &script, TIMES);
    let deny = vec!["127.0.0.0/8".parse::<Network>().unwrap().net];
    let addresses = AddressFilter { allow: Vec::new(), deny };
    let selection = Selection { addresses, ..Selection::default() };
    let (set, skipped) = peers(&instances, &selection, &names);
    let left: Vec<_> = set.peers().iter().map(|p| p.addr.to_string()).collect();
    assert_eq!(left, ["10.0.0.2:80", "10.0.0.3:80"]);
    let told: Vec<_> = skipped.iter().map(|s| format!("{} {}", s.id, s.reason)).collect();
    assert_eq!(
        told,
        [
            "1 address 0.0.0.0 is unspecified",
            "1 address 127.0.0.1 is excluded by consul_deny",
            "2 address 127.0.0.9 is excluded by consul_deny"
        ]
    );
}
