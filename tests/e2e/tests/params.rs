//! What an instance says of itself in `Service.Meta`, in the words of nginx's `server`.

use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::{Agent, Backend, Instance, Manner, Nginx, http, wait};

use crate::support::{
    SOON, follow, gateway, register, register_one, tally, unique, until_peers, until_served_by,
};

/// Registers a backend as instance `<service>-<name>` with these pairs of metadata.
fn register_with(consul: &Agent, service: &str, backend: &Backend, meta: &[(&str, &str)]) {
    let id = format!("{service}-{}", backend.name());
    let instance = Instance::new(service, &id, backend.address());
    consul
        .register(&meta.iter().fold(instance, |instance, (key, value)| instance.meta(key, value)));
}

/// A field of what the status page says of an instance.
fn shown(nginx: &Nginx, service: &str, name: &str, field: &str) -> String {
    let status = nginx.service(service);
    let peers = status["peers"].as_array().cloned().unwrap_or_default();
    let id = format!("{service}-{name}");
    let peer = peers.iter().find(|peer| peer["service_id"] == *id);
    peer.map_or_else(|| "not listed".to_owned(), |peer| peer[field].to_string())
}

#[track_caller]
fn until_shown(nginx: &Nginx, service: &str, name: &str, field: &str, value: &str) {
    wait::until_eq(field, SOON, value, || shown(nginx, service, name, field));
}

#[test]
fn nginx_weight_is_the_weight_in_place_of_consuls() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let id = format!("{service}-a");
    let heavy = Instance::new(&service, &id, backends[0].address()).weights(50, 1);
    consul.register(&heavy.meta("nginx_weight", "3"));
    register_one(&consul, &service, &backends[1]);
    let nginx = follow(&consul.url(), &service);
    assert_eq!(tally(&nginx, "/", 8), "a: 6, b: 2");
    register_with(&consul, &service, &backends[0], &[("nginx_weight", "1")]);
    until_shown(&nginx, &service, "a", "weight", "1");
    assert_eq!(tally(&nginx, "/", 8), "a: 4, b: 4");
    // Without a word of the instance it is Consul's weight.
    consul.register(&Instance::new(&service, &id, backends[0].address()).weights(7, 1));
    until_shown(&nginx, &service, "a", "weight", "7");
    assert_eq!(tally(&nginx, "/", 8), "a: 7, b: 1");
}

#[test]
fn nginx_max_fails_is_the_instances_own() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register_with(&consul, &service, &backends[0], &[("nginx_max_fails", "3")]);
    register_with(&consul, &service, &backends[1], &[("nginx_max_fails", "0")]);
    register_one(&consul, &service, &backends[2]);
    let nginx =
        gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%% max_fails=2 fail_timeout=1m;")
            .start();
    backends[0].set(Manner::Reset);
    // It has the first attempt of one request in three; the next one goes to either of the others.
    assert!(!tally(&nginx, "/", 9).contains("a:"));
    assert_eq!(tally(&nginx, "/", 30), "b: 15, c: 15");
    assert_eq!(backends[0].requests(), 3, "tries of the one that says 3");
    backends[1].set(Manner::Reset);
    let before = backends[1].requests();
    assert_eq!(tally(&nginx, "/", 10), "c: 10");
    assert_eq!(backends[1].requests() - before, 5, "it says 0 and is never out");
    assert_eq!(shown(&nginx, &service, "b", "state"), "\"up\"");
    // `c` says nothing, so it is out after the two of the block.
    backends[1].release();
    backends[2].set(Manner::Reset);
    let before = backends[2].requests();
    tally(&nginx, "/", 20);
    assert_eq!(backends[2].requests() - before, 2, "tries of the one that says nothing");
}

