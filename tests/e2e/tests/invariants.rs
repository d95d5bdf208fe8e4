//! The design's invariants, as far as they show from outside.

use std::thread;
use std::time::Duration;

use nginx_consul_e2e::consul::Options;
use nginx_consul_e2e::fake_consul::{Answer, instance};
use nginx_consul_e2e::{
    Agent, Backend, Fault, Instance, Load, Manner, Nginx, Proxy, http, load, process, wait,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::methods::register_weighted;
use crate::support::{
    SOON, balanced, first_tries, follow, gateway, register, register_one, scripted, tally, unique,
    until_followed, until_peers, until_served_by,
};

/// A field of the peer that is instance `id`; null if there is none.
fn peer(nginx: &Nginx, service: &str, id: &str, field: &str) -> Value {
    let shown = nginx.service(service);
    let peers = shown["peers"].as_array().cloned().unwrap_or_default();
    peers.iter().find(|peer| peer["service_id"] == id).map_or(Value::Null, |p| p[field].clone())
}

#[test]
fn invariant_1_requests_never_wait_for_the_watcher() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").workers(2).start();
    until_served_by(&nginx, "/", "a");
    let zero = nginx.worker_zero();
    // The process that watches stands still, wherever it is; the other one serves.
    process::send(zero, Signal::STOP);
    wait::until("it stands still", SOON, || process::is_stopped(zero));
    let result = (0..20).map(|_| nginx.try_get("/").map(|answer| answer.outcome())).collect();
    process::send(zero, Signal::CONT);
    let outcomes: Vec<String> = std::io::Result::expect(result, "answers from the other worker");
    assert!(outcomes.iter().all(|outcome| outcome == "a"), "{outcomes:?}");
}

#[test]
fn invariant_1_and_6_no_request_fails_while_the_set_changes_all_the_time() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c", "d"]);
    register(&consul, &service, &backends[..2]);
    for method in ["round_robin", "random", "least_conn"] {
        let nginx = balanced(&consul, &service, "", method).workers(2).start();
        let generation = || nginx.service(&service)["generation"].as_u64().unwrap_or(0);
        let before = generation();
        let load = Load::start(nginx.address(), "/", 2, false);
        let mut n = 0;
        // Changes that come together are one generation.
        wait::until("twenty generations", Duration::from_secs(30), || {
            let id = register_one(&consul, &service, &backends[2 + n % 2]);
            consul.deregister(&id);
            n += 1;
            generation() >= before + 20
        });
        until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
        let seen = load.finish();
        assert_eq!(load::failures(&seen, &["a", "b", "c", "d"]), "", "{method}: {seen}");
    }
}

#[test]
fn invariant_2_a_request_sees_one_generation_to_its_end() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    let ids = register(&consul, &service, &backends[..2]);
    let nginx = follow(&consul.url(), &service);
    backends[0].set(Manner::Hold);
    let address = nginx.address();
    let client = thread::spawn(move || http::get(address, "/pinned"));
    wait::until("the request hangs at a", SOON, || backends[0].busy() == 1);
    // A hundred generations later nothing of its own is left.
    ids.iter().for_each(|id| consul.deregister(id));
    for _ in 0..100 {
        let id = register_one(&consul, &service, &backends[2]);
        consul.deregister(&id);
    }
    register_one(&consul, &service, &backends[2]);
    // A request before that would hang at a too.
    until_peers(&nginx, &service, &[&backends[2]]);
    until_served_by(&nginx, "/", "c");
    backends[0].set(Manner::Reset);
    let answer = client.join().expect("a client").expect("an answer");
    assert_eq!(answer.outcome(), "b", "the retry goes to the other one of its generation");
    let line = nginx.access("/pinned", 1).remove(0);
    let [a, b] = [backends[0].address(), backends[1].address()];
    assert_eq!(line, format!("/pinned|200|{a}, {b}|502, 200"));
}

/// nginx that has seen `a` fail, and leaves it alone for a minute.
fn after_a_failure(consul: &Agent, service: &str, backends: &[Backend]) -> Nginx {
    let upstream = "consul_dynamic %%SERVICE%% max_fails=1 fail_timeout=60s;";
    let nginx = gateway(&consul.url(), service, upstream).start();
    backends[0].set(Manner::Reset);
    assert_eq!(tally(&nginx, "/", 6), "b: 6");
    nginx
}

