use std::collections::HashSet;
use std::sync::Arc;

use super::*;
use crate::sync::testing::{endpoint, target};
use crate::sync::{Endpoint, Token};

const TIMES: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(1));

fn template(target: Target, tags: &[&str]) -> Template {
    let tags = tags.iter().map(|&tag| tag.to_owned()).collect();
    Template::new(vec![target], Allowed::new(&[], tags), TIMES)
}

fn nameless(url: &str) -> Target {
    target(&Arc::new(endpoint(url)), "")
}

#[test]
fn blocks_that_ask_the_same_share_their_services_and_others_do_not() {
    let plain = nameless("http://127.0.0.1:1");
    let token = Some(Token::value("s").unwrap());
    let secret = Endpoint { token, ..(*plain.endpoint).clone() };
    let secret = Target { endpoint: Arc::new(secret), ..plain.clone() };
    let of = |target: &Target, tags: &[&str]| template(target.clone(), tags);
    let all = vec![
        of(&plain, &[]),
        of(&secret, &[]),
        of(&plain, &["public"]),
        of(&plain, &[]),
        of(&nameless("http://127.0.0.1:2"), &[]),
        of(&secret, &[]),
    ];
    let templates = Templates::new(all, 10);
    let keys = templates.keys();
    assert_eq!((keys[0], keys[1]), (keys[3], keys[5]));
    assert_eq!(HashSet::<u128>::from_iter(keys.iter().copied()).len(), 4);
    assert!(!keys.contains(&0));
    assert_eq!(
        templates.find(keys[4]).unwrap().targets[0].endpoint.servers[0].to_string(),
        "http://127.0.0.1:2"
    );
    let catalogs: Vec<_> = templates.all.iter().map(|t| t.catalogs.clone()).collect();
    assert_eq!(catalogs, [[0], [1], [0], [0], [2], [1]], "what a token shows is its own");
}

#[test]
fn what_a_token_shows_is_never_anothers_over_reloads() {
    let with_token = |token: &str, block: Option<&str>| {
        let plain = nameless("http://127.0.0.1:1");
        let token = Some(Token::value(token).unwrap());
        let endpoint = Arc::new(Endpoint { token, ..(*plain.endpoint).clone() });
        let template = template(Target { endpoint, ..plain }, &[]);
        match block {
            Some(block) => template.owned_by(block.to_owned()),
            None => template,
        }
    };
    let keys = |all| Templates::new(all, 10).keys();
    let strong = || with_token("strong", Some("a"));
    let weak = || with_token("weak", Some("b"));
    let (before, after) = (keys(vec![strong(), weak()]), keys(vec![weak()]));
    assert_eq!(before[1], after[0]);
    assert_ne!(before[0], after[0]);
    assert_eq!(keys(vec![weak(), strong()]), [before[1], before[0]]);
    assert_ne!(keys(vec![with_token("other", None)])[0], after[0]);
    let twins = keys(vec![strong(), with_token("strong", Some("c"))]);
    assert_eq!(twins[0], twins[1]);
}

#[test]
fn blocks_that_share_their_services_have_their_own_patterns_and_times() {
    let of = |pattern: &str, idle| {
        let allowed = Allowed::new(&[pattern.to_owned()], Vec::new());
        let idle = Duration::from_secs(idle);
        Template::new(vec![nameless("http://127.0.0.1:1")], allowed, (idle, TIMES.1))
    };
    let templates = Templates::new(vec![of("web-*", 10), of("api-*", 30), of("web-*", 20)], 10);
    let key = templates.of_block(0).unwrap().key();
    assert_eq!(templates.keys(), [key; 3]);
    let admits = |key, name: &str| {
        let name = name.to_owned();
        templates.admit(&Named { template: key, name }).is_some()
    };
    assert!(admits(key, "web-1") && admits(key, "api-1"));
    assert!(!admits(key, "db-1") && !admits(key, "WEB-1") && !admits(key + 1, "web-1"));
    assert_eq!(templates.idle(key), Duration::from_secs(30));
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
        Template::new(vec![pattern.clone(), target], Allowed::default(), TIMES)
    };
    let templates = Templates::new(vec![elsewhere("b"), elsewhere("c")], 10);
    let [b, c] = [0, 1].map(|number| templates.of_block(number).unwrap());
    assert_eq!(b.places("web", &plan)[0].key, c.places("web", &plan)[0].key, "the fixed one");
    assert_ne!(b.verdict_key("web"), c.verdict_key("web"));
    assert_ne!(b.verdict_key("web"), b.verdict_key("api"));
}

#[test]
fn a_service_that_a_block_follows_is_that_target_and_others_have_keys_of_their_own() {
    let pattern = nameless("http://127.0.0.1:1");
    let web = target(&pattern.endpoint, "web");
    let (plan, _) = Plan::new(vec![web.clone()], 64);
    let templates =
        Templates::new(vec![template(pattern.clone(), &[]), template(pattern, &["v1"])], 10);
    let place = |number: usize, name: &str| {
        templates.of_block(number).unwrap().places(name, &plan).pop().unwrap()
    };
    assert_eq!((place(0, "web").fixed, place(0, "web").key), (Some(0), plan.key(0)));
    assert_eq!(place(0, "web").target, web);
    assert_eq!(place(1, "web").fixed, None, "it wants a tag");
    assert_eq!(place(1, "web").target.selection.tags, ["v1"]);
    let keys = [place(0, "web").key, place(1, "web").key, place(0, "api").key, place(1, "api").key];
    assert_eq!(HashSet::<u128>::from_iter(keys).len(), 4);
}
