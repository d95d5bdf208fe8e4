//! More services than connections: how soon changes are seen, and how many connections that takes.

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::acl;
use nginx_consul_e2e::consul::Options;
use nginx_consul_e2e::{Agent, Config, Instance, Nginx, wait};
use serde_json::{Value, json};

use crate::support::SOON;

mod growth;

/// The instance `number` of a service; nobody connects to it.
fn instance(service: &str, number: u16) -> Instance {
    let id = format!("{service}-{number}");
    Instance::new(service, &id, ([127, 9, 0, 1], 10_000 + number))
}

/// Registers `s0` and so on, with an instance each.
fn register(consul: &Agent, services: usize) {
    for service in 0..services {
        consul.register(&instance(&format!("s{service}"), 0));
    }
}

/// nginx that follows them, with these lines in `http`.
fn config(consul: &Agent, services: usize, http: &str) -> Config {
    config_at(&consul.url(), services, http)
}

fn config_at(url: &str, services: usize, http: &str) -> Config {
    let mut text = format!("consul_server {url}; consul_zone consul 16m;\n{http}\n");
    for service in 0..services {
        let _ = writeln!(text, "upstream s{service} {{ consul_dynamic s{service}; }}");
    }
    text.push_str(
        "server { listen 127.0.0.1:%%PORT%%; include server*.conf;
         location = /consul { consul_status; } }",
    );
    Config::http(&text)
}

/// Of each service: its mode, and the number of its peers.
fn overview(nginx: &Nginx) -> Vec<(String, usize)> {
    let status = nginx.status();
    let services = status["services"].as_array().expect("services");
    let of = |service: &Value| {
        let peers = service["peers"].as_array().map_or(0, Vec::len);
        (service["mode"].as_str().unwrap_or("?").to_owned(), peers)
    };
    services.iter().map(of).collect()
}

fn count(nginx: &Nginx, mode: &str) -> usize {
    overview(nginx).iter().filter(|(of, _)| of == mode).count()
}

fn peers(nginx: &Nginx, service: usize) -> usize {
    overview(nginx)[service].1
}

/// The longest delay that the status promises.
fn promised(nginx: &Nginx) -> Duration {
    let status = nginx.status();
    let services = status["services"].as_array().expect("services");
    let delays = services.iter().filter_map(|service| service["delay_ms"].as_u64());
    Duration::from_millis(delays.max().expect("a delay"))
}

/// A test that waits so long sees whether a promise is kept, on a busy machine too.
fn within(promise: Duration) -> Duration {
    assert!(promise <= Duration::from_secs(5), "{promise:?}");
    promise * 2
}

/// Connections that a Consul counts: those that clients have closed too, until it has noticed.
fn connections(consul: &Agent) -> usize {
    let port = format!(":{:04X}", consul.address().port());
    let table = fs::read_to_string("/proc/net/tcp").expect("connections");
    let is_counted = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // ESTABLISHED and CLOSE_WAIT
        fields.get(1).is_some_and(|local| local.ends_with(&port))
            && fields.get(3).is_some_and(|state| ["01", "08"].contains(state))
    };
    table.lines().filter(is_counted).count()
}

#[test]
fn three_hundred_services_on_eight_connections() {
    let consul = Options::dev().start();
    register(&consul, 300);
    let nginx = config(&consul, 300, "consul_connections 8;").start();
    let line = nginx.wait_for_log("more services than consul_connections");
    assert!(line.contains("300 services, 8 connections"), "{line}");
    wait::until("overviews speak for the services", SOON * 2, || count(&nginx, "triggered") >= 290);
    let promise = within(promised(&nginx));
    // A check is seen at once, whatever service it is of.
    for service in [0, 77, 150, 299] {
        let (name, second) = (format!("s{service}"), format!("s{service}-1"));
        consul.register(&instance(&name, 1));
        wait::until("it is in", promise, || peers(&nginx, service) == 2);
        for (status, left) in [("critical", 1), ("passing", 2)] {
            consul.set_check(&second, status);
            wait::until(status, promise, || peers(&nginx, service) == left);
        }
    }
    assert!(connections(&consul) <= 8, "{}", connections(&consul));
}

#[test]
fn a_burst_of_changes_is_seen_within_the_promised_delay() {
    let consul = Options::dev().start();
    register(&consul, 120);
    let nginx = config(&consul, 120, "consul_connections 8;").start();
    wait::until("overviews speak for the services", SOON * 2, || count(&nginx, "triggered") >= 110);
    let promise = within(promised(&nginx));
    (0..120).for_each(|service| consul.register(&instance(&format!("s{service}"), 1)));
    wait::until("all are there", promise, || overview(&nginx).iter().all(|(_, peers)| *peers == 2));
    (0..120).for_each(|service| consul.set_check(&format!("s{service}-0"), "critical"));
    wait::until("all are out", promise, || overview(&nginx).iter().all(|(_, peers)| *peers == 1));
}