#[test]
fn a_change_of_the_metadata_needs_no_reload_and_forgets_no_failure() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let upstream = "consul_dynamic %%SERVICE%% max_fails=2 fail_timeout=1m;";
    let nginx = gateway(&consul.url(), &service, upstream).start();
    let workers = nginx.workers();
    backends[0].set(Manner::Reset);
    assert_eq!(tally(&nginx, "/", 20), "b: 20");
    assert_eq!(backends[0].requests(), 2);
    assert_eq!(shown(&nginx, &service, "a", "state"), "\"unavail\"");
    register_with(&consul, &service, &backends[0], &[("nginx_max_fails", "4")]);
    until_shown(&nginx, &service, "a", "state", "\"up\"");
    assert_eq!(tally(&nginx, "/", 20), "b: 20");
    assert_eq!(backends[0].requests(), 4, "the two failures from before count");
    assert_eq!(shown(&nginx, &service, "a", "fails"), "4");
    nginx.wait_for_log(&format!("service \"{service}\": 2 peers (+0 -0 ~1), index"));
    assert_eq!(nginx.workers(), workers);
}

#[test]
fn nginx_fail_timeout_is_the_instances_own() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register_with(&consul, &service, &backends[0], &[("nginx_fail_timeout", "1s")]);
    register(&consul, &service, &backends[1..]);
    let nginx =
        gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%% fail_timeout=1h;").start();
    backends[..2].iter().for_each(|backend| backend.set(Manner::Reset));
    assert_eq!(tally(&nginx, "/", 20), "c: 20");
    backends.iter().for_each(Backend::release);
    until_served_by(&nginx, "/", "a c");
    assert_eq!(backends[1].requests(), 1, "the other one is out for the hour of the block");
}

#[test]
fn nginx_max_conns_is_the_instances_own() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_with(&consul, &service, &backends[0], &[("nginx_max_conns", "1")]);
    register_one(&consul, &service, &backends[1]);
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%% max_conns=3;").start();
    backends.iter().for_each(|backend| backend.set(Manner::Hold));
    let address = nginx.address();
    let clients: Vec<_> =
        (0..4).map(|_| thread::spawn(move || http::get(address, "/held"))).collect();
    wait::until("all hang", SOON, || backends[0].busy() == 1 && backends[1].busy() == 3);
    assert_eq!(tally(&nginx, "/", 2), "502: 2");
    backends.iter().for_each(Backend::release);
    for client in clients {
        assert!(client.join().expect("a client").is_ok_and(|answer| answer.status == 200));
    }
    until_served_by(&nginx, "/", "a b");
}

#[test]
fn nginx_slow_start_is_the_instances_own() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "cold", "warm"]);
    register_one(&consul, &service, &backends[0]);
    let nginx = follow(&consul.url(), &service);
    register_with(&consul, &service, &backends[1], &[("nginx_slow_start", "30s")]);
    register_one(&consul, &service, &backends[2]);
    until_peers(&nginx, &service, &backends.iter().collect::<Vec<_>>());
    tally(&nginx, "/", 90);
    let seen = (backends[1].requests(), backends[2].requests());
    assert!(seen.0 < 15 && seen.1 >= 30, "(cold, warm) of 90: {seen:?}");
    // The start was, whatever its length is now.
    register_with(&consul, &service, &backends[1], &[("nginx_slow_start", "1ms")]);
    wait::until("it has its third", SOON, || {
        let before = backends[1].requests();
        tally(&nginx, "/", 30);
        backends[1].requests() - before == 10
    });
}

#[test]
fn an_instance_that_recovers_starts_slowly_too() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let upstream = "consul_dynamic %%SERVICE%% fail_timeout=1s slow_start=8s;";
    let nginx = gateway(&consul.url(), &service, upstream).start();
    // Those that were there when nginx started are warm.
    assert_eq!(tally(&nginx, "/", 20), "a: 10, b: 10");
    backends[0].set(Manner::Reset);
    assert_eq!(tally(&nginx, "/", 20), "b: 20");
    backends[0].release();
    wait::until("a is tried again", SOON, || nginx.outcome("/") == "a");
    let start = Instant::now();
    let before = backends[0].requests();
    tally(&nginx, "/", 100);
    let early = backends[0].requests() - before;
    assert!(early < 30 || start.elapsed() > Duration::from_secs(3), "{early} of 100");
    wait::until("it has its half", Duration::from_secs(20), || {
        let before = backends[0].requests();
        tally(&nginx, "/", 40);
        backends[0].requests() - before == 20
    });
}

