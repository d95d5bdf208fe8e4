//! Somebody sets the wall clock, back or forward by an hour: what waits for a time, or has an age,
//! goes on as if nothing had happened.
//!
//! Each test sees nginx and our module show the time that was set.

use std::thread;
use std::time::Duration;

use nginx_consul_e2e::http;
use nginx_consul_e2e::{
    Agent, Backend, Config, Fault, Instance, Manner, Nginx, Proxy, WallClock, wait,
};
use serde_json::Value;

use crate::support::{SOON, gateway, register, register_one, tally, unique, until_served_by};

mod services;
mod state_file;

/// Seconds that the wall clock is set back and forward.
const BACK: i64 = -3600;
const FORWARD: i64 = 3600;

/// Longer than anything that a test has expire, and much less than an hour, in seconds.
const MINUTES: f64 = 600.0;

/// nginx with a wall clock of its own, which is right.
fn start(config: Config) -> (Nginx, WallClock) {
    let clock = WallClock::default();
    let nginx = clock.of(config).start();
    clock.step(&nginx, 0);
    (nginx, clock)
}

/// The same, whose upstream `api` has these lines; two instances, `a` and `b`, and their ids.
fn start_two(lines: &str) -> (Nginx, WallClock, String, Vec<Backend>, Vec<String>) {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let (nginx, clock) = start(gateway(&consul.url(), &service, lines));
    until_served_by(&nginx, "/", "a b");
    (nginx, clock, service, backends, ids)
}

fn peer(nginx: &Nginx, service: &str, id: &str) -> Value {
    let shown = nginx.service(service);
    let peers = shown["peers"].as_array().cloned().unwrap_or_default();
    peers.into_iter().find(|peer| peer["service_id"] == id).unwrap_or(Value::Null)
}

/// Starts with `a`; `b` joins, and the wall clock is set.
fn slow_start(time: &str, step: i64) -> (Nginx, WallClock, [Backend; 2], String, String) {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = ["a", "b"].map(Backend::start);
    register_one(&consul, &service, &backends[0]);
    let lines = format!("consul_dynamic %%SERVICE%% slow_start={time};");
    let (nginx, clock) = start(gateway(&consul.url(), &service, &lines));
    until_served_by(&nginx, "/", "a");
    let id = register_one(&consul, &service, &backends[1]);
    wait::until("b has joined", SOON, || !peer(&nginx, &service, &id).is_null());
    clock.step(&nginx, step);
    (nginx, clock, backends, service, id)
}

#[test]
fn a_slow_start_ends_in_its_time_and_not_before() {
    let (nginx, _clock, _backends, service, id) = slow_start("3s", BACK);
    wait::until("b has warmed up", SOON, || peer(&nginx, &service, &id)["state"] == "up");
    assert_eq!(tally(&nginx, "/", 20), "a: 10, b: 10");

    let (nginx, _clock, backends, service, id) = slow_start("50m", FORWARD);
    tally(&nginx, "/", 40);
    let early = backends[1].requests();
    assert!(early <= 4, "{early} of 40 requests went to the cold one");
    assert_eq!(peer(&nginx, &service, &id)["state"], "recovering");
}

#[test]
fn a_failed_instance_is_kept_out_for_its_fail_timeout() {
    let fail = |nginx: &Nginx, backends: &[Backend]| {
        backends[0].set(Manner::Reset);
        wait::until("a fails", SOON, || {
            let before = backends[0].requests();
            nginx.get("/");
            backends[0].requests() > before
        });
        backends[0].set(Manner::Well);
    };
    let (nginx, clock, _, backends, _) = start_two("consul_dynamic %%SERVICE%% fail_timeout=2s;");
    fail(&nginx, &backends);
    clock.step(&nginx, BACK);
    until_served_by(&nginx, "/", "a b");

    let (nginx, clock, _, backends, _) = start_two("consul_dynamic %%SERVICE%% fail_timeout=10m;");
    fail(&nginx, &backends);
    clock.step(&nginx, FORWARD);
    assert_eq!(tally(&nginx, "/", 10), "b: 10");
}

