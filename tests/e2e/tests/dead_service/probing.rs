//! While all instances are out.

use std::time::{Duration, Instant};

use nginx_consul_e2e::{Backend, Instance, Load, Manner, wait};

use super::{NEXT_PROBE, Stage, outcomes};
use crate::support::SOON;

#[test]
fn while_all_instances_are_out_each_gets_one_probe_at_a_time_and_the_others_are_502_at_once() {
    for method in ["round_robin", "random", "least_conn", "least_time", "hash $request_id"] {
        let stage = Stage::start_with(2, "fail_timeout=60s", |config| {
            config.more(&format!("consul_balance {method};"))
        });
        stage.put_out();
        let clients = stage.hold_probes();
        clients.open_window();
        wait::holds("one probe each", Duration::from_secs(2), || {
            stage.backends.iter().all(|backend| backend.busy() <= 1)
        });
        let seen = clients.window();
        assert!(seen.outcomes() == "502" && seen.total() >= 40, "{method}: {seen}");
        stage.all_at_once("/", 50, "502");
        stage.let_end(clients);
        stage.until_served(NEXT_PROBE);
    }
}

#[test]
fn while_all_instances_are_out_each_gets_at_most_one_probe_a_second() {
    let stage = Stage::start(2, "fail_timeout=60s");
    stage.put_out();
    let clients = Load::start_every(stage.nginx.address(), "/", 20, Duration::from_millis(20));
    let counts = || stage.backends.iter().map(Backend::requests).collect::<Vec<_>>();
    let (start, before) = (Instant::now(), counts());
    wait::until("each has had three probes", Duration::from_secs(15), || {
        counts().iter().zip(&before).all(|(now, before)| now - before >= 3)
    });
    let seconds = start.elapsed().as_secs() as usize;
    assert!(seconds <= 6, "three probes took {seconds} s");
    for (now, before) in counts().iter().zip(&before) {
        assert!(now - before <= seconds + 1, "{} probes in {seconds} s", now - before);
    }
    // Most were told at once: twenty clients that wait for probes could not send so many.
    let seen = clients.finish();
    assert!(seen.of("502") > 1000 && seen.of("502") + seen.of("504") == seen.total(), "{seen}");
}

#[test]
fn error_page_and_a_stale_cache_answer_while_all_instances_are_out() {
    let stage = Stage::start_with(2, "fail_timeout=60s", |config| {
        config.more("proxy_cache_path cache keys_zone=cache:1m;").file(
            "server.conf",
            "location = /page { proxy_pass http://api; error_page 502 =200 @sorry; }
             location @sorry { return 200 sorry; }
             location = /stale { proxy_pass http://api; proxy_cache cache;
                 proxy_cache_valid 200 1s; proxy_cache_use_stale error; }",
        )
    });
    let cached = stage.nginx.outcome("/stale");
    assert!(["a", "b"].contains(&cached.as_str()), "{cached}");
    let filled = Instant::now();
    stage.put_out();
    let probes = stage.hold_probes();
    wait::until("what is cached is stale", NEXT_PROBE, || filled.elapsed().as_secs() >= 2);
    stage.all_at_once("/page", 20, "sorry");
    stage.all_at_once("/stale", 20, &cached);
    stage.let_end(probes);
}

#[test]
fn server_lines_answer_while_all_instances_are_out_and_no_longer() {
    let spare = Backend::start("spare");
    let server = spare.address();
    let stage = Stage::start(2, &format!("fail_timeout=60s; server {server}"));
    stage.set_all(Manner::Silent);
    stage.until_at_once("spare");
    // Each instance goes on being probed, one request at a time.
    let probes = stage.hold_probes_beside_servers();
    wait::holds("one probe each", Duration::from_secs(2), || {
        stage.backends.iter().all(|backend| backend.busy() <= 1)
    });
    stage.all_at_once("/long/", 50, "spare");
    stage.let_end(probes);
    stage.until_served(NEXT_PROBE);
    stage.all_are_served(20);
}

#[test]
fn a_probe_that_fails_goes_on_to_the_server_lines() {
    let spare = Backend::start("spare");
    let server = spare.address();
    let stage = Stage::start(2, &format!("fail_timeout=60s; server {server}"));
    stage.set_all(Manner::Silent);
    stage.until_at_once("spare");
    let before = stage.requests();
    wait::until("probes", NEXT_PROBE * 2, || {
        assert_eq!(stage.nginx.outcome("/"), "spare");
        stage.requests() >= before + 3
    });
}

#[test]
fn a_block_whose_server_lines_are_all_down_has_none() {
    let lines =
        ["server 127.0.0.1:1 down", "server 127.0.0.1:1 down; server 127.0.0.1:2 down backup"];
    for lines in lines {
        let stage = Stage::start(2, &format!("fail_timeout=60s; {lines}"));
        stage.put_out();
        let probes = stage.hold_probes();
        wait::holds("one probe each", Duration::from_secs(1), || {
            stage.backends.iter().all(|backend| backend.busy() <= 1)
        });
        stage.all_at_once("/", 20, "502");
        stage.let_end(probes);
    }
}

#[test]
fn backups_that_are_out_are_probed_as_the_first_tier_is() {
    let stage = Stage::start(1, "fail_timeout=60s");
    let (backup, id) = (Backend::start("z"), format!("{}-z", stage.service));
    let instance = Instance::new(&stage.service, &id, backup.address());
    stage.consul.register(&instance.meta("nginx_backup", "true"));
    wait::until("the backup is known", SOON, || {
        stage.nginx.peers(&stage.service).split(' ').count() == 2
    });
    backup.set(Manner::Silent);
    stage.put_out();
    let probes = stage.hold_probes();
    wait::until("the backup has a probe", NEXT_PROBE * 2, || backup.busy() > 0);
    wait::holds("one probe each", Duration::from_secs(1), || {
        backup.busy() <= 1 && stage.backends[0].busy() <= 1
    });
    stage.all_at_once("/", 20, "502");
    probes.stop();
    wait::until("none is left but those that wait", SOON, || probes.running() <= 2);
    backup.release();
    stage.let_end(probes);
}

/// An instance that is full is no way out: those that are out are probed meanwhile.
#[test]
fn an_instance_that_is_full_leaves_one_probe_at_a_time_to_the_one_that_is_out() {
    let stage = Stage::start(2, "fail_timeout=60s");
    let (b, id) = (&stage.backends[1], format!("{}-b", stage.service));
    let instance = Instance::new(&stage.service, &id, b.address()).meta("nginx_max_conns", "1");
    stage.consul.register(&instance);
    wait::until("the limit is known", SOON, || {
        stage.nginx.service(&stage.service)["peers"][1]["max_conns"] == 1
    });
    stage.backends[0].set(Manner::Silent);
    wait::until("a has failed", SOON, || {
        assert!(stage.is_served("/"));
        stage.backends[0].requests() > 0
    });
    // b has what it may have.
    let full = stage.hang("/long/silent", 1);
    assert_eq!(b.busy(), 1);
    stage.until_at_once("502");
    let clients = stage.hold_probes();
    wait::holds("one each", Duration::from_secs(2), || {
        stage.backends.iter().all(|backend| backend.busy() <= 1)
    });
    stage.all_at_once("/", 20, "502");
    stage.let_end(clients);
    assert_eq!(outcomes(full).to_string(), "b: 1");
    stage.all_are_served(20);
}