#[test]
fn invariant_3_counters_survive_updates_and_reloads() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    let ids = register(&consul, &service, &backends[..2]);
    let mut nginx = after_a_failure(&consul, &service, &backends);
    backends[0].set(Manner::Hold);
    backends[1].set(Manner::Hold);
    let address = nginx.address();
    let client = thread::spawn(move || http::get(address, "/"));
    wait::until("the request hangs at b", SOON, || backends[1].busy() == 1);
    let requests = backends[0].requests();
    register_one(&consul, &service, &backends[2]);
    until_peers(&nginx, &service, &[&backends[0], &backends[1], &backends[2]]);
    assert_eq!(peer(&nginx, &service, &ids[0], "fails"), 1);
    assert_eq!(peer(&nginx, &service, &ids[1], "in_flight"), 1);
    nginx.reload();
    assert_eq!(peer(&nginx, &service, &ids[0], "fails"), 1);
    assert_eq!(peer(&nginx, &service, &ids[1], "in_flight"), 1);
    backends[1].release();
    assert!(client.join().expect("a client").is_ok_and(|answer| answer.outcome() == "b"));
    wait::until_eq("in flight", SOON, &json!(0), || peer(&nginx, &service, &ids[1], "in_flight"));
    until_served_by(&nginx, "/", "b c");
    assert_eq!(backends[0].requests(), requests, "the failed one is still left alone");
}

#[test]
fn invariant_3_in_flight_never_leaks_also_when_a_worker_is_killed() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;")
        .workers(2)
        .allow("exited on signal 9")
        .allow("was locked by")
        .start();
    let in_flight = || {
        ids.iter().map(|id| peer(&nginx, &service, id, "in_flight").as_u64().unwrap_or(99)).sum()
    };
    backends.iter().for_each(|backend| backend.set(Manner::Hold));
    let load = Load::start(nginx.address(), "/", 6, false);
    wait::until_eq("in flight", SOON, &6, || -> u64 { in_flight() });
    for pid in nginx.workers() {
        process::send(pid, Signal::KILL);
    }
    // The clients come again, through the replacements; what the dead ones held is counted no more.
    wait::until("the clients were cut", SOON, || load.failures() >= 6);
    wait::until_eq("in flight", SOON, &6, || -> u64 { in_flight() });
    backends.iter().for_each(Backend::release);
    wait::until("answers flow", SOON, || load.sent() > load.failures());
    load.finish();
    wait::until_eq("in flight", SOON, &0, || -> u64 { in_flight() });
}

/// What a good Consul never says, with a word that the error has to have.
fn unbelievable(new: &Value) -> Vec<(&'static str, Answer)> {
    let cut = new.to_string();
    vec![
        ("X-Consul-Index", Answer { index: None, ..Answer::ok(49, new) }),
        ("500", Answer::error(500, "rpc error making call: EOF")),
        ("403", Answer::error(403, "ACL not found")),
        ("429", Answer::error(429, "")),
        ("404", Answer::error(404, "")),
        ("list of instances", Answer::ok(50, "[{\"Node\": ")),
        ("list of instances", Answer::ok(51, "<html>It works!</html>")),
        ("list of instances", Answer::ok(52, "{\"error\": \"no\"}")),
        ("list of instances", Answer::ok(53, "null")),
        ("list of instances", Answer::ok(54, "")),
        ("ended early", Answer { missing: 10, ..Answer::ok(55, &cut[..cut.len() / 2]) }),
        ("ended early", Answer { missing: 10, ..Answer::ok(56, &cut) }),
    ]
}

