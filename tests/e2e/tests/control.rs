//! `consul_api`: overrides of instances and frozen services, whatever Consul says.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::http;
use nginx_consul_e2e::{Agent, Backend, Config, Instance, Manner, Nginx, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::stock_methods::{busy, hanging, release};
use crate::support::{SOON, gateway, register, register_one, tally, unique, until_served_by};

mod connections;
mod ctl;
mod nginx_methods;
mod freeze;
mod hostile;
mod narrow;
mod services;

/// Each request may get to another worker, and says to which.
const OPERATED: &str = "server {
    listen 127.0.0.1:%%PORT%% reuseport;
    location / { proxy_pass http://api; add_header X-Worker $pid always; }
    location /other/ { proxy_pass http://other/; }
    location = /consul { consul_status; }
    location /api { consul_api; }
}";

/// nginx with an API, whose `http` has these lines; `%%SERVICE%%` is the service.
fn operated(consul: &str, service: &str, http: &str) -> Config {
    Config::http(&format!("consul_server %%CONSUL%%;\n{http}\n{OPERATED}"))
        .set("CONSUL", consul)
        .set("SERVICE", service)
}

/// The same with one upstream, `api`, that has these lines.
fn with_upstream(consul: &str, service: &str, lines: &str) -> Config {
    let upstreams = format!("upstream api {{ {lines} }} upstream other {{ server 127.0.0.1:1; }}");
    operated(consul, service, &upstreams)
}

/// Orders something below `/api/services/`, and gives the answer, which has to be this.
#[track_caller]
fn answered(nginx: &Nginx, (method, path, body): (&str, &str, &str), status: u16) -> Value {
    let answer = nginx.send_json(method, &format!("/api/services/{path}"), body);
    assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.body))
}

#[track_caller]
fn set_override(nginx: &Nginx, path: &str, body: &str) -> Value {
    answered(nginx, ("POST", path, body), 200)
}

#[track_caller]
fn remove_override(nginx: &Nginx, path: &str) -> Value {
    answered(nginx, ("DELETE", path, ""), 200)
}

/// What status says of an instance.
fn peer(nginx: &Nginx, service: &str, id: &str) -> Value {
    let shown = nginx.service(service);
    let peers = shown["peers"].as_array().cloned().unwrap_or_default();
    peers.into_iter().find(|peer| peer["service_id"] == id).unwrap_or(Value::Null)
}

/// Sees that from now on every worker sends requests to these only, as `a b`.
#[track_caller]
fn served_by_now(nginx: &Nginx, names: &str) {
    let (mut workers, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..60 {
        let answer = nginx.get("/");
        workers.extend(answer.header("x-worker").map(str::to_owned));
        seen.insert(answer.outcome());
    }
    let seen: Vec<String> = seen.into_iter().collect();
    assert_eq!(seen.join(" "), names);
    assert_eq!(workers.len(), nginx.workers().len(), "some worker was not asked");
}

#[test]
fn a_drained_instance_gets_no_new_request_and_those_with_it_end() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let lines = "consul_dynamic %%SERVICE%%; keepalive 8;";
    let nginx = with_upstream(&consul.url(), &service, lines).workers(3).start();
    served_by_now(&nginx, "a b");
    backends[0].set(Manner::Hold);
    backends[1].set(Manner::Hold);
    let address = nginx.address();
    let clients: Vec<_> = (0..6).map(|_| thread::spawn(move || http::get(address, "/"))).collect();
    wait::until("requests hang at both", SOON, || {
        backends.iter().map(Backend::busy).sum::<usize>() == 6 && backends[0].busy() > 0
    });
    backends[1].release();
    let path = format!("{service}/instances/{}", ids[0]);
    let shown = set_override(&nginx, &format!("{path}/drain"), "");
    // At once, in every worker.
    served_by_now(&nginx, "b");
    let ordered = &shown["instances"][0]["override"];
    assert_eq!((&ordered["action"], &ordered["by"]), (&json!("drain"), &json!("127.0.0.1")));
    assert!(ordered["until_ms"].is_null() && ordered["since_ms"].as_u64() > Some(0), "{shown:#}");
    let drained = peer(&nginx, &service, &ids[0]);
    assert_eq!(drained["state"], "draining");
    assert_eq!(drained["override"]["action"], "drain");
    assert!(drained["in_flight"].as_u64() > Some(0), "{drained:#}");
    assert!(peer(&nginx, &service, &ids[1])["override"].is_null());
    backends[0].release();
    let outcomes = clients.into_iter().map(|c| c.join().expect("a client").expect("an answer"));
    let outcomes: BTreeSet<String> = outcomes.map(|answer| answer.outcome()).collect();
    assert!(
        outcomes.contains("a") && outcomes.iter().all(|o| o == "a" || o == "b"),
        "{outcomes:?}"
    );
    wait::until_eq("in flight", SOON, &json!(0), || {
        peer(&nginx, &service, &ids[0])["in_flight"].clone()
    });
    let removed = remove_override(&nginx, &path);
    assert_eq!(removed["removed"][0]["action"], "drain");
    served_by_now(&nginx, "a b");
    assert_eq!(peer(&nginx, &service, &ids[0])["state"], "up");
    let name = format!("consul: service \"{service}\": drain of instance \"{}\"", ids[0]);
    let lines = nginx.logged(&name);
    assert!(lines[0].contains("[notice]"), "{lines:?}");
    assert!(lines[0].contains("set by \"127.0.0.1\", until it is removed"), "{lines:?}");
    assert!(lines[1].contains("removed by \"127.0.0.1\"") && lines.len() == 2, "{lines:?}");
}

