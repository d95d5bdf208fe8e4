//! Start, reload, quit, crash: threads, signals, descriptors.

use std::time::{Duration, Instant};

use nginx_consul_e2e::process::{self, Thread};
use nginx_consul_e2e::{Agent, Backend, Config, Fault, Load, Nginx, Proxy, load, wait};
use rustix::process::Signal;

use crate::support::{
    SERVER, SOON, follow, gateway, register, register_one, tally, unique, until_peers,
    until_served_by,
};

/// How long an old worker may live on, with nothing to do but a poll in flight.
const PROMPT: Duration = Duration::from_millis(500);

/// What a test machine that does other things besides may add to that.
const LENIENCE: Duration = Duration::from_millis(300);
/// So often a span is measured while something else may hold it up.
const TRIES: usize = 5;

/// Waits until the watch of `service` has a poll in flight.
fn until_polling(proxy: &Proxy, service: &str, polls: usize) {
    let target = format!("/v1/health/service/{service}");
    wait::until("a poll is in flight", SOON, || {
        let blocking = |request: &&nginx_consul_e2e::proxy::Passed| request.line.contains("index=");
        proxy.requests(&target).iter().filter(blocking).count() >= polls
    });
}

#[test]
fn only_worker_0_has_threads() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let nginx = gateway(
        &consul.url(),
        &service,
        "consul_dynamic %%SERVICE%%; } proxy_cache_path cache keys_zone=c:1m; map $uri $unused {",
    )
    .workers(3)
    .start();
    until_served_by(&nginx, "/", "a");
    let zero = nginx.worker_zero();
    let counts: Vec<usize> = nginx.workers().iter().map(|&p| process::threads(p).len()).collect();
    let mut others = nginx.workers();
    others.retain(|&pid| pid != zero);
    assert_eq!(others.len(), 2);
    for pid in others {
        assert_eq!(process::threads(pid).len(), 1, "threads of the workers: {counts:?}");
    }
    let helpers = wait::until_some("the cache processes", SOON, || {
        let helpers = process::children(nginx.pid(), "nginx: cache manager");
        (!helpers.is_empty()).then_some(helpers)
    });
    let loaders = process::children(nginx.pid(), "nginx: cache loader");
    for pid in helpers.into_iter().chain(loaders) {
        assert_eq!(process::threads(pid).len(), 1, "{}", process::title(pid));
    }
    assert_eq!(process::threads(nginx.pid()).len(), 1, "threads of the master");
}

#[test]
fn watch_threads_block_all_signals() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let nginx = follow(&consul.url(), &service);
    let zero = nginx.worker_zero();
    let threads = process::threads(zero);
    let (main, watches): (Vec<Thread>, Vec<Thread>) =
        threads.into_iter().partition(|thread| thread.id == zero);
    assert!(!watches.is_empty());
    // All of 1 to 31 but KILL and STOP, which can't be.
    let blockable = (1..=31_u64).filter(|&s| s != 9 && s != 19).map(|s| 1 << (s - 1)).sum::<u64>();
    for thread in watches {
        assert_eq!(thread.blocked & blockable, blockable, "{thread:x?}");
    }
    assert_eq!(main[0].blocked, 0, "the event loop's own signals are untouched");
}

#[test]
fn quit_is_prompt_though_a_poll_is_in_flight() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let span = wait::at_best(PROMPT + LENIENCE, TRIES, || {
        let proxy = Proxy::start(consul.address());
        let mut nginx = follow(&proxy.url(), &service);
        until_polling(&proxy, &service, 1);
        let span = nginx.quit();
        wait::until("its connection is closed", SOON, || proxy.open() == 0);
        span
    });
    assert!(span <= PROMPT + LENIENCE, "quit took {span:?}");
}

#[test]
fn quit_is_prompt_while_consul_is_silent_or_gone() {
    let (consul, service) = (Agent::shared(), unique("web"));
    for fault in [Fault::BlackHole, Fault::Refuse] {
        let span = wait::at_best(PROMPT + LENIENCE, TRIES, || {
            let proxy = Proxy::start(consul.address());
            let mut nginx = follow(&proxy.url(), &service);
            until_polling(&proxy, &service, 1);
            proxy.set(fault);
            if fault == Fault::Refuse {
                nginx.wait_for_log("retrying in");
            }
            nginx.quit()
        });
        assert!(span <= PROMPT + LENIENCE, "quit took {span:?} under {fault:?}");
    }
}