#[test]
fn invariant_4_only_a_believable_answer_changes_the_table() {
    let (consul, backends) = scripted();
    let nginx =
        gateway(&consul.url(), "web", "consul_dynamic %%SERVICE%%; consul_retry 10ms 30ms;")
            .start();
    until_served_by(&nginx, "/", "a");
    let generation = nginx.service("web")["generation"].clone();
    let new = json!([instance("b", backends[1].address())]);
    for (word, bad) in unbelievable(&new) {
        let before = consul.queries().len();
        let what = format!("{bad:?}");
        consul.script(move |_| Some(bad.clone()));
        wait::until(&what, SOON, || consul.queries().len() >= before + 3);
        wait::until(&format!("an error with {word:?} after {what}"), SOON, || {
            let shown = nginx.service("web")["last_error"].clone();
            shown.as_str().is_some_and(|text| text.contains(word))
        });
        assert_eq!(tally(&nginx, "/", 2), "a: 2", "{what}");
        assert_eq!(nginx.service("web")["generation"], generation, "{what}");
        consul.unscript();
        wait::until("good again", SOON, || nginx.service("web")["failures"] == 0);
    }
    consul.publish("web", 60, &new);
    until_served_by(&nginx, "/", "b");
}

#[test]
fn invariant_5_a_watch_survives_whatever_consul_does() {
    let mut consul = Options::server("s1").start();
    let service = unique("web");
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let proxy = Proxy::start(consul.address());
    let nginx = gateway(
        &proxy.url(),
        &service,
        "consul_dynamic %%SERVICE%%; consul_retry 20ms 100ms; consul_wait 2s;",
    )
    .start();
    until_served_by(&nginx, "/", "a");
    let failures = || nginx.service(&service)["failures"].as_u64();
    for fault in [Fault::Refuse, Fault::Cut(0), Fault::Cut(300), Fault::Refuse] {
        proxy.set(fault);
        proxy.cut_all();
        wait::until(&format!("failures under {fault:?}"), SOON, || failures() >= Some(3));
        assert_eq!(tally(&nginx, "/", 2), "a: 2");
        proxy.set(Fault::Pass);
        until_followed(&consul, &nginx, &service, &backends[1]);
    }
    consul.pause();
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
    consul.resume();
    register_one(&consul, &service, &backends[1]);
    wait::until_eq("who answers", Duration::from_secs(20), "a: 1, b: 1", || tally(&nginx, "/", 2));
}

#[test]
fn invariant_5_a_consul_that_never_answers_is_left_at_the_deadline() {
    let (consul, backends) = scripted();
    consul.hang();
    let nginx = gateway(
        &consul.url(),
        "web",
        "consul_dynamic %%SERVICE%%; consul_retry 20ms 100ms; consul_wait 1s;",
    )
    .start();
    until_served_by(&nginx, "/", "a");
    // The deadline is wait × 17/16 + 10 s.
    let hanging = wait::until_some("a query that hangs", SOON, || {
        consul.queries().iter().position(|query| query.index == Some(7))
    });
    let after = wait::until_some("another query", Duration::from_secs(20), || {
        consul.queries().get(hanging + 1).cloned()
    });
    let span = after.at - consul.queries()[hanging].at;
    let expected = Duration::from_millis(10_500)..Duration::from_secs(14);
    assert!(expected.contains(&span), "asked again after {span:?}");
    assert_eq!(after.index, None, "an index outlived its connection");
    consul.publish_one("web", 8, &backends[1]);
    until_served_by(&nginx, "/", "b");
}

#[test]
fn invariant_7_a_full_zone_is_a_loud_error_that_keeps_the_last_good_set() {
    let (consul, backends) = scripted();
    let nginx = nginx_consul_e2e::Config::http(&format!(
        "consul_zone consul 256k; consul_server %%CONSUL%%;
         upstream api {{ consul_dynamic web; consul_retry 50ms 200ms; }} {}",
        crate::support::SERVER
    ))
    .set("CONSUL", consul.url())
    .start();
    until_served_by(&nginx, "/", "a");
    let many: Vec<Value> = (0..20_000_u32)
        .map(|n| {
            let [_, _, high, low] = n.to_be_bytes();
            instance(&format!("i-{n}"), (std::net::Ipv4Addr::new(127, 9, high, low), 80).into())
        })
        .collect();
    consul.publish("web", 8, &json!(many));
    let line = nginx.wait_for_log("consul_zone");
    let loud = ["[error]", "[crit]"].iter().any(|level| line.contains(level));
    assert!(loud && line.contains("\"web\""), "{line}");
    assert_eq!(tally(&nginx, "/", 4), "a: 4");
    let shown = nginx.service("web")["last_error"].clone();
    assert!(shown.as_str().is_some_and(|text| text.contains("zone")), "{shown}");
    // What fits again is taken.
    let both = json!([instance("b", backends[1].address())]);
    consul.publish("web", 9, &both);
    until_served_by(&nginx, "/", "b");
}

