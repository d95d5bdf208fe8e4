//! `consul_balance least_time` and `hash`.

use std::collections::BTreeMap;
use std::time::Duration;

use nginx_consul_e2e::{Agent, Backend, Config, Instance, Manner, Nginx};

use crate::support::{balanced, register, register_one, unique, until_peers};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Who answers for each key.
pub(crate) fn owners(nginx: &Nginx, keys: std::ops::Range<u32>) -> BTreeMap<u32, String> {
    keys.map(|key| (key, nginx.outcome(&format!("/?key={key}")))).collect()
}

/// Registers backends under ids in the order of their names, with weights.
pub(crate) fn register_weighted(
    consul: &Agent,
    service: &str,
    backends: &[Backend],
    weights: &[u16],
) {
    for (backend, &weight) in backends.iter().zip(weights) {
        let id = format!("{service}-{}", backend.name());
        consul.register(&Instance::new(service, &id, backend.address()).weights(weight, 1));
    }
}

/// Stock nginx with the same servers.
pub(crate) fn stock(backends: &[Backend], weights: &[u16], method: &str) -> Nginx {
    let servers: String = backends
        .iter()
        .zip(weights)
        .map(|(backend, weight)| format!("server {} weight={weight};", backend.address()))
        .collect();
    Config::http(&format!(
        "upstream api {{ {method}; {servers} }}
         server {{ listen 127.0.0.1:%%PORT%%; location / {{ proxy_pass http://api; }} }}"
    ))
    .without_module()
    .start()
}

#[test]
fn hash_sends_each_key_where_stock_nginx_does() {
    let consul = Agent::shared();
    let backends = Backend::start_all(&NAMES);
    for weights in [[1; 5], [1, 2, 3, 1, 5]] {
        for method in ["hash $arg_key", "hash $arg_key consistent"] {
            let service = unique("web");
            register_weighted(&consul, &service, &backends, &weights);
            let ours = balanced(&consul, &service, "", method).workers(2).start();
            let theirs = stock(&backends, &weights, method);
            assert_eq!(owners(&ours, 0..200), owners(&theirs, 0..200), "{method} {weights:?}");
        }
    }
}

#[test]
fn a_peer_that_leaves_moves_only_its_own_keys_when_the_hash_is_consistent() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&NAMES);
    let ids = register(&consul, &service, &backends);
    let nginx = balanced(&consul, &service, "", "hash $arg_key consistent").workers(1).start();
    let before = owners(&nginx, 0..200);
    consul.deregister(&ids[2]);
    until_peers(&nginx, &service, &[&backends[0], &backends[1], &backends[3], &backends[4]]);
    let after = owners(&nginx, 0..200);
    let moved: Vec<_> = before.iter().filter(|(key, owner)| after[key] != **owner).collect();
    assert!(moved.len() > 10, "c had {} keys", moved.len());
    assert!(moved.iter().all(|(_, owner)| *owner == "c"), "{moved:?}");
    register_one(&consul, &service, &backends[2]);
    until_peers(&nginx, &service, &backends.iter().collect::<Vec<_>>());
    assert_eq!(owners(&nginx, 0..200), before, "its keys come back");
}

#[test]
fn a_key_goes_on_to_the_same_other_peer_while_its_own_fails() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&NAMES);
    register(&consul, &service, &backends);
    let weights = [1; 5];
    for method in ["hash $arg_key", "hash $arg_key consistent"] {
        let ours = balanced(&consul, &service, "", method).workers(1).start();
        let theirs = stock(&backends, &weights, method);
        backends[1].set(Manner::Reset);
        assert_eq!(owners(&ours, 0..100), owners(&theirs, 0..100), "{method}");
        assert!(!owners(&ours, 0..100).values().any(|name| name == "b"));
        backends[1].set(Manner::Well);
    }
}

#[test]
fn without_a_key_hash_is_round_robin() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends);
    let nginx = balanced(&consul, &service, "", "hash $arg_key consistent").workers(1).start();
    assert_eq!(nginx.sequence("/", 6), "a b c a b c");
}

#[test]
fn least_time_leaves_a_slow_peer_alone() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends);
    let nginx = balanced(&consul, &service, "", "least_time").workers(2).start();
    backends[0].set(Manner::Slow(Duration::from_millis(150)));
    // Each worker draws two of three; a is in most draws at first.
    for _ in 0..60 {
        nginx.get("/");
    }
    let slow = backends[0].requests();
    assert!((1..=5).contains(&slow), "the slow one had {slow} of 60 requests");
    let status = nginx.status();
    assert_eq!(status["upstreams"][0]["method"], "least_time", "{status}");
}

#[test]
fn least_time_does_not_take_a_quick_refusal_for_a_quick_answer() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let nginx = balanced(&consul, &service, "max_fails=0", "least_time").start();
    for backend in &backends {
        backend.set(Manner::Slow(Duration::from_millis(30)));
    }
    (0..10).for_each(|_| drop(nginx.get("/")));
    backends[0].set(Manner::Reset);
    let before = backends[0].requests();
    (0..20).for_each(|_| assert_eq!(nginx.get("/").status, 200));
    let refused = backends[0].requests() - before;
    assert!(refused < 20, "it was tried {refused} times for 20 requests");
}
