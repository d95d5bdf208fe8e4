//! Where requests go when the first choice can't take them: backups, other datacenters, `server`
//! lines; and `consul_panic`.

use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::cluster::Datacenters;
use nginx_consul_e2e::tls::Authority;
use nginx_consul_e2e::{Agent, Backend, Config, Instance, Manner, Nginx, http, wait};

use crate::support::{
    SERVER, SOON, gateway, register, register_one, tally, unique, until_peers, until_served_by,
};

/// The tier in use of the only upstream, as the status page has it.
fn in_use(nginx: &Nginx) -> String {
    nginx.status()["upstreams"][0]["in_use"].to_string()
}

/// The tiers in order, with the usable ones of their peers.
fn tiers(nginx: &Nginx) -> String {
    let status = nginx.status();
    let tiers = status["upstreams"][0]["tiers"].as_array().cloned().unwrap_or_default();
    let tier = |tier: &serde_json::Value| {
        let name = tier["name"].as_str().unwrap_or("?").to_owned();
        format!("{name} {}/{}", tier["usable"], tier["peers"])
    };
    tiers.iter().map(tier).collect::<Vec<_>>().join(", ")
}

#[track_caller]
fn until_in_use(nginx: &Nginx, tier: &str) {
    let tier = if tier == "null" { tier.to_owned() } else { format!("\"{tier}\"") };
    wait::until_eq("the tier in use", SOON, &tier, || in_use(nginx));
}

fn register_backup(consul: &Agent, service: &str, backend: &Backend) -> String {
    let id = format!("{service}-{}", backend.name());
    consul.register(&Instance::new(service, &id, backend.address()).meta("nginx_backup", "true"));
    id
}

#[test]
fn a_backup_is_used_while_no_other_instance_is_usable() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "backup1", "backup2"]);
    let ids = register(&consul, &service, &backends[..2]);
    backends[2..].iter().for_each(|backend| drop(register_backup(&consul, &service, backend)));
    let upstream = "consul_dynamic %%SERVICE%% fail_timeout=2s;";
    let nginx = gateway(&consul.url(), &service, upstream).start();
    assert_eq!(tally(&nginx, "/", 8), "a: 4, b: 4");
    assert_eq!(in_use(&nginx), "\"instances\"");
    // One failed: the other takes all.
    backends[0].set(Manner::Reset);
    assert_eq!(tally(&nginx, "/", 8), "b: 8");
    // The other fails as well: the same request goes on to a backup, and the next ones evenly.
    backends[1].set(Manner::Reset);
    let first = nginx.outcome("/both");
    assert!(first.starts_with("backup"), "{first}");
    assert_eq!(tally(&nginx, "/both", 8), "backup1: 4, backup2: 4");
    assert_eq!(in_use(&nginx), "\"instances backup\"");
    let tried = [backends[0].requests(), backends[1].requests()];
    assert_eq!(tried, [4 + 1, 4 + 8 + 1], "each fails once");
    backends[..2].iter().for_each(Backend::release);
    until_served_by(&nginx, "/", "a b");
    assert_eq!(in_use(&nginx), "\"instances\"");
    // Gone from Consul: the same.
    ids.iter().for_each(|id| consul.deregister(id));
    until_served_by(&nginx, "/", "backup1 backup2");
    register_one(&consul, &service, &backends[0]);
    until_served_by(&nginx, "/", "a");
}

#[test]
fn backups_share_evenly_while_thirty_others_have_failed() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let names: Vec<String> = (0..34).map(|n| format!("n{n:02}")).collect();
    let backends: Vec<Backend> = names.iter().map(|name| Backend::start(name)).collect();
    let (primaries, backups) = backends.split_at(17);
    register(&consul, &service, primaries);
    backups.iter().for_each(|backend| drop(register_backup(&consul, &service, backend)));
    primaries.iter().for_each(|backend| backend.set(Manner::Reset));
    let upstream = "consul_dynamic %%SERVICE%% fail_timeout=1m;";
    let nginx = gateway(&consul.url(), &service, upstream).start();
    wait::until("all have failed", SOON, || {
        nginx.get("/");
        nginx.logged("temporarily disabled").len() == 17
    });
    let before: Vec<usize> = backups.iter().map(Backend::requests).collect();
    tally(&nginx, "/", 34);
    let each: Vec<usize> =
        backups.iter().zip(before).map(|(backend, before)| backend.requests() - before).collect();
    assert_eq!(each, [2; 17], "round robin over the backups");
}