#[test]
fn invariant_7_memory_doesnt_grow_with_the_number_of_changes() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let nginx = follow(&consul.url(), &service);
    let used = || nginx.status()["zone"]["used"].as_u64().expect("used");
    let change = |n: usize| {
        for _ in 0..n {
            let id = register_one(&consul, &service, &backends[1]);
            until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
            consul.deregister(&id);
            until_peers(&nginx, &service, &[&backends[0]]);
        }
    };
    // Until the history of changes is as long as it gets, with generations of two digits.
    change(10);
    let before = used();
    change(30);
    assert_eq!(used(), before, "bytes of the zone in use");
}

#[test]
fn invariant_8_the_same_answer_is_no_new_generation() {
    let consul = Options::dev().start();
    let service = unique("web");
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let nginx = follow(&consul.url(), &service);
    until_served_by(&nginx, "/", "a b");
    let shown = nginx.service(&service);
    let (generation, index) = (shown["generation"].clone(), shown["index"].as_u64());
    // Another check, of whatever result, moves the index and wakes the poll; peers stay the same.
    for n in 0..3 {
        let body = json!({
            "Name": format!("more {n}"), "TTL": "1h", "Status": "passing", "ServiceID": ids[0],
        });
        consul.put("/v1/agent/check/register", &body);
        wait::until("the poll returned", SOON, || {
            nginx.service(&service)["index"].as_u64() > index
        });
    }
    consul.register(&Instance::new(&service, &ids[1], backends[1].address()).meta("any", "new"));
    let meta = || consul.get(&format!("/v1/health/service/{service}")).to_string().contains("any");
    wait::until("the change is in the catalog", SOON, meta);
    assert_eq!(nginx.service(&service)["generation"], generation);
    assert_eq!(nginx.logged(&format!("\"{service}\": 2 peers")).len(), 1);
}

#[test]
fn invariant_9_first_tries_are_shared_by_weight_whatever_fails() {
    let consul = Agent::shared();
    let cases: [(&[u16], &str); 4] = [
        (&[1, 1], "a: 60, b: 60"),
        (&[1, 1, 1], "a: 40, b: 40, c: 40"),
        (&[2, 1], "a: 80, b: 40"),
        (&[3, 1, 2], "a: 60, b: 20, c: 40"),
    ];
    for (weights, expected) in cases {
        let service = unique("web");
        let backends = Backend::start_all(&["a", "b", "c"][..weights.len()]);
        register_weighted(&consul, &service, &backends, weights);
        for method in ["round_robin", "hash $arg_none", "hash $arg_none consistent"] {
            let nginx = balanced(&consul, &service, "max_fails=0", method)
                .file("server.conf", "proxy_next_upstream error timeout http_404;")
                .start();
            for (path, manner) in [("/404", Manner::Status(404)), ("/reset", Manner::Reset)] {
                backends[0].set(manner);
                let seen = first_tries(&nginx, path, 120, &backends);
                assert_eq!(seen.to_string(), expected, "{method}, {weights:?}, {path}");
            }
        }
    }
}

#[test]
fn invariant_9_a_kept_connection_that_was_closed_takes_no_turn() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    backends[0].set(Manner::Stale);
    for keepalive in ["keepalive 8;", "consul_keepalive 8;"] {
        let upstream = format!("consul_dynamic %%SERVICE%% max_fails=0; {keepalive}");
        let nginx = gateway(&consul.url(), &service, &upstream)
            .file("server.conf", crate::keepalive::ALIVE)
            .start();
        let seen = first_tries(&nginx, "/kept", 40, &backends);
        assert_eq!(seen.to_string(), "a: 20, b: 20", "{keepalive}");
        let lines = nginx.access("/kept", 40);
        assert!(lines.iter().any(|line| line.ends_with("|502, 200")), "{keepalive}: {lines:#?}");
    }
}
