//! Consul is slow, gone, or another one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nginx_consul_e2e::cluster::Cluster;
use nginx_consul_e2e::consul::Options;
use nginx_consul_e2e::ports::{self, BlackHole};
use nginx_consul_e2e::{Agent, Backend, Config, Fault, Load, Proxy, Tally, load, wait};

use serde_json::Value;

use crate::support::{
    SERVER, SOON, follow, gateway, register, register_one, tally, unique, until_peers,
    until_served_by,
};

/// Starts nginx with five services of a Consul that doesn't answer; returns how long the first
/// request took from the start, and how long one took after a reload.
fn start_with(consul: SocketAddr) -> (Duration, Duration) {
    let mut text =
        format!("consul_server http://{consul}; consul_init_timeout 1s; consul_wait 2s;\n");
    for n in 0..4 {
        text += &format!("upstream u{n} {{ consul_dynamic s{n}; }}\n");
    }
    text += &format!("upstream api {{ consul_dynamic web; }}\n{SERVER}");
    let start = Instant::now();
    let mut nginx = Config::http(&text).launch();
    let answer = wait::until_some("nginx listens", SOON, || nginx.try_get("/").ok());
    assert_eq!(answer.status, 502);
    let first = start.elapsed();
    wait::until("nginx has its worker", SOON, || nginx.workers().len() == 1);
    let start = Instant::now();
    nginx.reload();
    assert_eq!(nginx.get("/").status, 502);
    (first, start.elapsed())
}

/// What an init timeout of a second may make of a start, and of a reload.
const DELAYED: Duration = Duration::from_millis(1900);

/// Sees that neither takes longer with such a Consul; returns how long the start took.
#[track_caller]
fn assert_bounded(consul: SocketAddr) -> Duration {
    let mut start = Duration::ZERO;
    let longest = wait::at_best(DELAYED, 5, || {
        let (first, reload) = start_with(consul);
        start = first;
        first.max(reload)
    });
    assert!(longest < DELAYED, "start or reload took {longest:?}");
    start
}

#[test]
fn a_dead_consul_delays_start_and_reload_by_the_init_timeout_at_most() {
    assert_bounded(([127, 0, 0, 1], ports::free()).into());
}

#[test]
fn a_consul_that_never_answers_delays_start_and_reload_by_the_init_timeout_at_most() {
    // The kernel completes the connection, and nobody ever reads from it.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let start = assert_bounded(silent.local_addr().expect("its address"));
    assert!(start > Duration::from_millis(900), "gave up after {start:?}");
}

#[test]
fn a_consul_behind_a_black_hole_delays_start_and_reload_by_the_init_timeout_at_most() {
    let hole = BlackHole::open();
    assert_bounded(hole.address());
}

#[test]
fn a_consul_that_comes_late_is_followed() {
    let mut consul = Options::dev().start();
    let service = unique("web");
    let backend = Backend::start("a");
    consul.kill();
    let nginx =
        gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%; consul_retry 50ms 500ms;")
            .start();
    assert_eq!(nginx.get("/").status, 502);
    consul.start();
    register_one(&consul, &service, &backend);
    until_served_by(&nginx, "/", "a");
}

#[test]
fn traffic_goes_on_while_consul_is_gone_and_changes_flow_when_it_returns() {
    let mut consul = Options::server("s1").start();
    let service = unique("web");
    let backends = Backend::start_all(&["a", "b", "c"]);
    for id in register(&consul, &service, &backends[..2]) {
        // A restarted agent knows the state of a TTL check only if it was told once.
        consul.set_check(&id, "passing");
    }
    let nginx =
        gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%; consul_retry 50ms 500ms;")
            .start();
    assert_eq!(tally(&nginx, "/", 4), "a: 2, b: 2");
    consul.kill();
    nginx.wait_for_log("retrying in");
    assert_eq!(tally(&nginx, "/", 10), "a: 5, b: 5");
    consul.start();
    register_one(&consul, &service, &backends[2]);
    wait::until_eq("the change flows", Duration::from_secs(20), "a: 2, b: 2, c: 2", || {
        tally(&nginx, "/", 6)
    });
}