#[test]
fn the_next_datacenter_is_used_while_the_first_has_no_usable_instance() {
    let (both, service) = (Datacenters::start(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "far"]);
    let upstream = "consul_dynamic %%SERVICE%% dc=dc1,dc2 fail_timeout=2s;";
    let nginx = gateway(&both.dc1.url(), &service, upstream).start();
    assert_eq!((tally(&nginx, "/", 2), in_use(&nginx)), ("502: 2".to_owned(), "null".to_owned()));
    register_one(&both.dc2, &service, &backends[2]);
    until_served_by(&nginx, "/", "far");
    until_in_use(&nginx, "dc2");
    let ids = register(&both.dc1, &service, &backends[..2]);
    until_served_by(&nginx, "/", "a b");
    until_in_use(&nginx, "dc1");
    // Both fail: the request that sees it is answered from afar.
    backends[..2].iter().for_each(|backend| backend.set(Manner::Reset));
    assert_eq!(tally(&nginx, "/", 8), "far: 8");
    until_in_use(&nginx, "dc2");
    assert_eq!(tiers(&nginx), "dc1 0/2, dc2 1/1");
    backends[..2].iter().for_each(Backend::release);
    until_served_by(&nginx, "/", "a b");
    // Deregistered.
    ids.iter().for_each(|id| both.dc1.deregister(id));
    until_served_by(&nginx, "/", "far");
    register_one(&both.dc1, &service, &backends[0]);
    until_served_by(&nginx, "/", "a");
    until_in_use(&nginx, "dc1");
    // Each datacenter is listed for itself.
    let status = nginx.status();
    let services = status["services"].as_array().expect("services");
    let listed: Vec<String> = services
        .iter()
        .map(|s| format!("{} {}", s["datacenter"], s["peers"].as_array().map_or(0, Vec::len)))
        .collect();
    assert_eq!(listed, ["\"dc1\" 1", "\"dc2\" 1"], "{status:#}");
}

/// The same names in both, as two installations from one template have them.
#[test]
fn instances_of_one_name_in_two_datacenters_are_two() {
    let (both, service) = (Datacenters::start(), unique("web"));
    let backends = Backend::start_all(&["near", "far"]);
    for (consul, backend) in [(&both.dc1, &backends[0]), (&both.dc2, &backends[1])] {
        let instance = Instance::new(&service, "web-1", backend.address());
        consul.register_external("node-1", "127.0.0.1", &instance);
    }
    let upstream = "consul_dynamic %%SERVICE%% dc=dc1,dc2 max_conns=1 fail_timeout=1m;";
    let nginx = gateway(&both.dc1.url(), &service, upstream).start();
    wait::until("both are there", SOON, || tiers(&nginx).contains("dc2 1/1"));
    assert_eq!(tally(&nginx, "/", 2), "near: 2");
    // Full is not failed, but no more usable.
    backends[0].set(Manner::Hold);
    let address = nginx.address();
    let client = thread::spawn(move || http::get(address, "/held"));
    wait::until("the request hangs", SOON, || backends[0].requests() == 3);
    assert_eq!(tally(&nginx, "/", 2), "far: 2");
    backends[0].set(Manner::Reset);
    assert_eq!(client.join().expect("a client").expect("an answer").outcome(), "far");
    assert_eq!(tally(&nginx, "/", 6), "far: 6");
    assert_eq!(backends[0].requests(), 3, "it failed once");
}

#[test]
fn a_datacenter_out_of_reach_harms_no_other() {
    let (mut both, service) = (Datacenters::start(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "far"]);
    register_one(&both.dc2, &service, &backends[2]);
    let ids = register(&both.dc1, &service, &backends[..1]);
    // The third was never there.
    let upstream = "consul_dynamic %%SERVICE%% dc=dc1,dc2,dc3; consul_retry 50ms 200ms;";
    let start = Instant::now();
    let nginx = gateway(&both.dc1.url(), &service, upstream).start();
    let line = nginx.wait_for_log("dc=dc3: HTTP 500");
    assert!(line.contains("No path to datacenter") && line.contains("[error]"), "{line}");
    assert!(start.elapsed() < Duration::from_secs(2), "a start took {:?}", start.elapsed());
    assert_eq!(tally(&nginx, "/", 4), "a: 4");
    wait::until("far is known", SOON, || tiers(&nginx).contains("dc2 1/1"));
    both.dc2.kill();
    nginx.wait_for_log(&format!("service \"{service}\" dc=dc2: HTTP 500"));
    for _ in 0..3 {
        let start = Instant::now();
        register_one(&both.dc1, &service, &backends[1]);
        until_served_by(&nginx, "/", "a b");
        both.dc1.deregister(&format!("{service}-b"));
        until_served_by(&nginx, "/", "a");
        assert!(start.elapsed() < Duration::from_secs(2), "seen after {:?}", start.elapsed());
    }
    // What was known of the other datacenter stays, and serves.
    both.dc1.deregister(&ids[0]);
    until_served_by(&nginx, "/", "far");
    // Told once for each, not at every pause.
    for datacenter in ["dc2", "dc3"] {
        let lines = nginx.logged(&format!("consul: service \"{service}\" dc={datacenter}: "));
        let errors = lines.iter().filter(|line| line.contains("[error]")).count();
        assert_eq!(errors, 1, "{lines:#?}");
    }
    both.dc2.start();
    register_one(&both.dc2, &service, &backends[2]);
    nginx.wait_for_log(&format!("service \"{service}\" dc=dc2: recovered after"));
    assert_eq!(nginx.logged("dc=dc1: HTTP").len(), 0);
}

