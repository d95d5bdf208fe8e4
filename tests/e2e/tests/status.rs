//! The status.

use std::thread;

use nginx_consul_e2e::{Agent, Backend, Fault, Instance, Manner, Proxy, http, wait};
use serde_json::json;

use crate::support::{SOON, follow, gateway, register, register_one, tally, unique, until_peers};

mod json;
pub(crate) mod large;
mod metrics;
mod readers;

#[test]
fn json_says_what_is_known_of_a_service_and_its_peers() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let instance = Instance::new(&service, "status-a", backends[0].address());
    consul.register(&instance.tags(&["v1", "blue"]).weights(5, 1));
    let instance = Instance::new(&service, "status-b", backends[1].address());
    consul.register(&instance.tags(&["v1"]));
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%% tag=v1;").start();
    assert_eq!(tally(&nginx, "/", 6), "a: 5, b: 1");
    let answer = nginx.get("/consul?format=json");
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").is_some_and(|t| t.starts_with("application/json")));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    wait::until("the watch blocks", SOON, || nginx.service(&service)["mode"] == "blocking");
    let status = nginx.status();
    assert_eq!(status["module"]["version"], env!("CARGO_PKG_VERSION"));
    let version = status["nginx"]["version"].as_str().expect("a version");
    assert!(version.split('.').count() == 3, "{version}");
    assert_eq!(status["nginx"]["worker"], 0);
    assert_eq!(status["nginx"]["pid"], nginx.workers()[0]);
    assert_eq!(status["zone"]["name"], "consul");
    let size = status["zone"]["size"].as_u64().expect("a size");
    // What the allocator needs for itself may be taken off.
    assert!(size > 9 << 20 && size <= 10 << 20, "{size}");
    assert!(status["zone"]["used"].as_u64().is_some_and(|used| used > 0), "{status:#}");
    let shown = nginx.service(&service);
    assert_eq!(shown["upstreams"], json!(["api"]));
    assert_eq!(shown["tags"], json!(["v1"]));
    assert_eq!(shown["status"], "passing");
    assert_eq!(shown["servers"], json!([consul.url()]));
    assert_eq!(shown["server"], consul.url());
    assert_eq!(shown["mode"], "blocking");
    assert!(shown["index"].as_u64().is_some_and(|index| index > 1), "{shown:#}");
    assert!(shown["generation"].as_u64().is_some_and(|n| n > 0), "{shown:#}");
    assert!(shown["last_good_seconds"].as_f64().is_some_and(|age| age < 20.0), "{shown:#}");
    assert!(shown["last_error"].is_null() && shown["failures"] == 0, "{shown:#}");
    let peers = shown["peers"].as_array().expect("peers");
    let peer = peers.iter().find(|p| p["service_id"] == "status-a").expect("status-a");
    assert_eq!(peer["server"], backends[0].address().to_string());
    assert_eq!(peer["node"], consul.node());
    assert_eq!(peer["tags"], json!(["v1", "blue"]));
    assert_eq!(peer["health"], "passing");
    assert_eq!(peer["weight"], 5);
    assert_eq!(peer["picks"], 5);
    assert_eq!((&peer["in_flight"], &peer["fails"]), (&json!(0), &json!(0)));
    assert_eq!(peer["state"], "up");
}

#[test]
fn json_counts_what_is_in_flight_and_what_failed() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let nginx = follow(&consul.url(), &service);
    backends[0].set(Manner::Hold);
    let address = nginx.address();
    let client = thread::spawn(move || http::get(address, "/"));
    wait::until("the request hangs", SOON, || backends[0].busy() == 1);
    let peer = |name: &str, field: &str| {
        let shown = nginx.service(&service);
        let peers = shown["peers"].as_array().cloned().unwrap_or_default();
        let id = format!("{service}-{name}");
        peers.iter().find(|p| p["service_id"] == *id).map_or(json!(null), |p| p[field].clone())
    };
    assert_eq!(peer("a", "in_flight"), 1);
    assert_eq!(peer("b", "in_flight"), 0);
    backends[0].set(Manner::Reset);
    let answer = client.join().expect("a client").expect("an answer");
    assert_eq!(answer.outcome(), "b");
    wait::until_eq("in flight", SOON, &json!(0), || peer("a", "in_flight"));
    assert_eq!(peer("a", "fails"), 1);
    assert_eq!(peer("b", "fails"), 0);
    assert_ne!(peer("a", "state"), "up");
    assert_eq!(peer("b", "state"), "up");
}

#[test]
fn json_says_what_went_wrong_with_consul() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let proxy = Proxy::start(consul.address());
    let nginx =
        gateway(&proxy.url(), &service, "consul_dynamic %%SERVICE%%; consul_retry 50ms 100ms;")
            .start();
    until_peers(&nginx, &service, &[&backend]);
    proxy.set(Fault::Refuse);
    wait::until("failures are counted", SOON, || {
        nginx.service(&service)["failures"].as_u64() >= Some(2)
    });
    let shown = nginx.service(&service);
    assert!(shown["last_error"].as_str().is_some_and(|text| !text.is_empty()), "{shown:#}");
    assert_eq!(nginx.peers(&service), backend.address().to_string());
    proxy.set(Fault::Pass);
    wait::until("it is good again", SOON, || nginx.service(&service)["failures"] == 0);
    assert!(nginx.service(&service)["last_good_seconds"].as_f64() < Some(5.0));
}

#[test]
fn a_service_that_never_answered_is_shown_too() {
    let port = nginx_consul_e2e::ports::free();
    let nginx = follow(&format!("http://127.0.0.1:{port}"), "web");
    wait::until("the failure is shown", SOON, || {
        nginx.service("web")["last_error"].as_str().is_some_and(|text| !text.is_empty())
    });
    let shown = nginx.service("web");
    assert_eq!(shown["peers"], json!([]));
    assert!(shown["last_good_seconds"].is_null(), "{shown:#}");
}

#[test]
fn the_dashboard_is_the_same_for_all_and_has_a_strict_policy() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let nginx = follow(&consul.url(), &service);
    let answer = nginx.get("/consul");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
    let policy = answer.header("content-security-policy").expect("a policy").to_owned();
    let rules: Vec<&str> = policy.split("; ").collect();
    for rule in
        ["default-src 'none'", "connect-src 'self'", "base-uri 'none'", "frame-ancestors 'self'"]
    {
        assert!(rules.contains(&rule), "no {rule} in {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(!answer.body.contains(&service), "what is known comes as JSON");
    assert!(answer.body.contains("<noscript>"), "{}", answer.body);
    assert_eq!(nginx.get("/consul?service=other").body, answer.body);
}

#[test]
fn the_page_answers_head_and_refuses_other_methods() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let nginx = follow(&consul.url(), &service);
    let answer = http::request(nginx.address(), "POST", "/consul", &[], b"x").expect("an answer");
    assert_eq!(answer.status, 405);
    let mut connection = http::Connection::open(nginx.address()).expect("a connection");
    connection.send("HEAD", "/consul", &[("Connection", "close")], b"").expect("sent");
    let mut text = String::new();
    std::io::Read::read_to_string(connection.reader(), &mut text).expect("an answer");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(text.ends_with("\r\n\r\n"), "a body for HEAD: {text}");
}
