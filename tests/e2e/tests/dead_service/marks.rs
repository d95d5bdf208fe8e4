//! Marks alone refuse nobody.

use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::{Load, Manner, http, load, wait};

use super::{NEXT_PROBE, READ_TIMEOUT, Stage, UNPROVEN, outcomes};
use crate::support::SOON;

/// Has one client's slow URL mark every instance in turn.
#[track_caller]
fn mark_all(stage: &Stage) {
    assert_eq!(stage.nginx.outcome("/wait/700"), "504");
    wait::until_eq("requests at the backends", SOON, &0, || stage.busy());
}

#[test]
fn a_slow_url_of_one_client_that_marks_every_instance_refuses_nobody_else() {
    let stage = Stage::start(3, "max_fails=1 fail_timeout=10s");
    let others =
        Load::start_paced(stage.nginx.address(), "/long/", 8, false, Duration::from_millis(2));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        // Its later tries may find an instance that is back, and mark it again, or be refused.
        http::get(stage.nginx.address(), "/wait/700").expect("an answer");
    }
    assert!(stage.nginx.logged("temporarily disabled").len() >= 6, "hardly anything was marked");
    let seen = others.finish();
    assert_eq!(load::failures(&seen, &["a", "b", "c"]), "", "{seen}");
    assert!(seen.total() > 500, "{seen}");
}

#[test]
fn the_first_success_after_the_marks_lets_all_through() {
    let stage = Stage::start(2, "max_fails=1 fail_timeout=60s");
    mark_all(&stage);
    assert!(stage.is_served("/long/"), "the first try after the marks");
    let address = stage.nginx.address();
    let clients: Vec<_> =
        (0..60).map(|_| thread::spawn(move || http::get(address, "/long/wait/100"))).collect();
    for client in clients {
        let answer = client.join().expect("a client").expect("an answer");
        assert_eq!(answer.status, 200);
    }
}

#[test]
fn after_the_last_mark_sixteen_at_a_time_try_until_such_a_try_has_failed() {
    let stage = Stage::start(2, "max_fails=1 fail_timeout=60s");
    mark_all(&stage);
    // Nothing that began after the marks has failed, and nothing will for now.
    let mut waiting = stage.hang("/long/silent", UNPROVEN);
    for _ in 0..30 {
        let (seen, took) = stage.timed("/long/silent");
        assert!(seen == "502" && took < Duration::from_secs(1), "{seen} after {took:?}");
    }
    assert_eq!(stage.busy(), UNPROVEN);
    // One that ends without an answer, because its client has gone, leaves its place to another.
    drop(waiting.pop());
    wait::until_eq("requests at the backends", SOON, &(UNPROVEN - 1), || stage.busy());
    waiting.extend(stage.hang("/long/silent", 1));
    stage.release_all();
    let seen = outcomes(waiting);
    assert_eq!(seen.of("a") + seen.of("b"), UNPROVEN, "{seen}");
    stage.all_are_served(20);
}

#[test]
fn once_a_try_that_began_after_the_last_mark_has_failed_only_probes_are_let_through() {
    let stage = Stage::start(2, "max_fails=1 fail_timeout=60s");
    mark_all(&stage);
    stage.set_all(Manner::Silent);
    let clients = Load::start_every(stage.nginx.address(), "/", 60, Duration::from_millis(20));
    // When the first of the sixteen has failed, each instance may get its probe beside the others.
    let most = (UNPROVEN + 2) as u64;
    wait::holds("sixteen and two", READ_TIMEOUT * 2, || stage.nginx.in_flight() <= most);
    wait::until("only probes are left", SOON, || stage.busy() <= 2);
    clients.open_window();
    wait::holds("one probe each", Duration::from_secs(2), || {
        stage.backends.iter().all(|backend| backend.busy() <= 1)
    });
    let seen = clients.window();
    assert!(seen.of("502") > 100 && seen.of("502") + seen.of("504") == seen.total(), "{seen}");
    clients.stop();
    stage.release_all();
    assert!(stage.until_served(NEXT_PROBE) < NEXT_PROBE);
}

#[test]
fn a_request_that_began_before_the_marks_and_fails_after_them_proves_nothing() {
    let stage = Stage::start(2, "max_fails=1 fail_timeout=60s");
    // These end in a failure after the marks.
    let early = stage.hang("/medium/silent", 4);
    assert_eq!(stage.nginx.outcome("/wait/700"), "504");
    let seen = outcomes(early);
    assert_eq!(seen.to_string(), "504: 4");
    wait::until_eq("requests at the backends", SOON, &0, || stage.busy());
    let waiting = stage.hang("/long/silent", UNPROVEN);
    stage.release_all();
    let seen = outcomes(waiting);
    assert_eq!(seen.of("a") + seen.of("b"), UNPROVEN, "{seen}");
}
