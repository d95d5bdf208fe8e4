//! What bars a try ends with it, and never lasts longer than `fail_timeout`.

use std::time::Duration;

use nginx_consul_e2e::{
    Agent, Backend, Config, Failure, FaultyBackend, Instance, Load, Manner, load, process, wait,
};
use rustix::process::Signal;

use super::{NEXT_PROBE, Stage, proxying};
use crate::support::{SOON, register_one, unique};

/// Timeouts that a healthy instance keeps on a busy machine too.
const PATIENT: &str = "location = /patient { proxy_pass http://api;
    proxy_connect_timeout 1200ms; proxy_read_timeout 1200ms; }";

/// Two dead instances are probed by requests that go on waiting, since their path is `/silent`,
/// though others would be answered.
fn probes_that_last(stage: &Stage) -> Load {
    stage.put_out();
    let probes = stage.hold_probes();
    stage.set_all(Manner::Well);
    probes.stop();
    wait::until_eq("clients", SOON, &2, || probes.running());
    stage.all_at_once("/", 5, "502");
    probes
}

#[test]
fn a_probe_that_lasts_longer_than_fail_timeout_does_not_bar_the_next() {
    let stage = Stage::start(2, "fail_timeout=5s");
    let probes = probes_that_last(&stage);
    stage.until_served(Duration::from_secs(5) + NEXT_PROBE);
    stage.all_are_served(10);
    wait::until_eq("the probes last", SOON, &2, || stage.busy());
    stage.let_end(probes);
}

#[test]
fn a_probe_of_a_killed_worker_does_not_bar_the_next() {
    let stage = Stage::start_with(2, "fail_timeout=60s", Config::allow_kills);
    let _probes = probes_that_last(&stage);
    // The first worker may have none of the two.
    for worker in stage.nginx.workers() {
        process::send(worker, Signal::KILL);
        stage.nginx.until_replaced(worker);
        if stage.busy() < 2 {
            break;
        }
    }
    wait::until("a probe is gone", SOON, || stage.busy() < 2);
    stage.until_served(NEXT_PROBE);
    stage.all_are_served(20);
}

#[test]
fn at_the_end_of_fail_timeout_one_request_at_a_time_over_all_workers_tries_an_instance() {
    for method in ["round_robin", "random", "least_conn", "least_time", "hash $request_id"] {
        let stage = Stage::start_with(2, "max_fails=1 fail_timeout=2s", |config| {
            config
                .more(&format!("consul_balance {method};"))
                .workers(4)
                .file("server.conf", PATIENT)
        });
        stage.backends[0].set(Manner::Silent);
        let clients =
            Load::start_every(stage.nginx.address(), "/patient", 40, Duration::from_millis(15));
        let dead = &stage.backends[0];
        wait::until("the first tries have failed", SOON, || {
            dead.requests() > 0 && dead.busy() == 0
        });
        let before = dead.requests();
        wait::holds(&format!("{method}: one try at a time"), Duration::from_secs(4), || {
            dead.busy() <= 1
        });
        let tries = dead.requests() - before;
        // After a failure `least_time` takes the other one.
        let least = if method == "least_time" { 0 } else { 1 };
        assert!((least..=4).contains(&tries), "{method}: {tries} tries in 4 s");
        assert_eq!(load::failures(&clients.finish(), &["b"]), "", "{method}");
    }
}

#[test]
fn a_dead_instance_beside_a_healthy_one_loses_no_request() {
    for failure in Failure::BEFORE_THE_HEADER {
        let (consul, service) = (Agent::shared(), unique("dead"));
        let mut dead = FaultyBackend::start("dead");
        let healthy = Backend::start("healthy");
        consul.register(&Instance::new(&service, &format!("{service}-dead"), dead.address()));
        register_one(&consul, &service, &healthy);
        let lines = "consul_dynamic %%SERVICE%% fail_timeout=1s;";
        let nginx = proxying(&consul, &service, lines).file("server.conf", PATIENT).start();
        dead.fail(failure);
        let clients = Load::start_every(nginx.address(), "/patient", 30, Duration::from_millis(20));
        wait::until("many answers", SOON * 4, || clients.sent() >= 1500);
        dead.recover();
        wait::until("it serves again", SOON, || clients.seen("dead").is_some());
        let seen = clients.finish();
        assert_eq!(load::failures(&seen, &["healthy", "dead"]), "", "{failure:?}: {seen}");
    }
}
