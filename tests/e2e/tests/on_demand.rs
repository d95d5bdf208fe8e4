//! Services that requests name: `consul_dynamic $service`.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::load::Load;
use nginx_consul_e2e::proxy::{Fault, Proxy};
use nginx_consul_e2e::{Agent, Backend, Config, Instance, Nginx, Tally, wait};
use serde_json::Value;

use crate::support::{SERVER, SOON, gateway, register_one, tally, unique, until_served_by};

mod flood;
mod hung;
mod life;
mod reloads;
mod several;

/// nginx whose requests name the service by `?s=`; `lines` are those of its upstream.
fn by_argument(consul: &str, lines: &str) -> Config {
    gateway(consul, "unused", &format!("consul_dynamic $arg_s; {lines}"))
}

fn path(service: &str) -> String {
    format!("/?s={service}")
}

/// The services that requests have named, sorted.
fn named(nginx: &Nginx) -> Vec<String> {
    let status = nginx.status();
    let services = status["on_demand"]["services"].as_array().expect("named services");
    let mut names: Vec<String> =
        services.iter().map(|s| s["service"].as_str().expect("a name").to_owned()).collect();
    names.sort_unstable();
    names
}

/// A new service with one backend of the same name.
fn new_service(consul: &Agent, name: &str) -> (String, Backend) {
    let service = unique(name);
    let backend = Backend::start(&service);
    register_one(consul, &service, &backend);
    (service, backend)
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
}

#[test]
fn a_service_registered_a_moment_ago_is_served_on_its_first_request() {
    let consul = Agent::shared();
    let nginx = by_argument(&consul.url(), "").workers(2).start();
    for _ in 0..3 {
        let (service, _backend) = new_service(&consul, "new");
        assert_eq!(nginx.outcome(&path(&service)), service);
        assert_eq!(tally(&nginx, &path(&service), 8), format!("{service}: 8"));
    }
}

#[test]
fn two_services_of_a_block_never_see_each_others_peers() {
    let consul = Agent::shared();
    let (one, _a) = new_service(&consul, "one");
    let (two, _b) = new_service(&consul, "two");
    let nginx = by_argument(&consul.url(), "keepalive 8;").workers(2).start();
    let outcomes: Tally = (0..50)
        .flat_map(|_| [&one, &two])
        .map(|service| format!("{service} by {}", nginx.outcome(&path(service))))
        .collect();
    assert_eq!(outcomes.to_string(), format!("{one} by {one}: 50, {two} by {two}: 50"));
    assert_eq!(named(&nginx), [one, two]);
}

#[test]
fn many_first_requests_at_a_time_share_one_question() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    proxy.set(Fault::Delay(Duration::from_millis(100)));
    let (service, _backend) = new_service(&consul, "crowd");
    let nginx = by_argument(&proxy.url(), "").workers(2).start();
    let load = Load::start(nginx.address(), &path(&service), 40, false);
    wait::until("the crowd is served", SOON, || load.sent() >= 100);
    let tally = load.finish();
    assert_eq!(tally.outcomes(), service, "{tally}");
    let first = proxy.requests(&format!("/v1/health/service/{service}"));
    let plain = first.iter().filter(|request| !request.line.contains("index=")).count();
    assert_eq!(plain, 1, "that of its watch: {first:?}");
    assert!(proxy.requests("/v1/catalog/services").len() <= 2, "each worker may ask");
}

#[test]
fn a_name_that_does_not_exist_is_an_error_at_once_until_it_does() {
    let consul = Agent::shared();
    let lines = "consul_unknown_service status=404 valid=200ms; consul_first_wait 60s;";
    let nginx = by_argument(&consul.url(), lines).start();
    let service = unique("later");
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(nginx.outcome(&path(&service)), "404");
    }
    let seconds = start.elapsed().as_secs() as usize;
    let said = nginx.wait_for_log(&format!("no service \"{service}\" for upstream \"api\""));
    assert!(said.contains("[error]") && said.contains("Consul has no such service"), "{said}");
    let lines = nginx.logged("no service").len();
    assert!(lines <= 1 + seconds, "{lines} lines in {seconds} s: one a second at most");
    assert_eq!(named(&nginx), [""; 0], "no watch is left behind");
    let backend = Backend::start("late");
    register_one(&consul, &service, &backend);
    until_served_by(&nginx, &path(&service), "late");
}

