//! With nginx's own balancing methods the limits of an instance are those of the status: over all
//! workers and upstreams, over reloads, and while it is away.

use std::thread;

use nginx_consul_e2e::{Agent, Backend, Config, Manner, Nginx, Tally, http, wait};
use serde_json::Value;

use crate::stock_methods::{METHODS, busy, hanging, picking, release, until_idle};
use crate::support::{SERVER, SOON, register, register_one, tally, unique, until_peers};

/// What the status says of an instance, as `busy 2`: its state, and requests in flight.
fn shown(nginx: &Nginx, service: &str, id: &str) -> String {
    let shown = nginx.service(service);
    let peers = shown["peers"].as_array().into_iter().flatten();
    let found = |peer: &&Value| peer["service_id"] == id;
    let text = |peer: &Value| {
        format!("{} {}", peer["state"].as_str().unwrap_or_default(), peer["in_flight"])
    };
    peers.into_iter().find(found).map_or_else(|| "gone".to_owned(), text)
}

/// How many instances the first tier of `api` can use.
fn usable(nginx: &Nginx) -> Value {
    nginx.status()["upstreams"][0]["tiers"][0]["usable"].clone()
}

/// Who answers requests with different keys.
fn keys(nginx: &Nginx, path: &str, n: usize) -> String {
    (0..n).map(|key| nginx.outcome(&format!("{path}?key={key}"))).collect::<Tally>().to_string()
}

#[test]
fn max_conns_counts_the_requests_of_all_workers() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    for method in METHODS {
        let nginx = picking(&consul, &service, method, "max_conns=2").workers(2).start();
        let clients = hanging(&nginx, &backends, 4);
        assert_eq!(busy(&backends), "a: 2, b: 2", "{method}");
        assert_eq!(shown(&nginx, &service, &ids[0]), "busy 2", "{method}");
        assert_eq!(usable(&nginx), 0, "{method}");
        // Also in the other worker.
        assert_eq!(keys(&nginx, "/", 20), "502: 20", "{method}");
        let metrics = nginx.get("/consul?format=prometheus").body;
        assert!(metrics.contains("state=\"busy\"} 2"), "{metrics}");
        release(&backends, clients);
        until_idle(&nginx);
        assert_eq!(shown(&nginx, &service, &ids[0]), "up 0", "{method}");
        let seen: Tally = (0..20).map(|key| nginx.outcome(&format!("/?key={key}"))).collect();
        assert_eq!(seen.of("a") + seen.of("b"), 20, "{method}: {seen}");
    }
}

#[test]
fn max_conns_counts_the_requests_of_the_configuration_before() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a"]);
    let ids = register(&consul, &service, &backends);
    for method in METHODS {
        let mut nginx = picking(&consul, &service, method, "max_conns=2").start();
        let clients = hanging(&nginx, &backends, 2);
        nginx.reload();
        assert_eq!(shown(&nginx, &service, &ids[0]), "busy 2", "{method}");
        assert_eq!(nginx.outcome("/"), "502", "{method}");
        release(&backends, clients);
        until_idle(&nginx);
        assert_eq!(tally(&nginx, "/", 4), "a: 4", "{method}");
    }
}

#[test]
fn an_instance_that_returns_has_its_requests_and_failures_as_the_status_says() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends[..1]);
    for method in METHODS {
        let parameters = "max_conns=2 max_fails=2 fail_timeout=1m";
        let nginx = picking(&consul, &service, method, parameters).start();
        let clients = hanging(&nginx, &backends[..1], 2);
        let flap = || {
            consul.deregister(&ids[0]);
            until_peers(&nginx, &service, &[]);
            assert_eq!(nginx.outcome("/"), "502", "{method}");
            register_one(&consul, &service, &backends[0]);
            until_peers(&nginx, &service, &[&backends[0]]);
        };
        for _ in 0..3 {
            flap();
            assert_eq!(shown(&nginx, &service, &ids[0]), "busy 2", "{method}");
            assert_eq!(nginx.outcome("/"), "502", "{method}");
        }
        release(&backends[..1], clients);
        until_idle(&nginx);
        assert_eq!(shown(&nginx, &service, &ids[0]), "up 0", "{method}");
        // Its failures keep it out beside another one.
        register_one(&consul, &service, &backends[1]);
        until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
        backends[0].set(Manner::Reset);
        wait::until("a has failed", SOON, || {
            assert_eq!(keys(&nginx, "/", 20), "b: 20", "{method}");
            shown(&nginx, &service, &ids[0]) == "unavail 0"
        });
        let failed = backends[0].requests();
        consul.deregister(&ids[0]);
        until_peers(&nginx, &service, &[&backends[1]]);
        assert_eq!(tally(&nginx, "/", 2), "b: 2", "{method}");
        register_one(&consul, &service, &backends[0]);
        until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
        assert_eq!(shown(&nginx, &service, &ids[0]), "unavail 0", "{method}");
        assert_eq!(keys(&nginx, "/", 40), "b: 40", "{method}");
        assert_eq!(backends[0].requests(), failed, "{method}");
        backends[0].release();
        consul.deregister(&format!("{service}-b"));
    }
}

