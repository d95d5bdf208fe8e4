//! Which peer a request goes to.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nginx_consul_e2e::http::{self, Response};
use nginx_consul_e2e::{Agent, Backend, Config, Instance, Manner, Nginx, Tally, wait};

use crate::support::{SERVER, SOON, balanced, gateway, register, tally, unique, until_peers};

/// Registers backends with weights, in the order of their names.
fn register_weighted(consul: &Agent, service: &str, backends: &[Backend], weights: &[u16]) {
    for (backend, &weight) in backends.iter().zip(weights) {
        let id = format!("{service}-{}", backend.name());
        consul.register(&Instance::new(service, &id, backend.address()).weights(weight, 1));
    }
}

#[test]
fn round_robin_has_nginxs_own_sequence() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register_weighted(&consul, &service, &backends, &[5, 1, 1]);
    let nginx = balanced(&consul, &service, "", "round_robin").start();
    assert_eq!(nginx.sequence("/", 14), "a a b a c a a a a b a c a a");
}

#[test]
fn round_robin_is_the_default() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register_weighted(&consul, &service, &backends, &[4, 2, 1]);
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").start();
    assert_eq!(nginx.sequence("/", 7), stock_sequence(&backends, &[4, 2, 1]));
}

/// What stock nginx does with the same servers and weights.
fn stock_sequence(backends: &[Backend], weights: &[u16]) -> String {
    let servers: String = backends
        .iter()
        .zip(weights)
        .map(|(backend, weight)| format!("server {} weight={weight};", backend.address()))
        .collect();
    let nginx = Config::http(&format!(
        "upstream api {{ {servers} }}
         server {{ listen 127.0.0.1:%%PORT%%; location / {{ proxy_pass http://api; }} }}"
    ))
    .without_module()
    .start();
    nginx.sequence("/", weights.iter().map(|&weight| usize::from(weight)).sum())
}

#[test]
fn round_robin_goes_on_evenly_after_a_change() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends[..2]);
    let nginx = balanced(&consul, &service, "", "round_robin").start();
    assert_eq!(tally(&nginx, "/", 5), "a: 3, b: 2");
    register(&consul, &service, &backends[2..]);
    until_peers(&nginx, &service, &[&backends[0], &backends[1], &backends[2]]);
    assert_eq!(tally(&nginx, "/", 9), "a: 3, b: 3, c: 3");
}

#[test]
fn the_share_of_a_peer_that_failed_is_spread_over_the_others() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c", "d"]);
    register(&consul, &service, &backends);
    for method in ["round_robin", "random", "least_conn"] {
        let nginx = balanced(&consul, &service, "", method).start();
        backends[0].set(Manner::Reset);
        wait::until("a has failed", SOON, || {
            nginx.get("/");
            !nginx.logged("temporarily disabled").is_empty()
        });
        let seen: Tally = (0..300).map(|_| nginx.outcome("/")).collect();
        // A hundred each, were it even; 150 for one if that took all of a's.
        let most = ["b", "c", "d"].map(|name| seen.of(name)).into_iter().max();
        assert!(seen.total() == 300 && most < Some(130), "{method}: {seen}");
        backends[0].release();
    }
}

#[test]
fn random_keeps_to_the_weights() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    let weights = [5_u16, 2, 1];
    register_weighted(&consul, &service, &backends, &weights);
    let nginx = balanced(&consul, &service, "", "random").workers(2).start();
    let n = 800;
    let seen: Tally = (0..n).map(|_| nginx.outcome("/")).collect();
    assert_eq!(seen.total(), n);
    let chi_square: f64 = ["a", "b", "c"]
        .iter()
        .zip(weights)
        .map(|(name, weight)| {
            let expected = f64::from(weight) / 8.0 * 800.0;
            let difference = f64::from(u32::try_from(seen.of(name)).unwrap_or(0)) - expected;
            difference * difference / expected
        })
        .sum();
    // Two degrees of freedom: by chance above 20 once in 22,000 runs.
    assert!(chi_square < 20.0, "{seen}: chi square {chi_square:.1}");
    // And below this in one of 100 runs of 800 only if the sequence isn't random at all.
    let sequence = nginx.sequence("/", 24);
    assert_ne!(sequence[..16], sequence[16..32], "a period of eight: {sequence}");
}

type Client = JoinHandle<io::Result<Response>>;

/// Eight requests, one after the other, that hang at whichever backend each is given.
fn eight_hanging(nginx: &Nginx, backends: &[Backend]) -> Vec<Client> {
    backends.iter().for_each(|backend| backend.set(Manner::Hold));
    let address = nginx.address();
    let one = |n| {
        let client = thread::spawn(move || http::get(address, "/"));
        wait::until("the request hangs", SOON, || {
            backends.iter().map(Backend::busy).sum::<usize>() == n
        });
        client
    };
    (1..=8).map(one).collect()
}

fn all_answered(clients: Vec<Client>) {
    for client in clients {
        assert!(client.join().expect("a client").is_ok_and(|answer| answer.status == 200));
    }
}

#[test]
fn least_conn_avoids_the_busy_one_over_all_workers() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let nginx = balanced(&consul, &service, "", "least_conn").workers(2).start();
    let clients = eight_hanging(&nginx, &backends);
    // One after the other, through whichever worker: always to the one that has less.
    assert_eq!((backends[0].busy(), backends[1].busy()), (4, 4));
    backends[1].release();
    wait::until("b is idle", SOON, || backends[1].busy() == 0);
    assert_eq!(tally(&nginx, "/", 40), "b: 40");
    backends[0].release();
    all_answered(clients);
    let seen: Tally = (0..40).map(|_| nginx.outcome("/")).collect();
    assert!(seen.of("a") > 0 && seen.of("b") > 0, "{seen}");
}

#[test]
fn least_conn_minds_the_weights() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_weighted(&consul, &service, &backends, &[3, 1]);
    let nginx = balanced(&consul, &service, "", "least_conn").start();
    let clients = eight_hanging(&nginx, &backends);
    let busy = format!("a: {}, b: {}", backends[0].busy(), backends[1].busy());
    backends.iter().for_each(Backend::release);
    all_answered(clients);
    assert_eq!(busy, "a: 6, b: 2");
}

#[test]
fn an_upstream_overrides_the_method_of_http() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends);
    let nginx = Config::http(&format!(
        "consul_server %%CONSUL%%; consul_balance random;
         upstream api {{ consul_dynamic %%SERVICE%%; consul_balance round_robin; }}
         upstream other {{ consul_dynamic %%SERVICE%%; }}
         server {{ listen 127.0.0.1:%%OTHER%%; location / {{ proxy_pass http://other; }} }}
         {SERVER}"
    ))
    .set("OTHER", nginx_consul_e2e::ports::free())
    .set("CONSUL", consul.url())
    .set("SERVICE", &service)
    .start();
    assert_eq!(nginx.sequence("/", 9), "a b c a b c a b c");
}

#[test]
fn each_method_serves_everyone_of_many() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let names: Vec<String> = (0..12).map(|n| format!("n{n:02}")).collect();
    let backends: Vec<Backend> = names.iter().map(|name| Backend::start(name)).collect();
    register(&consul, &service, &backends);
    for method in ["round_robin", "random", "least_conn"] {
        let nginx = balanced(&consul, &service, "", method).workers(2).start();
        let mut seen = Tally::default();
        let patience = Duration::from_secs(20);
        wait::until_eq(method, patience, &names.join(" "), || {
            seen.add(nginx.outcome("/"));
            seen.outcomes()
        });
    }
}
