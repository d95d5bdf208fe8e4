//! The loop of a watch, against answers that a real Consul gives only in rare moments.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nginx_consul_e2e::fake_consul::{Answer, Query, instance};
use nginx_consul_e2e::{Backend, Config, FakeConsul, Nginx, wait};
use serde_json::json;

use crate::support::{SERVER, SOON, gateway, scripted, tally, until_served_by};

fn follow(consul: &FakeConsul) -> Nginx {
    gateway(&consul.url(), "web", "consul_dynamic %%SERVICE%%; consul_retry 50ms 200ms;").start()
}

/// The queries since the first `n`, once `found` is among them.
fn queries_until(consul: &FakeConsul, n: usize, found: impl Fn(&Query) -> bool) -> Vec<Query> {
    wait::until_some("the query", SOON, || {
        let queries = consul.queries().split_off(n);
        queries.iter().any(&found).then_some(queries)
    })
}

#[test]
fn a_lower_index_starts_over_without_one() {
    let consul = FakeConsul::start();
    let backends = Backend::start_all(&["a", "b"]);
    consul.publish_one("web", 500, &backends[0]);
    let nginx = follow(&consul);
    queries_until(&consul, 0, |query| query.index == Some(500));
    let before = consul.queries().len();
    consul.publish_one("web", 20, &backends[1]);
    until_served_by(&nginx, "/", "b");
    let queries = queries_until(&consul, before, |query| query.index == Some(20));
    assert_eq!(queries[0].index, None, "{queries:#?}");
}

#[test]
fn an_early_return_with_the_same_index_starts_over_without_one() {
    let consul = FakeConsul::start();
    let backends = Backend::start_all(&["a", "b"]);
    consul.publish_one("web", 20, &backends[0]);
    let nginx = follow(&consul);
    queries_until(&consul, 0, |query| query.index == Some(20));
    // After a snapshot was restored the blocked query returns old data and the old index, and only
    // a query without index sees the new state.
    let before = consul.queries().len();
    let old = json!([instance("a", backends[0].address())]).to_string();
    let new = json!([instance("b", backends[1].address())]).to_string();
    consul.script(move |query| match query.index {
        Some(20) => Some(Answer::ok(20, &old)),
        None => Some(Answer::ok(10, &new)),
        Some(_) => None,
    });
    until_served_by(&nginx, "/", "b");
    let queries = consul.queries().split_off(before);
    assert_eq!(queries[0].index, None, "{queries:#?}");
}

#[test]
fn an_index_of_zero_counts_as_one() {
    let consul = FakeConsul::start();
    let backend = Backend::start("a");
    let body = json!([instance("a", backend.address())]).to_string();
    consul.script(move |query| (query.index != Some(1)).then(|| Answer::ok(0, &body)));
    consul.publish("web", 1, &json!([]));
    let nginx = follow(&consul);
    until_served_by(&nginx, "/", "a");
    let queries = queries_until(&consul, 0, |query| query.index.is_some());
    assert!(queries.iter().all(|query| query.index != Some(0)), "{queries:#?}");
}

#[test]
fn the_index_of_an_error_is_not_used() {
    let consul = FakeConsul::start();
    let backend = Backend::start("a");
    consul.publish_one("web", 300, &backend);
    let nginx = follow(&consul);
    queries_until(&consul, 0, |query| query.index == Some(300));
    let before = consul.queries().len();
    consul.script(|_| Some(Answer::error(500, "No cluster leader")));
    wait::until("two tries", SOON, || consul.queries().len() >= before + 2);
    consul.unscript();
    let queries = queries_until(&consul, before, |query| query.index == Some(300));
    let used: Vec<_> = queries.iter().filter_map(|query| query.index).collect();
    assert_eq!(used, [300], "{queries:#?}");
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
}