/// nginx whose upstream has three `server` lines beside the service.
fn with_servers(consul: &Agent, service: &str, parameters: &str, servers: &[Backend]) -> Config {
    let lines: Vec<String> = servers.iter().map(|s| format!("server {};", s.address())).collect();
    let upstream = format!("consul_dynamic %%SERVICE%% {parameters}; {}", lines.join(" "));
    gateway(&consul.url(), service, &upstream)
}

#[test]
fn server_lines_take_what_all_instances_have_failed() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "fallback"]);
    register(&consul, &service, &backends[..2]);
    let nginx = with_servers(&consul, &service, "fail_timeout=2s", &backends[2..]).start();
    assert_eq!(tally(&nginx, "/", 8), "a: 4, b: 4");
    backends[0].set(Manner::Reset);
    assert_eq!(tally(&nginx, "/", 4), "b: 4");
    assert_eq!(backends[2].requests(), 0, "an instance is left");
    backends[1].set(Manner::Reset);
    assert_eq!(tally(&nginx, "/", 6), "fallback: 6");
    assert_eq!(in_use(&nginx), "\"servers\"");
    backends[..2].iter().for_each(Backend::release);
    until_served_by(&nginx, "/", "a b");
    assert_eq!(in_use(&nginx), "\"instances\"");
    assert_eq!(tiers(&nginx), "instances 2/2, servers null/null");
}

#[test]
fn every_server_line_is_tried_after_the_instances() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "s1", "s2", "s3"]);
    register(&consul, &service, &backends[..1]);
    let nginx = with_servers(&consul, &service, "fail_timeout=1m", &backends[1..]).start();
    backends[..3].iter().for_each(|backend| backend.set(Manner::Reset));
    assert_eq!(nginx.outcome("/all"), "s3");
    let line = nginx.access("/all", 1)[0].clone();
    assert!(line.ends_with("|502, 502, 502, 200"), "{line}");
    // The limit is that of the whole request.
    let limited = with_servers(&consul, &service, "fail_timeout=1m max_fails=0", &backends[1..])
        .file("server.conf", "proxy_next_upstream_tries 2;")
        .start();
    assert_eq!(limited.outcome("/two"), "502");
    let line = limited.access("/two", 1)[0].clone();
    assert!(line.ends_with("|502, 502"), "{line}");
}

#[test]
fn server_lines_and_instances_keep_their_connections() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "fallback"]);
    register(&consul, &service, &backends[..1]);
    let upstream = "consul_dynamic %%SERVICE%% fail_timeout=1s; server %%F%%; keepalive 8;";
    let nginx = gateway(&consul.url(), &service, upstream)
        .set("F", backends[1].address())
        .file("server.conf", "proxy_http_version 1.1; proxy_set_header Connection \"\";")
        .start();
    assert_eq!(tally(&nginx, "/", 6), "a: 6");
    backends[0].set(Manner::Reset);
    assert_eq!(tally(&nginx, "/", 6), "fallback: 6");
    assert_eq!(backends[1].connections(), 1);
    backends[0].release();
    until_served_by(&nginx, "/", "a");
    // A kept connection that turns out closed costs no answer, whoever gives it.
    for backend in &backends {
        backend.set(Manner::Stale);
    }
    for _ in 0..20 {
        let outcome = nginx.outcome("/");
        assert!(outcome == "a" || outcome == "fallback", "{outcome}");
    }
    let line = nginx.access("/", 20).join("\n");
    assert!(!line.contains("|502|"), "{line}");
}