#[test]
fn reload_ends_old_workers_promptly_though_a_poll_is_in_flight() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let proxy = Proxy::start(consul.address());
    let mut nginx =
        gateway(&proxy.url(), &service, "consul_dynamic %%SERVICE%%;").workers(2).start();
    until_polling(&proxy, &service, 1);
    let span = wait::at_best(PROMPT + LENIENCE, TRIES, || {
        let old = nginx.reload();
        let start = Instant::now();
        wait::until("the old workers end", SOON, || !old.iter().any(|&pid| process::is_alive(pid)));
        start.elapsed()
    });
    assert!(span <= PROMPT + LENIENCE, "the old workers ended after {span:?}");
    until_served_by(&nginx, "/", "a");
    wait::until("one connection is left", SOON, || proxy.open() == 1);
}

#[test]
fn an_old_worker_that_still_serves_doesnt_watch_any_more() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let proxy = Proxy::start(consul.address());
    let mut nginx = follow(&proxy.url(), &service);
    until_polling(&proxy, &service, 1);
    backend.set(nginx_consul_e2e::Manner::Hold);
    let held = Load::start(nginx.address(), "/", 1, false);
    wait::until("a request hangs", SOON, || backend.busy() == 1);
    let old = nginx.reload();
    wait::until("the old worker's threads end", SOON, || process::threads(old[0]).len() == 1);
    assert!(process::is_alive(old[0]), "the request was cut");
    wait::until("one connection is left", SOON, || proxy.open() == 1);
    backend.release();
    wait::until("the request is answered", SOON, || held.sent() > 0);
    assert_eq!(load::failures(&held.finish(), &["a"]), "");
    wait::until("the old worker ends", SOON, || !process::is_alive(old[0]));
}

/// Threads and descriptors of master and workers.
fn resources(nginx: &Nginx) -> Vec<(usize, usize)> {
    let mut pids = vec![nginx.pid()];
    pids.extend(nginx.workers());
    pids.iter().map(|&p| (process::threads(p).len(), process::descriptors(p).len())).collect()
}

#[test]
fn fifty_reloads_under_load_cost_no_request_thread_or_descriptor() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let proxy = Proxy::start(consul.address());
    // Since 1.29.7 nginx would keep connections to the backends, which are descriptors too.
    let mut nginx = gateway(&proxy.url(), &service, "consul_dynamic %%SERVICE%%; keepalive 4;")
        .file("server.conf", "proxy_set_header Connection close;")
        .workers(2)
        .start();
    // What the first reload leaves in the master is the measure for those that follow.
    nginx.reload_and_wait();
    until_polling(&proxy, &service, 2);
    let before = resources(&nginx);
    let load = Load::start(nginx.address(), "/", 2, false);
    for n in 0..50 {
        nginx.reload_and_wait();
        // Now and then the set changes right then.
        if n % 10 == 5 {
            register_one(&consul, &service, &backends[n % 20 / 10]);
        }
    }
    let seen = load.finish();
    assert_eq!(load::failures(&seen, &["a", "b"]), "", "of {} requests", seen.total());
    assert!(seen.total() > 200, "only {} requests", seen.total());
    // The master may have yet to reap the last ones.
    wait::until("only the two workers are left", SOON, || {
        process::children(nginx.pid(), "").len() == 2
    });
    wait::until("one connection to Consul is left", SOON, || proxy.open() == 1);
    // Connections of the last requests may take a moment to go, those counted before too.
    wait::until(&format!("no more threads and descriptors than {before:?}"), SOON, || {
        let now = resources(&nginx);
        let pairs = now.iter().zip(&before);
        now.len() == before.len() && pairs.clone().all(|(n, b)| n.0 == b.0 && n.1 <= b.1)
    });
}

#[test]
fn worker_0_killed_is_replaced_and_peers_are_kept() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let proxy = Proxy::start(consul.address());
    let nginx = gateway(&proxy.url(), &service, "consul_dynamic %%SERVICE%%;")
        .workers(2)
        .allow_kills()
        .start();
    until_polling(&proxy, &service, 1);
    let zero = nginx.worker_zero();
    // While Consul can't tell its replacement anything.
    proxy.set(Fault::Refuse);
    process::send(zero, Signal::KILL);
    nginx.until_replaced(zero);
    assert_eq!(tally(&nginx, "/", 10), "a: 10");
    proxy.set(Fault::Pass);
    assert_ne!(nginx.worker_zero(), zero);
    register_one(&consul, &service, &backends[1]);
    until_served_by(&nginx, "/", "a b");
}