#[test]
fn nginx_down_keeps_an_instance_out_until_it_says_otherwise() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_with(&consul, &service, &backends[0], &[("nginx_down", "true")]);
    register_one(&consul, &service, &backends[1]);
    let nginx = follow(&consul.url(), &service);
    assert_eq!(tally(&nginx, "/", 10), "b: 10");
    assert_eq!(shown(&nginx, &service, "a", "state"), "\"down\"");
    // Not even when there is no other.
    consul.deregister(&format!("{service}-b"));
    until_served_by(&nginx, "/", "502");
    register_with(&consul, &service, &backends[0], &[("nginx_down", "false")]);
    until_served_by(&nginx, "/", "a");
    assert_eq!(shown(&nginx, &service, "a", "state"), "\"up\"");
}

#[test]
fn a_bad_value_is_named_once_and_costs_nothing_but_itself() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    let bad = [
        ("nginx_weight", "heavy"),
        ("nginx_max_fails", "-1"),
        ("nginx_backup", "yes"),
        ("nginx_max_conns", "1"),
    ];
    register_with(&consul, &service, &backends[0], &bad);
    register_with(&consul, &service, &backends[1], &[("nginx_wieght", "2"), ("team", "red")]);
    let nginx = follow(&consul.url(), &service);
    assert_eq!(tally(&nginx, "/", 10), "a: 5, b: 5");
    let node = consul.node();
    let told = |name: &str, reason: &str| {
        let line = format!(
            "consul: service \"{service}\": instance \"{service}-{name}\" on node \"{node}\" \
             ignored: {reason}"
        );
        nginx.wait_for_log(&line)
    };
    for (key, value) in &bad[..3] {
        let line = told("a", &format!("invalid value \"{value}\" of \"{key}\" in Service.Meta"));
        assert!(line.contains("[warn]"), "{line}");
    }
    told("b", "unknown parameter \"nginx_wieght\" in Service.Meta");
    // The good one of the four holds.
    backends[0].set(Manner::Hold);
    let address = nginx.address();
    let clients = [(); 2].map(|()| thread::spawn(move || http::get(address, "/held")));
    wait::until("one of two hangs at a", SOON, || backends[0].requests() == 6);
    assert_eq!(tally(&nginx, "/", 10), "b: 10");
    backends[0].release();
    for client in clients {
        assert!(client.join().expect("a client").is_ok_and(|answer| answer.status == 200));
    }
    // Further answers don't say it again.
    register_one(&consul, &service, &backends[2]);
    until_peers(&nginx, &service, &backends.iter().collect::<Vec<_>>());
    assert_eq!(nginx.logged(" ignored: ").len(), 4, "{:#?}", nginx.logged(" ignored: "));
}

#[test]
fn hostile_metadata_is_told_shortly_and_printably() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    let long = "9".repeat(500);
    let pairs = [("nginx_weight", long.as_str()), ("nginx_max_fails", "\u{1b}[31mred\nline")];
    register_with(&consul, &service, &backend, &pairs);
    let nginx = follow(&consul.url(), &service);
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
    nginx.wait_for_log("of \"nginx_max_fails\" in Service.Meta");
    let lines = nginx.logged(" ignored: ");
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines.iter().all(|line| line.len() < 500 && !line.contains('\u{1b}')), "{lines:#?}");
}

#[test]
fn a_reload_with_other_parameters_keeps_the_counters() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let upstream = "consul_dynamic %%SERVICE%% max_fails=2 fail_timeout=1m;";
    let mut nginx = gateway(&consul.url(), &service, upstream).start();
    backends[0].set(Manner::Reset);
    assert_eq!(tally(&nginx, "/", 20), "b: 20");
    let counted = |field: &str| shown(&nginx, &service, "a", field);
    assert_eq!((counted("picks"), counted("fails")), ("2".to_owned(), "2".to_owned()));
    nginx.rewrite(|text| text.replace("max_fails=2 fail_timeout=1m", "max_fails=3 slow_start=1s"));
    nginx.reload_and_wait();
    assert_eq!(tally(&nginx, "/", 20), "b: 20");
    assert_eq!(backends[0].requests(), 3, "two failures from before the reload, one after it");
    let counted = |field: &str| shown(&nginx, &service, "a", field);
    assert_eq!((counted("picks"), counted("fails")), ("3".to_owned(), "3".to_owned()));
    assert_eq!(counted("state"), "\"unavail\"");
}
