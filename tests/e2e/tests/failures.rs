//! nginx's own peer words: `max_fails`, `fail_timeout`, `max_conns`, `slow_start`.

use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::{Agent, Backend, Manner, http, wait};

use crate::support::{
    SOON, follow, gateway, register, register_one, tally, unique, until_peers, until_served_by,
};

#[test]
fn a_peer_that_failed_is_left_alone_for_the_fail_timeout() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let nginx =
        gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%% max_fails=2 fail_timeout=2s;")
            .start();
    backends[0].set(Manner::Reset);
    let start = Instant::now();
    assert_eq!(tally(&nginx, "/", 20), "b: 20");
    assert_eq!(backends[0].requests(), 2, "tries of the one that fails");
    backends[0].release();
    until_served_by(&nginx, "/", "a b");
    assert!(start.elapsed() > Duration::from_millis(900), "back after {:?}", start.elapsed());
}

#[test]
fn one_that_fails_is_tried_max_fails_times_over_all_workers() {
    for (parameters, workers, requests, tries) in [
        // nginx's defaults: one failure and ten seconds.
        ("", 1, 20, 1),
        ("max_fails=4 fail_timeout=60s", 4, 100, 4),
        // It is never out, and gets its turns; those of the requests that go on to `b` are theirs.
        ("max_fails=0", 1, 20, 10),
    ] {
        let (consul, service) = (Agent::shared(), unique("web"));
        let backends = Backend::start_all(&["a", "b"]);
        register(&consul, &service, &backends);
        let upstream = format!("consul_dynamic %%SERVICE%% {parameters};");
        let nginx = gateway(&consul.url(), &service, &upstream).workers(workers).start();
        backends[0].set(Manner::Reset);
        assert_eq!(tally(&nginx, "/", requests), format!("b: {requests}"), "{parameters}");
        assert_eq!(backends[0].requests(), tries, "{parameters}");
    }
}

#[test]
fn max_conns_bounds_what_a_peer_gets_over_all_workers() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%% max_conns=2;")
        .workers(2)
        .start();
    backends.iter().for_each(|backend| backend.set(Manner::Hold));
    let address = nginx.address();
    let clients: Vec<_> =
        (0..4).map(|_| thread::spawn(move || http::get(address, "/held"))).collect();
    wait::until("both are full", SOON, || backends.iter().all(|backend| backend.busy() == 2));
    assert_eq!(tally(&nginx, "/", 3), "502: 3");
    backends.iter().for_each(Backend::release);
    for client in clients {
        assert!(client.join().expect("a client").is_ok_and(|answer| answer.status == 200));
    }
    until_served_by(&nginx, "/", "a b");
    assert_eq!(backends.iter().map(Backend::most_busy).max(), Some(2));
}

#[test]
fn slow_start_lets_a_new_peer_warm_up() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let nginx =
        gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%% slow_start=3s;").start();
    assert_eq!(tally(&nginx, "/", 10), "a: 10");
    register_one(&consul, &service, &backends[1]);
    until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
    tally(&nginx, "/", 40);
    let early = backends[1].requests();
    assert!(early < 14, "{early} of the first 40 requests went to the cold one");
    wait::until("the new one has its half", SOON, || {
        let before = backends[1].requests();
        tally(&nginx, "/", 40);
        backends[1].requests() - before == 20
    });
}

#[test]
fn the_answers_of_a_peer_dont_count_as_failures() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let nginx = follow(&consul.url(), &service);
    backends[0].set(Manner::Status(500));
    assert_eq!(tally(&nginx, "/", 10), "500: 5, b: 5");
    assert_eq!(tally(&nginx, "/", 10), "500: 5, b: 5");
}
