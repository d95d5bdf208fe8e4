//! A success is known when nginx accepts the header.

use std::io::ErrorKind::WouldBlock;
use std::io::Read;
use std::time::{Duration, Instant};

use nginx_consul_e2e::{Backend, Load, Manner, load, wait};

use super::{NEXT_PROBE, Stage, UNPROVEN, outcomes};
use crate::support::SOON;

/// From the first answer that a client has until no client is refused: what was refused meanwhile
/// has to be told so, on a busy machine too.
const IN_EVERY_WORKER: Duration = Duration::from_millis(300);

#[test]
fn a_success_ends_the_outage_in_every_worker_at_once() {
    for method in ["consul_balance round_robin", "consul_balance least_conn"] {
        let stage = Stage::start_with(2, "fail_timeout=60s", |config| {
            config.more(&format!("{method};")).workers(4)
        });
        stage.put_out();
        let clients =
            Load::start_every(stage.nginx.address(), "/long/", 24, Duration::from_millis(10));
        wait::until("refusals", SOON, || clients.seen("502").is_some());
        stage.release_all();
        let first = wait::until_some("an answer", NEXT_PROBE, || {
            let answers = ["a", "b"].map(|name| clients.seen(name));
            answers.into_iter().flatten().map(|seen| seen.first).min()
        });
        wait::until("it may be known", SOON, || first.elapsed() > IN_EVERY_WORKER);
        clients.open_window();
        wait::until("more answers", SOON, || clients.window().total() > 500);
        let seen = clients.window();
        assert_eq!(load::failures(&seen, &["a", "b"]), "", "{method}: {seen}");
        assert!(first.elapsed() < Duration::from_secs(30), "fail_timeout is over");
    }
}

/// The first answer after an outage is one that does not end; the others are served meanwhile.
#[track_caller]
fn ends_with(path: &str, headers: &[(&str, &str)], status: u16) {
    let stage = Stage::start_with(2, "fail_timeout=60s", |config| config.workers(3));
    stage.put_out();
    stage.release_all();
    let mut open = stage.begin(path, headers, status);
    let began = Instant::now();
    let clients = Load::start_every(stage.nginx.address(), "/long/", 24, Duration::from_millis(10));
    wait::until("many answers", SOON, || clients.sent() >= 500);
    let seen = clients.finish();
    assert_eq!(seen.of("a") + seen.of("b"), seen.total(), "{path}: {seen}");
    assert!(began.elapsed() < Duration::from_secs(30), "fail_timeout is over");
    // It was open all the time.
    open.stream().set_nonblocking(true).expect("a socket");
    let more = open.reader().read(&mut [0; 4096]);
    let is_open = !matches!(more, Ok(0)) && more.err().is_none_or(|e| e.kind() == WouldBlock);
    assert!(is_open, "{path} is over");
}

#[test]
fn a_websocket_that_stays_open_ends_the_outage() {
    ends_with("/long/ws", &[("Upgrade", "websocket"), ("Connection", "Upgrade")], 101);
}

#[test]
fn a_long_poll_that_has_its_header_ends_the_outage() {
    ends_with("/long/stalled", &[], 200);
}

#[test]
fn a_download_without_an_end_ends_the_outage() {
    ends_with("/long/endless", &[], 200);
}

/// Has instances that nobody trusts answer with statuses that count as failed, and sees that `most`
/// requests are let through at a time, as before.
#[track_caller]
fn is_no_success(instances: usize, fail: fn(&Stage), most: usize) {
    let stage = Stage::start_with(instances, "fail_timeout=60s", |config| {
        config.file("server.conf", "proxy_next_upstream error timeout http_500 http_503;")
    });
    for status in [500, 503] {
        fail(&stage);
        stage.set_all(Manner::Status(status));
        let before: Vec<usize> = stage.backends.iter().map(Backend::requests).collect();
        wait::until("each has answered", NEXT_PROBE * 2, || {
            stage.nginx.get("/");
            stage.backends.iter().zip(&before).all(|(now, before)| now.requests() > *before)
        });
        stage.set_all(Manner::Silent);
        let (address, period) = (stage.nginx.address(), Duration::from_millis(20));
        let clients = Load::start_every(address, "/long/silent", 40, period);
        wait::until("requests at the instances", SOON, || stage.busy() >= most);
        wait::holds("no more", Duration::from_secs(1), || stage.busy() <= most);
        stage.let_end(clients);
        // Those were answered well.
        stage.all_are_served(20);
    }
}

#[test]
fn a_status_that_proxy_next_upstream_counts_as_failed_is_no_success() {
    is_no_success(2, Stage::put_out, 2);
}

#[test]
fn such_a_status_lifts_no_bound_on_an_only_instance() {
    is_no_success(1, Stage::fail_once, UNPROVEN);
}

/// A status that `proxy_next_upstream` does not name is an answer like any other.
#[test]
fn another_status_is_a_success() {
    let stage = Stage::start(2, "fail_timeout=60s");
    stage.put_out();
    stage.set_all(Manner::Status(500));
    wait::until_eq("the outage is over", NEXT_PROBE, "500", || stage.nginx.outcome("/"));
    let clients = Load::start_every(stage.nginx.address(), "/long/", 24, Duration::from_millis(10));
    wait::until("many answers", SOON, || clients.sent() >= 300);
    assert_eq!(clients.finish().outcomes(), "500");
}

#[test]
fn a_success_over_nginxs_own_method_lifts_the_bound_on_an_only_instance() {
    for method in ["least_conn", "ip_hash", "random", "hash $request_id consistent"] {
        let stage = Stage::start_method(method, 1, "fail_timeout=60s");
        stage.fail_once();
        stage.set_all(Manner::Silent);
        let waiting = stage.hang("/long/silent", UNPROVEN);
        stage.all_at_once("/", 10, "502");
        stage.backends.iter().for_each(Backend::release);
        let seen = outcomes(waiting);
        assert_eq!(seen.to_string(), "a: 16", "{method}");
        let _many = stage.hang("/long/silent", 60);
        stage.all_are_served(5);
    }
}
