//! `consul_balance … reuse`: requests go where a connection is idle, and everybody gets its share.

use nginx_consul_e2e::{Agent, Backend, Instance, Nginx};

use super::upstream;
use crate::support::{register, unique};

/// What an instance may get more or fewer than the method alone would give it.
const MOST: usize = 16;

const NAMES: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

/// One worker that keeps three connections.
fn balanced(consul: &Agent, service: &str, method: &str) -> Nginx {
    let lines = "consul_dynamic %%SERVICE%%; consul_keepalive 3; consul_balance";
    upstream(&consul.url(), service, &format!("{lines} {method};")).workers(1).start()
}

/// New connections that so many requests took.
fn opened(nginx: &Nginx, backends: &[Backend], requests: usize) -> usize {
    let before: usize = backends.iter().map(Backend::connections).sum();
    nginx.sequence("/", requests);
    backends.iter().map(Backend::connections).sum::<usize>() - before
}

#[test]
fn a_few_connections_serve_many_instances_and_each_gets_its_share() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&NAMES);
    register(&consul, &service, &backends);
    let plain = balanced(&consul, &service, "round_robin");
    assert_eq!(opened(&plain, &backends, 60), 60, "their order needs a new one each time");
    drop(plain);
    for method in ["round_robin reuse", "random reuse", "least_conn reuse", "least_time reuse"] {
        let before: Vec<usize> = backends.iter().map(Backend::requests).collect();
        let nginx = balanced(&consul, &service, method);
        let few = opened(&nginx, &backends, 600);
        // Who answers fastest changes with what else the machine does, and so does the choice.
        let most = match method {
            "least_time reuse" => {
                opened(&balanced(&consul, &service, "least_time"), &backends, 600) / 2
            }
            _ => 120,
        };
        assert!(few < most, "{method}: {few} connections for 600 requests, not below {most}");
        assert_eq!(nginx.status()["upstreams"][0]["method"], method);
        if method == "round_robin reuse" {
            let got = backends.iter().zip(before).map(|(backend, n)| backend.requests() - n);
            let got: Vec<usize> = got.collect();
            assert!(got.iter().all(|n| n.abs_diff(50) <= MOST), "{got:?}");
        }
    }
}

#[test]
fn weights_stay_what_they_are() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    for (backend, weight) in backends.iter().zip([5u16, 1, 1]) {
        let id = format!("{service}-{}", backend.name());
        consul.register(&Instance::new(&service, &id, backend.address()).weights(weight, 1));
    }
    let lines = "consul_dynamic %%SERVICE%%; consul_keepalive 1; consul_balance round_robin reuse;";
    let nginx = upstream(&consul.url(), &service, lines).workers(1).start();
    let opened = opened(&nginx, &backends, 700);
    let got: Vec<usize> = backends.iter().map(Backend::requests).collect();
    let fits = got.iter().zip([500, 100, 100]).all(|(n, share)| n.abs_diff(share) <= MOST);
    assert!(fits, "{got:?}");
    assert!(opened < 140, "{opened} connections for 700 requests");
}

#[test]
fn a_change_of_the_set_forgets_no_turns() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c", "d"]);
    register(&consul, &service, &backends[..3]);
    let lines = "consul_dynamic %%SERVICE%%; consul_keepalive 1; consul_balance round_robin reuse;";
    let nginx = upstream(&consul.url(), &service, lines).workers(1).start();
    for _ in 0..6 {
        nginx.sequence("/", 40);
        let ids = register(&consul, &service, &backends[3..]);
        crate::support::until_peers(&nginx, &service, &backends.iter().collect::<Vec<_>>());
        consul.deregister(&ids[0]);
        crate::support::until_peers(&nginx, &service, &backends[..3].iter().collect::<Vec<_>>());
    }
    let got: Vec<usize> = backends[..3].iter().map(Backend::requests).collect();
    // The order begins somewhere else after each change, so each stretch may be off by one.
    assert!(got.iter().all(|n| n.abs_diff(80) <= MOST + 6), "{got:?}");
}

#[test]
fn where_http_says_so_for_all_a_block_without_connections_has_none_to_use_again() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends);
    let lines = "consul_dynamic %%SERVICE%%; } consul_balance round_robin reuse; \
                 upstream other { consul_dynamic %%SERVICE%%; consul_keepalive 2;";
    let nginx = upstream(&consul.url(), &service, lines).workers(1).start();
    let order = nginx.sequence("/", 6);
    assert_eq!(order[..5], order[6..], "{order}");
    let upstreams = nginx.status()["upstreams"].clone();
    let methods: Vec<_> = upstreams.as_array().unwrap().iter().map(|u| &u["method"]).collect();
    assert_eq!(methods, ["round_robin", "round_robin reuse"]);
}

#[test]
fn an_instance_that_fails_is_asked_no_more_though_a_connection_is_idle() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let lines = "consul_dynamic %%SERVICE%% fail_timeout=60s; consul_keepalive 8; \
                 consul_balance round_robin reuse;";
    let nginx = upstream(&consul.url(), &service, lines).workers(1).start();
    nginx.sequence("/", 20);
    backends[0].set(nginx_consul_e2e::Manner::Reset);
    let answers = nginx.sequence("/", 40);
    assert_eq!(answers, "b ".repeat(40).trim_end(), "the next one answers, and then always");
    let failed = backends[0].requests();
    nginx.sequence("/", 10);
    assert_eq!(backends[0].requests(), failed);
}

#[test]
fn the_same_limit_of_connections_holds() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&NAMES);
    register(&consul, &service, &backends);
    let nginx = balanced(&consul, &service, "random reuse");
    nginx.sequence("/", 100);
    nginx_consul_e2e::wait::until("three open connections", crate::support::SOON, || {
        super::open(&backends) <= 3
    });
    assert!(super::counted(&nginx, &service, "idle") <= 3);
}
