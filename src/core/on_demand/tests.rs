use std::collections::HashSet;
use std::sync::Arc;

use std::time::{Duration, Instant};

use super::catalog::Listing;
use super::lookup::KnownCatalog;
use super::*;
use crate::model::ServiceName;
use crate::watch::testing::{endpoint, target};
use crate::watch::{Endpoint, Plan, Target, Token};

const TIMES: (Duration, Duration, Duration) =
    (Duration::from_secs(600), Duration::from_secs(1), Duration::from_secs(1));

fn template(block: &str, target: Target, tags: &[&str]) -> Template {
    let tags = tags.iter().map(|&tag| tag.to_owned()).collect();
    Template::new(block.as_bytes(), vec![target], Allowed::new(&[], tags), TIMES)
}

fn nameless(url: &str) -> Target {
    target(&Arc::new(endpoint(url)), "")
}

fn with_token(token: &str) -> Target {
    let plain = nameless("http://127.0.0.1:1");
    let token = Some(Token::value(token).unwrap());
    Target { endpoint: Arc::new(Endpoint { token, ..(*plain.endpoint).clone() }), ..plain }
}

#[test]
fn what_a_block_asks_for_is_its_own_over_reloads() {
    let plain = || nameless("http://127.0.0.1:1");
    let keys = |all| Templates::new(all, 10).keys();
    let before = vec![
        template("a", plain(), &[]),
        template("b", plain(), &[]),
        template("c", plain(), &["public"]),
        template("d", with_token("strong"), &[]),
        template("e", nameless("http://127.0.0.1:2"), &[]),
    ];
    let before = keys(before);
    assert_eq!(HashSet::<u128>::from_iter(before.iter().copied()).len(), 5);
    assert!(!before.contains(&0));
    // Others go, come in another order, and have other tokens.
    let after = vec![
        template("d", with_token("weak"), &[]),
        template("b", plain(), &[]),
        template("c", plain(), &["internal"]),
    ];
    let after = keys(after);
    assert_eq!((after[0], after[1]), (before[3], before[1]));
    assert!(!before.contains(&after[2]));
}

#[test]
fn blocks_read_one_catalog_if_they_see_the_same_with_the_same_token() {
    let elsewhere = || {
        let mut target = nameless("http://127.0.0.1:1");
        target.query.datacenter = Some("b".to_owned());
        target
    };
    let mut both = template("c", nameless("http://127.0.0.1:1"), &["public"]);
    both.targets.push(elsewhere());
    let all = vec![
        template("a", nameless("http://127.0.0.1:1"), &[]),
        template("b", with_token("s"), &[]),
        both,
        template("d", elsewhere(), &[]),
        template("e", with_token("s"), &[]),
        template("f", nameless("http://127.0.0.1:2"), &[]),
    ];
    let templates = Templates::new(all, 10);
    let of_block = |number| templates.of_block(number).unwrap().catalogs.clone();
    let catalogs: Vec<_> = (0..6).map(of_block).collect();
    assert_eq!(catalogs, [vec![0], vec![1], vec![0, 2], vec![2], vec![1], vec![3]]);
}

#[test]
fn a_service_is_admitted_by_the_patterns_of_its_block() {
    let of = |block: &str, pattern: &str| {
        let allowed = Allowed::new(&[pattern.to_owned()], Vec::new());
        Template::new(block.as_bytes(), vec![nameless("http://127.0.0.1:1")], allowed, TIMES)
    };
    let templates = Templates::new(vec![of("a", "web-*"), of("b", "api-*")], 10);
    let [a, b] = [0, 1].map(|number| templates.of_block(number).unwrap().key);
    for (template, name, expected) in [
        (a, "web-1", true),
        (b, "api-1", true),
        (a, "api-1", false),
        (a, "WEB-1", false),
        (a.wrapping_add(1), "web-1", false),
    ] {
        let service = ServiceName { template, name: name.to_owned() };
        assert_eq!(templates.admit(&service).is_some(), expected, "{name}");
    }
}

/// One finds nothing in its datacenters, the other something in a third.
#[test]
fn blocks_with_other_datacenters_have_verdicts_of_their_own() {
    let pattern = nameless("http://127.0.0.1:1");
    let web = target(&pattern.endpoint, "web");
    let (plan, _) = Plan::new(vec![web], 64);
    let elsewhere = |datacenter: &str| {
        let mut target = pattern.clone();
        target.query.datacenter = Some(datacenter.to_owned());
        Template::new(b"a", vec![pattern.clone(), target], Allowed::default(), TIMES)
    };
    let templates = Templates::new(vec![elsewhere("b"), elsewhere("c")], 10);
    let [b, c] = [0, 1].map(|number| templates.of_block(number).unwrap());
    assert_eq!(
        b.targets_of("web", &plan)[0].key,
        c.targets_of("web", &plan)[0].key,
        "the fixed one"
    );
    assert_ne!(b.lookup_key("web"), c.lookup_key("web"));
    assert_ne!(b.lookup_key("web"), b.lookup_key("api"));
}

#[test]
fn a_service_that_a_block_follows_is_that_target_and_others_have_keys_of_their_own() {
    let pattern = nameless("http://127.0.0.1:1");
    let web = target(&pattern.endpoint, "web");
    let (plan, _) = Plan::new(vec![web.clone()], 64);
    let templates = Templates::new(
        vec![template("a", pattern.clone(), &[]), template("b", pattern, &["v1"])],
        10,
    );
    let place = |number: usize, name: &str| {
        templates.of_block(number).unwrap().targets_of(name, &plan).pop().unwrap()
    };
    assert_eq!((place(0, "web").fixed, place(0, "web").key), (Some(0), plan.key(0)));
    assert_eq!(place(0, "web").target, web);
    assert_eq!(place(1, "web").fixed, None, "it wants a tag");
    assert_eq!(place(1, "web").target.selection.tags, ["v1"]);
    let keys = [place(0, "web").key, place(1, "web").key, place(0, "api").key, place(1, "api").key];
    assert_eq!(HashSet::<u128>::from_iter(keys).len(), 4);
}

#[test]
fn a_failed_read_of_the_catalog_answers_only_for_services_named_before_it_began() {
    let began = Instant::now();
    let known = KnownCatalog { names: Some(Err(began)), ..KnownCatalog::default() };
    let template = template("a", nameless("http://127.0.0.1:1"), &[]);
    let service = ServiceName { template: template.key, name: "web".into() };
    let find = |at| known.find(&service, &template, at);
    assert_eq!(find(began), Listing::Failed);
    assert_eq!(find(began + Duration::from_millis(1)), Listing::Outdated);
}