#[test]
fn an_index_that_runs_away_under_the_same_content_is_slowed_down() {
    let consul = FakeConsul::start();
    let backend = Backend::start("a");
    let body = json!([instance("a", backend.address())]).to_string();
    let index = AtomicU64::new(10);
    consul.script(move |_| Some(Answer::ok(index.fetch_add(1, Ordering::Relaxed), &body)));
    let nginx = follow(&consul);
    until_served_by(&nginx, "/", "a");
    let generation = nginx.service("web")["generation"].clone();
    assert_no_hammering(&consul);
    assert_eq!(nginx.service("web")["generation"], generation);
}

/// Sees that queries don't come without end, as they would if each answer were asked for at once.
fn assert_no_hammering(consul: &FakeConsul) {
    let before = consul.queries().len();
    let span = Duration::from_secs(2);
    wait::holds("fewer than 40 queries in two seconds", span, || {
        consul.queries().len() < before + 40
    });
}

#[test]
fn a_body_of_sixteen_mebibytes_is_taken() {
    let consul = FakeConsul::start();
    let backend = Backend::start("a");
    // All at the same address: one peer, in an answer of 20,000 instances.
    let mut all = vec![instance("a", backend.address())];
    let padding = "x".repeat(500);
    for n in 1..20_000 {
        let mut one = instance(&format!("a-{n}"), backend.address());
        one["Node"]["Meta"] = json!({ "padding": padding });
        all.push(one);
    }
    let body = json!(all).to_string();
    assert!(body.len() > 13 << 20 && body.len() <= 16 << 20, "{} bytes", body.len());
    let body = body.clone() + &" ".repeat((16 << 20) - body.len());
    consul.publish_text("web", 7, body);
    let nginx = gateway(&consul.url(), "web", "consul_dynamic web;").start();
    wait::until_eq("who answers", Duration::from_secs(30), "a: 2", || tally(&nginx, "/", 2));
}

#[test]
fn twenty_thousand_instances_at_as_many_addresses_are_peers() {
    let consul = FakeConsul::start();
    let all: Vec<_> = (0..20_000_u32)
        .map(|n| {
            let [_, _, high, low] = n.to_be_bytes();
            let ip = std::net::Ipv4Addr::new(127, 1, high, low);
            instance(&format!("i-{n:05}"), (ip, 8080).into())
        })
        .collect();
    consul.publish("web", 7, &json!(all));
    let nginx = Config::http(&format!(
        "consul_server %%CONSUL%%; consul_zone consul 64m;
         upstream api {{ consul_dynamic web; }} {SERVER}"
    ))
    .set("CONSUL", consul.url())
    .start();
    wait::until_eq("peers", Duration::from_secs(30), &20_000, || {
        nginx.service("web")["peers"].as_array().map_or(0, Vec::len)
    });
}

#[test]
fn a_longer_body_than_allowed_is_an_error_that_keeps_the_last_good_set() {
    let (consul, backends) = scripted();
    let nginx = gateway(
        &consul.url(),
        "web",
        "consul_dynamic web; consul_max_body_size 8k; consul_retry 50ms 200ms;",
    )
    .start();
    queries_until(&consul, 0, |query| query.index == Some(7));
    let body = json!([instance("b", backends[1].address())]).to_string();
    consul.publish_text("web", 8, body.clone() + &" ".repeat(9000 - body.len()));
    let line = nginx.wait_for_log("retrying in");
    assert!(line.contains("[error]") && line.contains("8192"), "{line}");
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
    consul.publish_one("web", 9, &backends[1]);
    until_served_by(&nginx, "/", "b");
}

#[test]
fn an_empty_answer_that_stays_is_believed() {
    let consul = FakeConsul::start();
    let backend = Backend::start("a");
    consul.publish_one("web", 7, &backend);
    let nginx = follow(&consul);
    until_served_by(&nginx, "/", "a");
    consul.publish("web", 8, &json!([]));
    until_served_by(&nginx, "/", "502");
}