/// What is refused by its name alone costs Consul nothing.
#[test]
fn a_service_that_can_not_be_had_is_502_unless_set() {
    let consul = Agent::shared();
    let (open, _a) = new_service(&consul, "web-open");
    let (closed, _b) = new_service(&consul, "db-closed");
    let none = unique("web-none");
    let patterns = "consul_allow_service web-* api-?; consul_unknown_service status=403;";
    let not_allowed = "is not allowed by \"consul_allow_service\"";
    for (lines, name, outcome, said, asks) in [
        ("server 127.0.0.1:1;", "", "502", "the name is empty", false),
        ("server 127.0.0.1:1;", &*none, "502", "Consul has no such service", true),
        (patterns, &*none, "403", "Consul has no such service", true),
        (patterns, &*closed, "403", not_allowed, false),
        (patterns, &*open, &*open, "", true),
    ] {
        let proxy = Proxy::start(consul.address());
        let nginx = by_argument(&proxy.url(), lines).start();
        assert_eq!(nginx.outcome(&path(name)), outcome, "{lines} {name}");
        nginx.wait_for_log(said);
        assert_eq!(!proxy.requests("").is_empty(), asks, "{lines} {name}");
    }
}

#[test]
fn a_tag_opens_a_service_and_keeps_its_other_instances_out() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    let backends = Backend::start_all(&["public", "private", "hidden"]);
    let (service, hidden) = (unique("tagged"), unique("hidden"));
    let register = |service: &str, backend: &Backend, tags: &[&str]| {
        let id = format!("{service}-{}", backend.name());
        consul.register(&Instance::new(service, &id, backend.address()).tags(tags));
    };
    register(&service, &backends[0], &["Public"]);
    register(&service, &backends[1], &[]);
    register(&hidden, &backends[2], &["internal"]);
    let nginx = by_argument(&proxy.url(), "consul_allow_service tag=public;").start();
    assert_eq!(tally(&nginx, &path(&service), 6), "public: 6");
    for _ in 0..20 {
        assert_eq!(nginx.outcome(&path(&hidden)), "502");
    }
    nginx.wait_for_log("Consul has no such service");
    assert!(proxy.requests(&hidden).is_empty(), "Consul was asked about it");
    register(&hidden, &backends[2], &["PUBLIC"]);
    until_served_by(&nginx, &path(&hidden), "hidden");
}

#[test]
fn hostile_names_reach_neither_consul_nor_the_log_as_they_are() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    let nginx = by_argument(&proxy.url(), "").start();
    let long = "x".repeat(129);
    let hostile =
        ["..%2f..%2fv1%2fkv", "a/../b", "%00", "a%0d%0aSet-Cookie:x", "-x", "a,b", "*", &long];
    for name in hostile {
        assert_eq!(nginx.outcome(&path(name)), "502", "{name}");
    }
    // The raw bytes of a request line.
    let mut connection = Connection::open(nginx.address()).expect("a connection");
    let answer = connection.get("/?s=\u{202e}\u{ff}").expect("an answer");
    assert_eq!(answer.status, 502);
    assert!(proxy.requests("").is_empty(), "{:?}", proxy.requests(""));
    assert!(nginx.log().is_ascii(), "{}", nginx.log());
}

#[test]
fn spellings_of_a_name_are_one_service() {
    let consul = Agent::shared();
    let (service, _backend) = new_service(&consul, "mixed");
    let nginx = by_argument(&consul.url(), "").start();
    for name in [service.clone(), service.to_uppercase(), service.replace('m', "M")] {
        assert_eq!(nginx.outcome(&path(&name)), service);
    }
    assert_eq!(named(&nginx), [service]);
}

/// While Consul hangs, a request for a new service waits as long as it may, and nobody else does.
#[test]
fn a_consul_that_hangs_holds_up_only_the_first_requests_of_new_services() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    let (known, _a) = new_service(&consul, "known");
    let (new, _b) = new_service(&consul, "held");
    let nginx = by_argument(&proxy.url(), "consul_first_wait 2s;").workers(1).start();
    assert_eq!(nginx.outcome(&path(&known)), known);
    proxy.set(Fault::BlackHole);
    let load = Load::start(nginx.address(), &path(&known), 2, true);
    let start = Instant::now();
    assert_eq!(nginx.outcome(&path(&new)), "502");
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(1900), "only {waited:?}");
    let sent = load.sent();
    assert!(sent > 100, "the known service was held up: {sent} requests in {waited:?}");
    let tally = load.finish();
    assert_eq!(tally.outcomes(), known, "{tally}");
    nginx.wait_for_log("there was no answer in time");
    proxy.set(Fault::Pass);
    until_served_by(&nginx, &path(&new), &new);
}