#[test]
fn a_consul_that_shows_no_overview_is_read_in_turn() {
    let blocked =
        "http_config { block_endpoints = [\"/v1/health/state\", \"/v1/catalog/services\"] }";
    let consul = Options::dev().hcl(blocked).start();
    register(&consul, 40);
    let nginx = config(&consul, 40, "consul_connections 8;").start();
    let line = nginx.wait_for_log("overview watch of all services failed");
    assert!(line.contains("HTTP 403") && line.contains("[warn]"), "{line}");
    wait::until("the services are swept", SOON * 2, || count(&nginx, "polling") >= 30);
    let promise = within(promised(&nginx));
    for service in [3, 39] {
        consul.register(&instance(&format!("s{service}"), 1));
        wait::until("it is seen", promise, || peers(&nginx, service) == 2);
    }
}

#[test]
fn a_token_that_sees_only_some_services_is_enough_for_these() {
    let (consul, _) = acl::start(Options::dev());
    let rules = "service_prefix \"s\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" }";
    consul.put("/v1/acl/policy", &json!({ "Name": "some", "Rules": rules }));
    let token = consul.put("/v1/acl/token", &json!({ "Policies": [{ "Name": "some" }] }));
    let token = token["SecretID"].as_str().expect("a token").to_owned();
    register(&consul, 40);
    consul.register(&instance("hidden", 0).status("critical"));
    let http = format!("consul_connections 8; consul_token {token};");
    let nginx = config(&consul, 40, &http).start();
    wait::until("overviews speak for the services", SOON * 2, || count(&nginx, "triggered") >= 30);
    consul.set_check("hidden-0", "passing");
    consul.register(&instance("s20", 1).status("critical"));
    consul.set_check("s20-1", "passing");
    wait::until("it is seen", within(promised(&nginx)), || peers(&nginx, 20) == 2);
}

#[test]
fn reloads_keep_within_the_connections_and_lose_nothing() {
    let consul = Options::dev().start();
    register(&consul, 12);
    // A closed query of this length is over after 8.5 s.
    let mut nginx = config(&consul, 12, "consul_connections 16; consul_wait 8s;").start();
    wait::until("all block", SOON, || count(&nginx, "blocking") == 12);
    wait::until("all queries are under way", SOON, || connections(&consul) >= 12);
    let (most, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::SeqCst) {
                most.fetch_max(connections(&consul), Ordering::SeqCst);
                thread::sleep(Duration::from_millis(2));
            }
        });
        for round in 1..=3 {
            nginx.reload_and_wait();
            for service in 0..12 {
                consul.register(&instance(&format!("s{service}"), round));
            }
            wait::until("nothing is lost", SOON * 2, || {
                overview(&nginx).iter().all(|(_, peers)| *peers == 1 + usize::from(round))
            });
        }
        let start = Instant::now();
        wait::until("all block again", SOON * 4, || count(&nginx, "blocking") == 12);
        println!("all block again after {:?}", start.elapsed());
        ended.store(true, Ordering::SeqCst);
    });
    nginx.wait_for_log("each of 12 services has its own blocking query");
    // One more: the test's own, to register.
    let most = most.load(Ordering::SeqCst);
    assert!(most <= 17, "{most} connections at a time");
    consul.register(&instance("s5", 9));
    wait::until("a change is seen", SOON, || peers(&nginx, 5) == 5);
}

#[test]
fn an_agent_on_this_machine_takes_more_queries_than_it_allows_from_one_address() {
    let limit = "limits { http_max_conns_per_client = 200 }";
    let consul = Options::dev().argument("-hcl").argument(limit).start();
    register(&consul, 260);
    let http = "consul_connections 320; consul_wait 10s;";
    let mut nginx = config(&consul, 260, http).main("worker_rlimit_nofile 4096;").start();
    wait::until("all block", SOON * 2, || connections(&consul) >= 260);
    consul.register(&instance("s259", 1));
    wait::until("a change is seen", SOON, || peers(&nginx, 259) == 2);
    // What the old worker has left counts for its addresses too.
    nginx.reload_and_wait();
    consul.register(&instance("s100", 1));
    wait::until("a change is seen", SOON, || peers(&nginx, 100) == 2);
    wait::until("all block again", SOON * 4, || count(&nginx, "blocking") == 260);
    assert!(nginx.logged("without an answer").is_empty(), "{}", nginx.tail());
}