#[test]
fn failures_count_over_all_workers_and_reloads() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    backends[0].set(Manner::Reset);
    for method in METHODS {
        let before = backends[0].requests();
        let parameters = "max_fails=2 fail_timeout=1m";
        let mut nginx = picking(&consul, &service, method, parameters).workers(2).start();
        let failed = || backends[0].requests() - before;
        wait::until("a has failed", SOON, || {
            assert_eq!(keys(&nginx, "/", 20), "b: 20", "{method}");
            shown(&nginx, &service, &ids[0]) == "unavail 0"
        });
        assert_eq!(nginx.logged("temporarily disabled").len(), 1, "{method}");
        assert_eq!(keys(&nginx, "/", 40), "b: 40", "{method}");
        assert_eq!((failed(), usable(&nginx)), (2, 1.into()), "{method}");
        nginx.reload();
        assert_eq!(keys(&nginx, "/", 40), "b: 40", "{method}");
        assert_eq!(shown(&nginx, &service, &ids[0]), "unavail 0", "{method}");
        assert_eq!(failed(), 2, "{method}");
    }
}

#[test]
fn one_request_at_a_time_probes_an_instance_that_has_failed() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    for method in METHODS {
        backends[0].set(Manner::Reset);
        let nginx = picking(&consul, &service, method, "fail_timeout=1s").workers(2).start();
        wait::until("a has failed", SOON, || {
            assert_eq!(keys(&nginx, "/", 20), "b: 20", "{method}");
            shown(&nginx, &service, &ids[0]) == "unavail 0"
        });
        backends[0].set(Manner::Hold);
        let (address, all) = (nginx.address(), || backends[0].busy());
        let mut clients = Vec::new();
        wait::until("one probes a", SOON, || {
            let path = format!("/?key={}", clients.len());
            clients.push(thread::spawn(move || http::get(address, &path)));
            all() != 0
        });
        let more = (0..40).map(|key| format!("/?key={key}"));
        clients.extend(more.map(|path| thread::spawn(move || http::get(address, &path))));
        wait::until("the others are answered", SOON, || {
            clients.iter().filter(|client| !client.is_finished()).count() == 1
        });
        assert_eq!(all(), 1, "{method}");
        release(&backends, clients);
        assert_eq!(shown(&nginx, &service, &ids[0]), "up 0", "{method}");
    }
}

#[test]
fn an_instance_that_recovers_in_one_upstream_is_used_at_once_in_all() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    for method in METHODS {
        backends[0].set(Manner::Reset);
        let nginx = Config::http(&format!(
            "consul_server %%CONSUL%%;
             upstream api {{ {method}; consul_dynamic %%SERVICE%% fail_timeout=1m; }}
             upstream probe {{ consul_dynamic %%SERVICE%% fail_timeout=1s; }} {SERVER}"
        ))
        .file("server.conf", "location /probe { proxy_pass http://probe; }")
        .set("CONSUL", consul.url())
        .set("SERVICE", &service)
        .start();
        wait::until("a has failed", SOON, || {
            assert_eq!(keys(&nginx, "/", 20), "b: 20", "{method}");
            shown(&nginx, &service, &ids[0]) == "unavail 0"
        });
        backends[0].release();
        wait::until("a recovers", SOON, || nginx.outcome("/probe") == "a");
        assert_eq!(shown(&nginx, &service, &ids[0]), "up 0", "{method}");
        wait::until("the method uses a", SOON, || keys(&nginx, "/", 40).contains("a: "));
    }
}

#[test]
fn an_instance_with_slow_start_is_shown_with_the_weight_that_it_gets() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends[..1]);
    let nginx = picking(&consul, &service, "least_conn", "slow_start=10m").start();
    let id = register_one(&consul, &service, &backends[1]);
    until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
    assert_eq!(tally(&nginx, "/", 10), "a: 5, b: 5");
    assert_eq!(shown(&nginx, &service, &id), "up 0");
}