#[test]
fn another_worker_killed_changes_nothing() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;")
        .workers(3)
        .allow("exited on signal 9")
        .start();
    let zero = nginx.worker_zero();
    let other = *nginx.workers().iter().find(|&&pid| pid != zero).expect("another worker");
    process::send(other, Signal::KILL);
    nginx.until_replaced(other);
    register_one(&consul, &service, &backends[1]);
    until_served_by(&nginx, "/", "a b");
    let with_threads = nginx.workers().iter().filter(|&&p| process::threads(p).len() > 1).count();
    assert_eq!(with_threads, 1, "workers with threads");
    assert_eq!(nginx.worker_zero(), zero);
}

#[test]
fn master_process_off_works() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let config = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").without_master();
    let nginx = config.clone().start();
    assert_eq!(tally(&nginx, "/", 4), "a: 4");
    register_one(&consul, &service, &backends[1]);
    until_served_by(&nginx, "/", "a b");
    assert!(process::threads(nginx.pid()).len() > 1);
    let mut running = Some(nginx);
    let span = wait::at_best(PROMPT + LENIENCE, TRIES, || {
        let mut nginx = running.take().unwrap_or_else(|| config.clone().start());
        until_served_by(&nginx, "/", "a b");
        nginx.quit()
    });
    assert!(span <= PROMPT + LENIENCE, "quit took {span:?}");
}

#[test]
fn a_reload_while_consul_is_gone_keeps_the_peers_and_waits_for_nothing() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let proxy = Proxy::start(consul.address());
    let mut nginx = gateway(&proxy.url(), &service, "consul_dynamic %%SERVICE%%;").start();
    until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
    let load = Load::start(nginx.address(), "/", 2, false);
    proxy.set(Fault::BlackHole);
    let start = Instant::now();
    let old = nginx.reload();
    let span = start.elapsed();
    assert_eq!(load::failures(&load.finish(), &["a", "b"]), "");
    wait::until("the old worker ends", SOON, || !process::is_alive(old[0]));
    // Both workers together, each with its own order, would not alternate.
    let seen = nginx.sequence("/", 4);
    assert!(["a b a b", "b a b a"].contains(&seen.as_str()), "{seen}");
    assert!(span < Duration::from_millis(1500), "the reload waited {span:?}");
}

#[test]
fn a_reload_may_bring_services_and_take_them() {
    let consul = Agent::shared();
    let services = [unique("old"), unique("new")];
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &services[0], &backends[0]);
    register_one(&consul, &services[1], &backends[1]);
    let proxy = Proxy::start(consul.address());
    let mut nginx = follow(&proxy.url(), &services[0]);
    until_served_by(&nginx, "/", "a");
    nginx.rewrite(|text| text.replace(&services[0], &services[1]));
    nginx.reload_and_wait();
    until_served_by(&nginx, "/", "b");
    let status = nginx.status();
    assert_eq!(status["services"].as_array().map(Vec::len), Some(1), "{status:#}");
    wait::until("the old watch is gone", SOON, || proxy.open() == 1);
}

#[test]
fn a_bad_configuration_at_reload_leaves_everything_as_it_was() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let mut nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;")
        .allow("unknown parameter")
        .allow("colour=red")
        .start();
    let workers = nginx.workers();
    nginx.rewrite(|text| text.replace(&service, &format!("{service} colour=red")));
    nginx.signal(Signal::HUP);
    nginx.wait_for_log("colour=red");
    register_one(&consul, &service, &backends[1]);
    until_served_by(&nginx, "/", "a b");
    assert_eq!(nginx.workers(), workers);
}

#[test]
fn an_idle_nginx_uses_no_cpu() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let nginx = follow(&consul.url(), &service);
    let zero = nginx.worker_zero();
    nginx.get("/consul");
    let before = process::cpu_ticks(zero);
    let span = Duration::from_secs(2);
    wait::holds("less than 10 % of a core", span, || process::cpu_ticks(zero) < before + 20);
}

#[test]
fn the_module_does_nothing_where_no_upstream_asks_for_it() {
    let nginx = Config::http(&SERVER.replace("proxy_pass http://api;", "return 200 ok;")).start();
    assert_eq!(nginx.outcome("/"), "ok");
    for pid in nginx.workers() {
        assert_eq!(process::threads(pid).len(), 1);
    }
    assert_eq!(nginx.get("/consul").status, 200);
}