#[test]
fn server_lines_are_reached_over_tls_and_resume_sessions() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let authority = Authority::new();
    let backends =
        ["a", "fallback"].map(|name| Backend::start_tls(name, authority.server(&["api.test"])));
    register(&consul, &service, &backends[..1]);
    let nginx = Config::http(&format!(
        "consul_server %%CONSUL%%;
         upstream api {{ consul_dynamic %%SERVICE%% fail_timeout=1m; server %%F%%; }}
         proxy_ssl_trusted_certificate %%PREFIX%%/ca.pem; proxy_ssl_verify on;
         proxy_ssl_name api.test; proxy_ssl_server_name on; proxy_set_header Connection close; {}",
        SERVER.replace("http://api", "https://api")
    ))
    .set("CONSUL", consul.url())
    .set("SERVICE", &service)
    .set("F", backends[1].address())
    .file("ca.pem", authority.pem())
    .start();
    assert_eq!(tally(&nginx, "/", 3), "a: 3");
    backends[0].set(Manner::Reset);
    assert_eq!(tally(&nginx, "/", 4), "fallback: 4");
    assert_eq!(backends[1].connections(), 4);
    assert_eq!(backends[1].resumed(), 3, "resumed sessions of the server line");
}

#[test]
fn below_the_share_of_consul_panic_failures_keep_nobody_out() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c", "d"]);
    register(&consul, &service, &backends);
    let upstream = "consul_dynamic %%SERVICE%% fail_timeout=1m; consul_panic 30%;";
    let nginx = gateway(&consul.url(), &service, upstream).start();
    let plain =
        gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%% fail_timeout=1m;").start();
    let until_failed = |nginx: &Nginx, count: usize| {
        wait::until("they have failed", SOON, || {
            nginx.get("/");
            nginx.logged("temporarily disabled").len() >= count
        });
    };
    // Half of them is more than 30 percent.
    backends[..2].iter().for_each(|backend| backend.set(Manner::Reset));
    until_failed(&nginx, 2);
    let before = backends[0].requests() + backends[1].requests();
    wait::holds("only the healthy answer", Duration::from_millis(2500), || {
        let outcome = nginx.outcome("/");
        outcome == "c" || outcome == "d"
    });
    let after = backends[0].requests() + backends[1].requests();
    assert_eq!(after, before, "requests to those that have failed");
    // A quarter is less.
    backends[2].set(Manner::Reset);
    until_failed(&nginx, 3);
    until_failed(&plain, 3);
    backends.iter().for_each(Backend::release);
    until_served_by(&nginx, "/", "a b c d");
    assert_eq!(nginx.status()["upstreams"][0]["panic"], true);
    assert_eq!(tally(&plain, "/", 20), "d: 20", "it is off by default");
    assert!(plain.status()["upstreams"][0]["panic"].is_null());
}

#[test]
fn an_instance_that_leaves_ends_what_it_has_begun() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    let ids = register(&consul, &service, &backends);
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%; keepalive 4;")
        .file("server.conf", "proxy_http_version 1.1; proxy_set_header Connection \"\";")
        .workers(2)
        .start();
    let address = nginx.address();
    backends[..2].iter().for_each(|backend| backend.set(Manner::Hold));
    let held = || backends[0].busy() + backends[1].busy();
    let mut clients = Vec::new();
    while backends[0].busy() == 0 || backends[1].busy() == 0 {
        clients.push(thread::spawn(move || http::get(address, "/size/5000")));
        wait::until("a request is answered or hangs", SOON, || {
            held() + clients.iter().filter(|client| client.is_finished()).count() == clients.len()
        });
    }
    let busy = [backends[0].busy(), backends[1].busy()];
    consul.set_maintenance(&ids[0], true);
    consul.deregister(&ids[1]);
    until_peers(&nginx, &service, &[&backends[2]]);
    let before = [backends[0].requests(), backends[1].requests()];
    assert_eq!(tally(&nginx, "/", 20), "c: 20");
    assert_eq!([backends[0].busy(), backends[1].busy()], busy, "what was begun is not cut");
    backends.iter().for_each(Backend::release);
    for client in clients {
        let answer = client.join().expect("a client").expect("an answer");
        assert_eq!((answer.status, answer.body.len()), (200, 5000));
    }
    // The connections that are free now are not used again.
    assert_eq!(tally(&nginx, "/", 20), "c: 20");
    assert_eq!([backends[0].requests(), backends[1].requests()], before);
    consul.set_maintenance(&ids[0], false);
    until_served_by(&nginx, "/", "a c");
}
