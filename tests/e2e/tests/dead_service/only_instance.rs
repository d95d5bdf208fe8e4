//! A block's only instance is never out, and starves nobody.

use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::{Agent, Backend, Config, Load, Manner, Tally, http, process, wait};
use rustix::process::Signal;

use super::{BOUNDED_AFTER, Stage, UNPROVEN, let_end, outcomes, proxying};
use crate::support::{SOON, register_one, unique};

#[test]
fn an_only_instance_is_never_out_and_serves_at_its_first_success() {
    let stage = Stage::start(1, "max_fails=1 fail_timeout=60s");
    stage.fail_once();
    stage.set_all(Manner::Silent);
    let before = stage.requests();
    for _ in 0..5 {
        assert_eq!(stage.nginx.outcome("/"), "504", "a try, though others have failed");
    }
    assert_eq!(stage.requests() - before, 5);
    stage.release_all();
    stage.all_are_served(20);
}

#[test]
fn sixteen_requests_at_a_time_wait_for_an_only_instance_that_fails() {
    let stage = Stage::start(1, "fail_timeout=60s");
    stage.fail_once();
    let clients =
        Load::start_every(stage.nginx.address(), "/long/silent", 100, Duration::from_millis(50));
    wait::until_eq("requests at the instance", SOON, &UNPROVEN, || stage.busy());
    clients.open_window();
    wait::holds("sixteen at a time", Duration::from_secs(2), || stage.busy() <= UNPROVEN);
    let seen = clients.window();
    assert!(seen.outcomes() == "502" && seen.total() > 200, "{seen}");
    stage.all_at_once("/", 20, "502");
    let seen = stage.let_end(clients);
    assert_eq!((seen.of("a"), seen.of("a") + seen.of("502")), (UNPROVEN, seen.total()), "{seen}");
    // The first success has ended the limit.
    let many = stage.hang("/long/silent", 60);
    stage.release_all();
    assert_eq!(outcomes(many).to_string(), "a: 60");
}

#[test]
fn in_the_first_second_after_a_failure_an_only_instance_is_not_bounded() {
    let stage = Stage::start(1, "fail_timeout=60s");
    let early = stage.hang("/medium/silent", 1);
    assert_eq!(outcomes(early).to_string(), "504: 1");
    let began = Instant::now();
    // They wait together: none has its header before all are there.
    let many: Vec<_> = (0..30).map(|_| stage.hanging("/long/wait/400")).collect();
    let seen = outcomes(many);
    if began.elapsed() < Duration::from_secs(1) {
        assert_eq!(seen.to_string(), "a: 30");
    }
    // Whatever the machine's pace, it has succeeded since.
    stage.all_are_served(5);
}

#[test]
fn requests_that_have_their_header_do_not_count() {
    let stage = Stage::start(1, "fail_timeout=60s");
    let upgrade = [("Upgrade", "websocket"), ("Connection", "Upgrade")];
    let mut open: Vec<_> = (0..20).map(|_| stage.begin("/long/endless", &[], 200)).collect();
    open.extend((0..20).map(|_| stage.begin("/long/ws", &upgrade, 101)));
    // Those that were told to switch protocols are no longer with what answers requests.
    wait::until_eq("open downloads", SOON, &20, || stage.busy());
    stage.fail_once();
    let waiting = stage.hang("/long/silent", UNPROVEN);
    stage.all_at_once("/long/silent", 10, "502");
    drop(waiting);
    drop(open);
}

#[test]
fn requests_that_began_before_the_failure_do_not_count() {
    let stage = Stage::start(1, "fail_timeout=60s");
    let early = stage.hang("/long/silent", 30);
    stage.fail_once();
    let waiting = stage.hang("/long/silent", UNPROVEN);
    stage.all_at_once("/long/silent", 10, "502");
    stage.release_all();
    assert_eq!(outcomes(early).to_string(), "a: 30");
    assert_eq!(outcomes(waiting).to_string(), "a: 16");
}

#[test]
fn requests_that_have_waited_longer_than_fail_timeout_do_not_count() {
    let stage = Stage::start(1, "fail_timeout=3s");
    stage.fail_once();
    let began = Instant::now();
    let first = stage.hang("/long/silent", UNPROVEN);
    stage.all_at_once("/long/silent", 10, "502");
    let clients =
        Load::start_every(stage.nginx.address(), "/long/silent", 40, Duration::from_millis(50));
    wait::until_eq("others wait too", SOON, &(UNPROVEN * 2), || stage.busy());
    assert!(began.elapsed() > Duration::from_secs(2), "after {:?}", began.elapsed());
    wait::holds("no more of them", Duration::from_secs(1), || stage.busy() <= UNPROVEN * 2);
    stage.let_end(clients);
    assert_eq!(outcomes(first).to_string(), "a: 16");
}