#[test]
fn a_restart_that_turns_the_index_back_hides_nothing() {
    let mut consul = Options::dev().start();
    let service = unique("web");
    let backends = Backend::start_all(&["a", "b"]);
    for _ in 0..20 {
        let id = register_one(&consul, &unique("noise"), &backends[0]);
        consul.deregister(&id);
    }
    register_one(&consul, &service, &backends[0]);
    let nginx = gateway(
        &consul.url(),
        &service,
        "consul_dynamic %%SERVICE%%; consul_retry 50ms 300ms; consul_wait 60s;",
    )
    .start();
    until_peers(&nginx, &service, &[&backends[0]]);
    let before = nginx.service(&service)["index"].as_u64().expect("an index");
    // A dev agent forgets everything, and counts from one again.
    consul.kill();
    consul.start();
    register_one(&consul, &service, &backends[1]);
    until_served_by(&nginx, "/", "b");
    let after = nginx.service(&service)["index"].as_u64().expect("an index");
    assert!(after < before, "the index went from {before} to {after}: nothing was tested");
}

#[test]
fn the_next_server_is_asked_when_one_fails() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register_one(&consul, &service, &backends[0]);
    let proxies = [Proxy::start(consul.address()), Proxy::start(consul.address())];
    let servers = format!("{} {}", proxies[0].url(), proxies[1].url());
    let nginx =
        gateway(&servers, &service, "consul_dynamic %%SERVICE%%; consul_retry 50ms 300ms;").start();
    until_peers(&nginx, &service, &[&backends[0]]);
    let until_in_use = |proxy: &Proxy| {
        wait::until_eq("the server in use", SOON, &Value::from(proxy.url()), || {
            nginx.service(&service)["server"].clone()
        });
    };
    until_in_use(&proxies[0]);
    assert_eq!(proxies[1].accepted(), 0, "asked the second without need");
    proxies[0].set(Fault::Refuse);
    register_one(&consul, &service, &backends[1]);
    until_served_by(&nginx, "/", "a b");
    until_in_use(&proxies[1]);
    // And back, when the second one fails.
    proxies[0].set(Fault::Pass);
    proxies[1].set(Fault::Refuse);
    register_one(&consul, &service, &backends[2]);
    until_served_by(&nginx, "/", "a b c");
}

#[test]
fn at_start_a_dead_first_server_doesnt_hide_the_second() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let servers = format!("http://127.0.0.1:{} {}", ports::free(), consul.url());
    let nginx = follow(&servers, &service);
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
}

#[test]
fn failures_are_retried_slower_and_slower() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let proxy = Proxy::start(consul.address());
    // Whatever is asked is cut before its first byte: each try is a connection that can be counted.
    proxy.set(Fault::Cut(0));
    let nginx =
        gateway(&proxy.url(), &service, "consul_dynamic %%SERVICE%%; consul_retry 100ms 800ms;")
            .start();
    let target = format!("/v1/health/service/{service}");
    wait::until("eight tries", Duration::from_secs(20), || proxy.requests(&target).len() >= 8);
    let tries: Vec<Instant> = proxy.requests(&target).iter().map(|r| r.at).collect();
    let whole = tries[7] - tries[0];
    // With full jitter the steps are random up to 100, 200, 400, 800, 800 … ms: no hammering, no
    // giving up.
    assert!(whole > Duration::from_millis(300), "eight tries within {whole:?}");
    drop(nginx);
}

#[test]
fn the_recipes_cluster_is_followed_when_an_agent_leaves_and_when_a_server_dies() {
    let mut cluster = Cluster::start();
    let service = unique("web");
    let backends = Backend::start_all(&["a", "b", "c"]);
    register_one(&cluster.joined[1], &service, &backends[0]);
    let id = register_one(&cluster.client, &service, &backends[1]);
    let servers = format!("{} {}", cluster.server.url(), cluster.joined[0].url());
    let nginx =
        gateway(&servers, &service, "consul_dynamic %%SERVICE%%; consul_retry 50ms 500ms;").start();
    // After an election the leader may look at who left only when it next looks at all members,
    // which is once a minute.
    let patience = Duration::from_secs(90);
    let served = |names: &str| {
        wait::until_eq("who answers", patience, names, || {
            (0..6).map(|_| nginx.outcome("/")).collect::<Tally>().outcomes()
        })
    };
    served("a b");
    let load = Load::start_paced(nginx.address(), "/", 1, false, Duration::from_millis(1));
    cluster.client.terminate();
    served("a");
    cluster.client.start();
    cluster.client.set_check(&id, "passing");
    served("a b");
    cluster.server.kill();
    register_one(&cluster.joined[1], &service, &backends[2]);
    served("a b c");
    assert_eq!(nginx.service(&service)["server"], cluster.joined[0].url());
    assert_eq!(load::failures(&load.finish(), &["a", "b", "c"]), "");
}
