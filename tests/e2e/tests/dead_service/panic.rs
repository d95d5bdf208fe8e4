//! `consul_panic` ignores the marks, and starves nobody.

use std::time::{Duration, Instant};

use nginx_consul_e2e::{Load, Manner, wait};

use super::{NEXT_PROBE, Stage};
use crate::support::SOON;

/// Has each of the first `dead` instances fail, until each worker sees too many marked and one has
/// been tried in vain since.
fn mark(stage: &Stage, dead: usize) {
    let dead = &stage.backends[..dead];
    dead.iter().for_each(|backend| backend.set(Manner::Silent));
    wait::until("each has failed", SOON, || {
        stage.nginx.get("/");
        dead.iter().all(|backend| backend.requests() > 0 && backend.busy() == 0)
    });
    let marked = Instant::now();
    wait::until("each worker has looked", SOON, || {
        stage.nginx.get("/");
        marked.elapsed() > Duration::from_millis(1500)
    });
    assert_eq!(stage.nginx.status()["upstreams"][0]["panic"], true);
}

#[test]
fn in_panic_an_instance_that_has_not_succeeded_gets_one_request_and_the_others_go_to_the_next() {
    for method in ["round_robin", "random", "least_conn", "hash $request_id consistent"] {
        let stage = Stage::start_with(3, "fail_timeout=60s", |config| {
            config.more(&format!("consul_panic 50%; consul_balance {method};"))
        });
        mark(&stage, 2);
        let period = Duration::from_millis(20);
        let clients = Load::start_every(stage.nginx.address(), "/long/x", 20, period);
        wait::until("each dead one has a request", SOON, || {
            stage.backends[..2].iter().all(|backend| backend.busy() > 0)
        });
        clients.open_window();
        wait::holds(&format!("{method}: one at a time"), Duration::from_secs(2), || {
            stage.backends[..2].iter().all(|backend| backend.busy() <= 1)
        });
        let seen = clients.window();
        assert!(seen.outcomes() == "c" && seen.total() > 100, "{method}: {seen}");
        // What succeeds is one of all again.
        stage.release_all();
        wait::until("all serve", NEXT_PROBE, || {
            clients.open_window();
            wait::until("answers", SOON, || clients.window().total() > 60);
            clients.window().outcomes() == "a b c"
        });
    }
}

#[test]
fn in_panic_with_all_instances_dead_each_gets_one_request_and_the_others_are_502_at_once() {
    let stage = Stage::start_with(3, "fail_timeout=60s", |config| config.more("consul_panic 50%;"));
    mark(&stage, 3);
    let clients = stage.hold_probes();
    wait::holds("one at a time", Duration::from_secs(2), || {
        stage.backends.iter().all(|backend| backend.busy() <= 1)
    });
    stage.all_at_once("/", 20, "502");
    stage.let_end(clients);
    stage.until_served(NEXT_PROBE);
    stage.all_are_served(20);
}

#[test]
fn in_panic_a_refused_request_goes_to_the_server_lines() {
    let spare = nginx_consul_e2e::Backend::start("spare");
    let server = format!("fail_timeout=60s; server {}", spare.address());
    let stage = Stage::start_with(2, &server, |config| config.more("consul_panic 50%;"));
    mark(&stage, 2);
    let clients = stage.hold_probes_beside_servers();
    wait::holds("one at a time", Duration::from_secs(1), || {
        stage.backends.iter().all(|backend| backend.busy() <= 1)
    });
    stage.all_at_once("/long/", 20, "spare");
    stage.let_end(clients);
}