#[test]
fn a_weight_is_ordered_and_the_last_order_counts() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let nginx = with_upstream(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").start();
    until_served_by(&nginx, "/", "a b");
    let path = format!("{service}/instances/{}", backends[0].address());
    set_override(&nginx, &format!("{path}/weight"), r#"{"weight":5}"#);
    assert_eq!(tally(&nginx, "/", 12), "a: 10, b: 2");
    let shown = peer(&nginx, &service, &ids[0]);
    assert_eq!(
        (&shown["override"]["action"], &shown["override"]["weight"]),
        (&json!("weight"), &json!(5))
    );
    answered(&nginx, ("PATCH", &format!("{path}/weight"), r#"{"weight":2,"expires":"1h"}"#), 200);
    assert_eq!(tally(&nginx, "/", 12), "a: 8, b: 4");
    set_override(&nginx, &format!("{path}/down"), "{}");
    assert_eq!(tally(&nginx, "/", 12), "b: 12");
    assert_eq!(peer(&nginx, &service, &ids[0])["state"], "down");
    remove_override(&nginx, &path);
    assert_eq!(tally(&nginx, "/", 12), "a: 6, b: 6");
    answered(&nginx, ("DELETE", &path, ""), 404);
}

#[test]
fn up_counts_more_than_nginx_down_and_failures() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    let instance = Instance::new(&service, "up-a", backends[0].address());
    consul.register(&instance.meta("nginx_down", "true"));
    register(&consul, &service, &backends[1..]);
    let lines = "consul_dynamic %%SERVICE%% max_fails=1 fail_timeout=1h;";
    let nginx = with_upstream(&consul.url(), &service, lines).start();
    until_served_by(&nginx, "/", "b c");
    set_override(&nginx, &format!("{service}/instances/up-a/up"), "");
    until_served_by(&nginx, "/", "a b c");
    remove_override(&nginx, &format!("{service}/instances/up-a"));
    backends[1].set(Manner::Reset);
    until_served_by(&nginx, "/", "c");
    backends[1].release();
    let failed = format!("{service}/instances/{service}-b");
    assert_eq!(tally(&nginx, "/", 8), "c: 8");
    set_override(&nginx, &format!("{failed}/up"), "");
    assert_eq!(tally(&nginx, "/", 8), "b: 4, c: 4");
}

#[test]
fn a_request_that_began_before_a_drain_is_retried_in_the_set_that_it_began_with() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let nginx = with_upstream(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").start();
    backends[1].set(Manner::Hold);
    let address = nginx.address();
    let clients: Vec<_> = (0..2).map(|_| thread::spawn(move || http::get(address, "/"))).collect();
    wait::until("a request hangs at b", SOON, || backends[1].busy() == 1);
    wait::until("a has answered", SOON, || backends[0].requests() == 1);
    set_override(&nginx, &format!("{service}/instances/{}/drain", ids[0]), "");
    backends[1].set(Manner::Reset);
    let answers = clients.into_iter().map(|c| c.join().expect("a client").expect("an answer"));
    let outcomes: Vec<String> = answers.map(|answer| answer.outcome()).collect();
    assert_eq!(outcomes, ["a", "a"]);
    assert_eq!(tally(&nginx, "/", 2), "502: 2");
}

#[test]
fn an_instance_that_serves_again_while_it_is_up_has_no_failures_when_that_ends() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let upstream = "consul_dynamic %%SERVICE%% fail_timeout=1s;";
    let nginx = with_upstream(&consul.url(), &service, upstream).start();
    let path = format!("{service}/instances/{}", ids[0]);
    set_override(&nginx, &format!("{path}/up"), "");
    backends[0].set(Manner::Reset);
    assert_eq!(tally(&nginx, "/", 4), "b: 4");
    backends[0].release();
    let serves = Instant::now();
    while serves.elapsed() < Duration::from_millis(1500) {
        assert_eq!(tally(&nginx, "/", 2), "a: 1, b: 1");
    }
    remove_override(&nginx, &path);
    let clients = hanging(&nginx, &backends, 4);
    assert_eq!(busy(&backends), "a: 2, b: 2", "it is not as if one request tried it");
    release(&backends, clients);
}

#[test]
fn an_override_expires_in_every_worker() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let lines = "consul_dynamic %%SERVICE%%;";
    let nginx = with_upstream(&consul.url(), &service, lines).workers(3).start();
    served_by_now(&nginx, "a b");
    let path = format!("{service}/instances/{}/down", ids[0]);
    let shown = set_override(&nginx, &path, r#"{"expires":"3s"}"#);
    let ordered = &shown["instances"][0]["override"];
    let [since, until] = ["since_ms", "until_ms"].map(|f| ordered[f].as_u64().expect("a time"));
    assert_eq!(until - since, 3000);
    assert_eq!(tally(&nginx, "/", 20), "b: 20");
    let name = format!("down of instance \"{}\" on node \"{}\"", ids[0], consul.node());
    nginx.wait_for_log(&format!("{name} has expired"));
    served_by_now(&nginx, "a b");
    assert!(peer(&nginx, &service, &ids[0])["override"].is_null());
    assert!(nginx.logged("set by \"127.0.0.1\", for 3s").len() == 1);
}

#[test]
fn overrides_survive_a_reload_a_killed_worker_and_the_instance_s_absence() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    let ids = register(&consul, &service, &backends);
    let mut nginx = with_upstream(&consul.url(), &service, "consul_dynamic %%SERVICE%%;")
        .workers(3)
        .allow_kills()
        .start();
    served_by_now(&nginx, "a b c");
    set_override(&nginx, &format!("{service}/instances/{}/drain", ids[0]), "");
    set_override(&nginx, &format!("{service}/instances/{}/drain", ids[1]), "");
    nginx.reload_and_wait();
    served_by_now(&nginx, "c");
    // Another way to ask for the service is another set of the same instances.
    nginx.rewrite(|conf| conf.replace("consul_dynamic", "consul_max_stale off; consul_dynamic"));
    nginx.reload_and_wait();
    served_by_now(&nginx, "c");
    for _ in 0..2 {
        let zero = nginx.worker_zero();
        nginx_consul_e2e::process::send(zero, Signal::KILL);
        nginx.until_replaced(zero);
        served_by_now(&nginx, "c");
    }
    consul.deregister(&ids[0]);
    wait::until("it is gone", SOON, || peer(&nginx, &service, &ids[0]).is_null());
    let overview: Value =
        serde_json::from_str(&nginx.send_json("GET", "/api", "").body).expect("JSON");
    let held = overview["overrides"].as_array().expect("overrides").iter();
    let names = held.map(|o| (o["service"].clone(), o["node"].clone(), o["id"].clone()));
    let expected = [&ids[0], &ids[1]].map(|id| (json!(service), json!(consul.node()), json!(id)));
    assert_eq!(names.collect::<Vec<_>>(), expected, "{overview:#}");
    register_one(&consul, &service, &backends[0]);
    wait::until("it is back", SOON, || !peer(&nginx, &service, &ids[0]).is_null());
    served_by_now(&nginx, "c");
    // What is not there can be removed too.
    consul.deregister(&ids[0]);
    wait::until("it is gone", SOON, || peer(&nginx, &service, &ids[0]).is_null());
    remove_override(&nginx, &format!("{service}/instances/{}", ids[0]));
    register_one(&consul, &service, &backends[0]);
    until_served_by(&nginx, "/", "a c");
}