#[test]
fn the_latency_of_an_instance_stays_known() {
    for step in [BACK, FORWARD] {
        let lines = "consul_dynamic %%SERVICE%%; consul_balance least_time;";
        let (nginx, clock, service, backends, ids) = start_two(lines);
        backends[0].set(Manner::Slow(Duration::from_secs(1)));
        let latency = || peer(&nginx, &service, &ids[0])["latency_ms"].as_f64().unwrap_or(0.0);
        wait::until("a is known as slow", SOON * 2, || {
            nginx.get("/");
            latency() > 900.0
        });
        clock.step(&nginx, step);
        assert!(latency() > 300.0, "{} ms after {step} s", latency());
        assert_eq!(tally(&nginx, "/", 10), "b: 10", "{step}");
    }
}

#[test]
fn an_idle_connection_is_closed_in_its_time_and_not_before() {
    let lines =
        |timeout| format!("consul_dynamic %%SERVICE%%; consul_keepalive 8 timeout={timeout};");
    let open = |backends: &[Backend]| backends.iter().map(Backend::open).sum::<usize>();
    let start = |timeout| {
        let (consul, service) = (Agent::shared(), unique("web"));
        let backends = Backend::start_all(&["a"]);
        register(&consul, &service, &backends);
        let alive = "proxy_http_version 1.1; proxy_set_header Connection \"\";";
        let config = gateway(&consul.url(), &service, &lines(timeout)).file("server.conf", alive);
        let (nginx, clock) = start(config);
        assert_eq!(nginx.outcome("/"), "a");
        (nginx, clock, backends)
    };
    let (nginx, clock, backends) = start("3s");
    assert_eq!(open(&backends), 1);
    clock.step(&nginx, BACK);
    wait::until("it is closed", SOON, || open(&backends) == 0);

    let (nginx, clock, backends) = start("50m");
    clock.step(&nginx, FORWARD);
    assert_eq!(nginx.sequence("/", 3), "a a a");
    assert_eq!(backends[0].connections(), 1);
}

/// Sets `down` for an instance, for so long.
fn set_down(nginx: &Nginx, service: &str, id: &str, time: &str) {
    let path = format!("/api/services/{service}/instances/{id}/down");
    let answer = nginx.send_json("POST", &path, &format!("{{\"expires\":\"{time}\"}}"));
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[test]
fn an_override_and_a_freeze_expire_in_their_time_and_not_before() {
    for step in [BACK, FORWARD] {
        let (consul, service) = (Agent::shared(), unique("web"));
        let backends = Backend::start_all(&["a", "b", "c"]);
        let ids = register(&consul, &service, &backends);
        let config = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;")
            .file("server.conf", "location /api { consul_api; }");
        let (nginx, clock) = start(config);
        until_served_by(&nginx, "/", "a b c");
        set_down(&nginx, &service, &ids[0], "3s");
        set_down(&nginx, &service, &ids[1], "10m");
        clock.step(&nginx, step);
        assert_eq!(tally(&nginx, "/", 6), "c: 6");
        until_served_by(&nginx, "/", "a c");
        nginx.wait_for_log("has expired");
        assert_eq!(tally(&nginx, "/", 6), "a: 3, c: 3");

        clock.step(&nginx, 0);
        let freeze = format!("/api/services/{service}/freeze");
        assert_eq!(nginx.send_json("POST", &freeze, r#"{"expires":"3s"}"#).status, 200);
        clock.step(&nginx, step);
        consul.deregister(&ids[2]);
        wait::until("it would change", SOON, || nginx.service(&service)["frozen"]["left"] == 1);
        assert_eq!(tally(&nginx, "/", 6), "a: 3, c: 3");
        until_served_by(&nginx, "/", "a");
    }
}