#[test]
fn a_client_that_goes_leaves_its_place_to_another() {
    let stage = Stage::start(1, "fail_timeout=60s");
    stage.fail_once();
    for _ in 0..3 {
        let waiting = stage.hang("/long/silent", UNPROVEN);
        stage.all_at_once("/long/silent", 5, "502");
        drop(waiting);
        wait::until_eq("requests at the instance", SOON, &0, || stage.busy());
    }
    stage.release_all();
    stage.all_are_served(5);
}

#[test]
fn requests_of_a_killed_worker_leave_their_places_to_others() {
    let stage = Stage::start_with(1, "fail_timeout=60s", |config| config.allow_kills());
    stage.fail_once();
    let waiting = stage.hang("/long/silent", UNPROVEN);
    let workers = stage.nginx.workers();
    for &worker in &workers {
        process::send(worker, Signal::KILL);
    }
    wait::until("new workers", SOON, || {
        let new = stage.nginx.workers();
        new.len() == workers.len() && new.iter().all(|pid| !workers.contains(pid))
    });
    drop(waiting);
    wait::until_eq("requests at the instance", SOON, &0, || stage.busy());
    let clients =
        Load::start_every(stage.nginx.address(), "/long/silent", 40, Duration::from_millis(50));
    wait::until_eq("requests at the instance", SOON, &UNPROVEN, || stage.busy());
    wait::holds("sixteen at a time", Duration::from_secs(1), || stage.busy() <= UNPROVEN);
    stage.let_end(clients);
    stage.all_are_served(5);
}

/// A burst of requests; how each ended.
fn burst(address: std::net::SocketAddr, path: &'static str) -> Tally {
    let client = move || {
        http::get(address, path).map_or_else(|error| error.to_string(), |answer| answer.outcome())
    };
    let clients: Vec<_> = (0..300).map(|_| thread::spawn(client)).collect();
    clients.into_iter().map(|client| client.join().expect("a client")).collect()
}

#[test]
fn a_slow_only_instance_that_has_not_failed_answers_a_burst_as_a_static_server_does() {
    for method in ["", "least_conn", "random"] {
        let stage = Stage::start_method(method, 1, "");
        let theirs = Config::http(
            "upstream api { server %%A%%; } server { listen 127.0.0.1:%%PORT%%;
             location / { proxy_pass http://api; proxy_read_timeout 1h; } }",
        )
        .set("A", stage.backends[0].address())
        .without_module()
        .workers(2)
        .start();
        let slow = Manner::Slow(Duration::from_millis(1500));
        stage.set_all(slow);
        let (ours, theirs) =
            (burst(stage.nginx.address(), "/long/burst"), burst(theirs.address(), "/burst"));
        assert_eq!(ours.to_string(), "a: 300", "{method}");
        assert_eq!(ours, theirs, "{method}");
    }
}

#[test]
fn an_instance_that_has_failed_and_succeeded_since_is_not_bounded() {
    let stage = Stage::start(1, "fail_timeout=60s");
    for _ in 0..2 {
        stage.fail_once();
        stage.release_all();
        assert!(stage.is_served("/long/"));
        let many = stage.hang("/long/silent", 50);
        stage.release_all();
        assert_eq!(outcomes(many).to_string(), "a: 50");
    }
}

#[test]
fn the_bound_holds_for_a_service_that_requests_name() {
    let consul = Agent::shared();
    let [dead, healthy] = [unique("dead"), unique("healthy")];
    let backends = [Backend::start("a"), Backend::start("b")];
    register_one(&consul, &dead, &backends[0]);
    register_one(&consul, &healthy, &backends[1]);
    let nginx = proxying(&consul, "unused", "consul_dynamic $arg_s fail_timeout=60s;").start();
    backends[0].set(Manner::Silent);
    assert_eq!(nginx.outcome(&format!("/?s={dead}")), "504");
    let failed = Instant::now();
    wait::until("a second has passed", SOON, || failed.elapsed() > BOUNDED_AFTER);
    let path = format!("/long/silent?s={dead}");
    let clients = Load::start_every(nginx.address(), &path, 60, Duration::from_millis(50));
    wait::until_eq("requests at the instance", SOON, &UNPROVEN, || backends[0].busy());
    wait::holds("sixteen at a time", Duration::from_secs(1), || {
        backends[0].busy() <= UNPROVEN && nginx.outcome(&format!("/long/?s={healthy}")) == "b"
    });
    let_end(clients, &backends);
    wait::until("it serves", SOON, || nginx.outcome(&format!("/?s={dead}")) == "a");
}