#[test]
fn status_and_log_say_which_user_it_was() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let locations = "server {
        listen 127.0.0.1:%%PORT%%;
        location / { proxy_pass http://api; }
        location = /consul { consul_status; }
        location /api/ { auth_basic ops; auth_basic_user_file %%PREFIX%%/users; consul_api; }
    }";
    let nginx = Config::http(&format!(
        "consul_server %%CONSUL%%; upstream api {{ consul_dynamic %%SERVICE%%; }} {locations}"
    ))
    .set("CONSUL", consul.url())
    .set("SERVICE", &service)
    .file("users", "ann:{PLAIN}secret\n")
    .allow("no user/password")
    .start();
    until_served_by(&nginx, "/", "a b");
    let path = format!("/api/services/{service}/instances/{}/drain", ids[0]);
    assert_eq!(nginx.send_json("POST", &path, "").status, 401);
    let headers =
        [("Content-Type", "application/json"), ("Authorization", "Basic YW5uOnNlY3JldA==")];
    let answer = http::request(nginx.address(), "POST", &path, &headers, b"").expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(peer(&nginx, &service, &ids[0])["override"]["by"], "ann@127.0.0.1");
    nginx.wait_for_log("set by \"ann@127.0.0.1\"");
}

#[test]
fn a_location_without_the_directive_changes_nothing() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    let id = register_one(&consul, &service, &backend);
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").start();
    until_served_by(&nginx, "/", "a");
    for path in ["/consul", "/consul/services", "/api"] {
        let path = format!("{path}/services/{service}/instances/{id}/down");
        nginx.send_json("POST", &path, "");
    }
    assert_eq!(nginx.outcome("/"), "a");
}