#[test]
fn a_client_that_goes_while_it_waits_leaves_nothing() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    proxy.set(Fault::BlackHole);
    let nginx = by_argument(&proxy.url(), "consul_first_wait 60s;").workers(1).start();
    let clients: Vec<Connection> = (0..20).map(|n| ask(nginx.address(), n).unwrap()).collect();
    wait::until("Consul is asked", SOON, || proxy.open() > 0);
    drop(clients);
    wait::until("nobody waits", SOON, || nginx.log().matches("client").count() >= 20);
    proxy.set(Fault::Pass);
    let (service, _backend) = new_service(&consul, "after");
    assert_eq!(nginx.outcome(&path(&service)), service);
}

/// Sends a request and does not wait for its answer.
fn ask(address: SocketAddr, n: usize) -> io::Result<Connection> {
    let mut connection = Connection::open(address)?;
    connection.send("GET", &path(&format!("gone-{n}")), &[], b"")?;
    Ok(connection)
}

/// With variables in `proxy_pass`, only the content handler knows the block.
#[test]
fn a_block_that_proxy_pass_names_by_variables_waits_too() {
    let consul = Agent::shared();
    let (service, _backend) = new_service(&consul, "varied");
    let server = SERVER.replace("http://api", "http://api$request_uri");
    let text = format!(
        "consul_server %%CONSUL%%;\nupstream api {{ consul_dynamic $arg_s; \
         consul_unknown_service status=404; }}\n{server}"
    );
    let nginx = Config::http(&text).set("CONSUL", consul.url()).start();
    assert_eq!(nginx.outcome(&path(&service)), service);
    assert_eq!(nginx.outcome(&path(&unique("none"))), "502", "such a block can't say 404");
}

#[test]
fn a_body_that_comes_while_the_request_waits_arrives_whole() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    proxy.set(Fault::Delay(Duration::from_millis(200)));
    let (service, backend) = new_service(&consul, "posted");
    let nginx = by_argument(&proxy.url(), "").start();
    let mut connection = Connection::open(nginx.address()).expect("a connection");
    let body = vec![b'x'; 300_000];
    let answer = connection.request("POST", &path(&service), &[], &body).expect("an answer");
    assert_eq!((answer.status, answer.outcome()), (200, service));
    assert_eq!(backend.requests(), 1);
}

#[test]
fn every_method_balances_a_service_that_requests_name() {
    let consul = Agent::shared();
    let service = unique("method");
    let backends = Backend::start_all(&["a", "b"]);
    for backend in &backends {
        register_one(&consul, &service, backend);
    }
    let methods = [
        ("", "consul_balance random;", "a b"),
        ("", "consul_balance least_conn;", "a b"),
        ("", "consul_balance hash $request_id consistent;", "a b"),
        ("least_conn;", "", "a b"),
        ("hash $request_id;", "", "a b"),
    ];
    for (before, after, outcomes) in methods {
        let upstream = format!("{before} consul_dynamic $arg_s; {after}");
        let nginx = gateway(&consul.url(), "unused", &upstream).start();
        assert_eq!(nginx.outcome("/?s=nobody-here"), "502", "{upstream}");
        let seen: Tally = (0..40).map(|_| nginx.outcome(&path(&service))).collect();
        assert_eq!(seen.outcomes(), outcomes, "{upstream}: {seen}");
    }
}

#[test]
fn the_status_shows_named_services_apart_with_their_own_counters() {
    let consul = Agent::shared();
    let (service, _backend) = new_service(&consul, "shown");
    let nginx = by_argument(&consul.url(), "").start();
    for _ in 0..5 {
        nginx.get(&path(&service));
    }
    let status = nginx.status();
    assert_eq!(status["services"], Value::Array(Vec::new()));
    let shown = &status["on_demand"]["services"][0];
    assert_eq!(shown["upstreams"][0], "api");
    assert_eq!(shown["peers"][0]["picks"], 5, "{shown:#}");
    assert!(shown["last_used_seconds"].as_f64().expect("a time") < 60.0, "{shown:#}");
    assert_eq!(status["on_demand"]["max"], 5000);
}
