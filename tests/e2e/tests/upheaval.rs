//! nginx's own upheavals under load: binary upgrade, workers killed at any instruction, other
//! numbers of workers, old workers that hang on, logs reopened, zones of another size, full zones.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::nginx::module;
use nginx_consul_e2e::process;
use nginx_consul_e2e::{Agent, Backend, Config, Instance, Load, Manner, Nginx, load, wait};
use rustix::process::Signal;

use crate::support::{
    SOON, gateway, register, register_one, tally, unique, until_followed, until_peers,
    until_served_by,
};

/// The pid in a file of nginx's prefix, once there is one.
pub(crate) fn pid_in(file: &Path) -> u32 {
    wait::until_some(&format!("a pid in {}", file.display()), SOON, || {
        fs::read_to_string(file).ok()?.trim().parse().ok()
    })
}

fn workers_of(master: u32) -> Vec<u32> {
    let mut workers = process::children(master, "nginx: worker process");
    workers.retain(|&pid| !process::title(pid).contains("shutting down"));
    workers
}

/// Ends a master that is no child of this process, also when a test fails.
pub(crate) struct Master(pub(crate) u32);

impl Drop for Master {
    fn drop(&mut self) {
        for signal in [Signal::QUIT, Signal::KILL] {
            process::send(self.0, signal);
            let start = Instant::now();
            while process::is_alive(self.0) && start.elapsed() < Duration::from_secs(4) {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// nginx as a daemon: it ignores USR2 while its master is a child of who started it.
fn daemon(config: Config, workers: usize) -> (Nginx, Master) {
    let nginx = config.workers(workers).daemon().launch();
    let master = Master(pid_in(&nginx.prefix().join("nginx.pid")));
    wait::until("its workers", SOON, || workers_of(master.0).len() == workers);
    (nginx, master)
}

/// Starts the program anew beside the old master, and has the old workers end.
fn upgrade(nginx: &Nginx, old: &Master, workers: usize) -> Master {
    let prefix = nginx.prefix();
    process::send(old.0, Signal::USR2);
    wait::until("the old pid file", SOON, || prefix.join("nginx.pid.oldbin").exists());
    let new = Master(pid_in(&prefix.join("nginx.pid")));
    wait::until("new workers", SOON, || workers_of(new.0).len() == workers);
    process::send(old.0, Signal::WINCH);
    wait::until("the old workers end", SOON, || {
        process::children(old.0, "nginx: worker").is_empty()
    });
    new
}

#[test]
fn a_binary_upgrade_under_load_loses_no_request_and_no_peer() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends[..2]);
    let (nginx, old) =
        daemon(gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%; keepalive 4;"), 2);
    until_served_by(&nginx, "/", "a b");
    let load = Load::start(nginx.address(), "/", 2, false);
    let new = upgrade(&nginx, &old, 2);
    // The new program follows Consul by itself.
    register_one(&consul, &service, &backends[2]);
    until_served_by(&nginx, "/", "a b c");
    until_peers(&nginx, &service, &[&backends[0], &backends[1], &backends[2]]);
    process::send(old.0, Signal::QUIT);
    wait::until("the old master ends", SOON, || !process::is_alive(old.0));
    let before = load.sent();
    wait::until("requests without the old master", SOON, || load.sent() > before + 100);
    let seen = load.finish();
    assert_eq!(load::failures(&seen, &["a", "b", "c"]), "", "of {} requests", seen.total());
    let watching = workers_of(new.0).iter().filter(|&&p| process::threads(p).len() > 1).count();
    assert_eq!(watching, 1, "workers with watch threads");
}

#[test]
fn a_binary_upgrade_can_be_taken_back() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let (nginx, old) = daemon(gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;"), 1);
    until_served_by(&nginx, "/", "a");
    let load = Load::start(nginx.address(), "/", 1, false);
    let new = upgrade(&nginx, &old, 1);
    process::send(old.0, Signal::HUP);
    wait::until("the old program's worker is back", SOON, || workers_of(old.0).len() == 1);
    drop(new);
    register_one(&consul, &service, &backends[1]);
    until_served_by(&nginx, "/", "a b");
    let seen = load.finish();
    assert_eq!(load::failures(&seen, &["a", "b"]), "", "of {} requests", seen.total());
}

/// A number below `n`, other each time.
fn any_below(n: usize, state: &mut u64) -> usize {
    // xorshift64: this needs no quality, only variety.
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    usize::try_from(*state % n as u64).expect("below n")
}

/// Has instances come and go until told to stop.
fn churn(consul: &Agent, service: &str, backend: &Backend, stop: &AtomicBool) -> usize {
    let mut changes = 0;
    while !stop.load(Ordering::SeqCst) {
        for n in 0..4 {
            let id = format!("{service}-churn-{n}");
            consul.register(&Instance::new(service, &id, backend.address()).weights(1 + n, 1));
        }
        for n in 0..4 {
            consul.deregister(&format!("{service}-churn-{n}"));
        }
        changes += 8;
    }
    changes
}

#[test]
fn workers_killed_at_any_instruction_under_load_and_churn() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "b"]);
    register(&consul, &service, &backends[..2]);
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%; keepalive 4;")
        .workers(3)
        .allow_kills()
        .start();
    until_served_by(&nginx, "/", "a b");
    let clients = 4;
    let load = Load::start(nginx.address(), "/", clients, false);
    let stop = AtomicBool::new(false);
    let mut kills = 0;
    let changes = thread::scope(|scope| {
        let churning = scope.spawn(|| churn(&consul, &service, &backends[2], &stop));
        let mut random = u64::from(std::process::id()) | 1;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            let workers = nginx.workers();
            if let Some(&pid) = workers.get(any_below(workers.len().max(1), &mut random)) {
                process::send(pid, Signal::KILL);
                kills += 1;
            }
            let pause = Duration::from_millis(20 + any_below(60, &mut random) as u64);
            let next = Instant::now() + pause;
            wait::until("the next victim", SOON, || Instant::now() > next);
        }
        stop.store(true, Ordering::SeqCst);
        churning.join().expect("the churn")
    });
    wait::until("three workers", SOON, || nginx.workers().len() == 3);
    let failures = load.failures();
    let sent = load.sent();
    println!("{kills} kills, {changes} changes, {failures} of {sent} requests failed");
    assert!(kills > 40 && changes > 40 && sent > 1000, "too little happened");
    // Each client loses what it has at the killed worker: one request or, when the connection was
    // accepted and not yet answered, the same one once more.
    assert!(failures <= kills * clients, "{failures} failures");
    wait::until("no failure any more", SOON, || {
        let (failures, sent) = (load.failures(), load.sent());
        wait::until("a hundred requests", SOON, || load.sent() > sent + 100);
        load.failures() == failures
    });
    load.finish();
    wait::until_eq("in flight", SOON, &0, || nginx.in_flight());
    // The lock that the last writer may have died with is nobody's, and the watch goes on.
    until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
    consul.deregister(&format!("{service}-b"));
    until_served_by(&nginx, "/", "a");
}

#[test]
fn a_reload_may_change_the_number_of_workers() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let mut nginx =
        gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").workers(2).start();
    until_served_by(&nginx, "/", "a");
    let load = Load::start(nginx.address(), "/", 2, false);
    let mut now = 2;
    for workers in [5, 1, 3] {
        nginx.rewrite(|text| {
            let directive = |n| format!("worker_processes {n};");
            text.replace(&directive(now), &directive(workers))
        });
        now = workers;
        let old = nginx.workers();
        nginx.signal(Signal::HUP);
        wait::until_eq("workers", SOON, &workers, || {
            nginx.workers().iter().filter(|pid| !old.contains(pid)).count()
        });
        wait::until("one of them watches, and the old ones are gone", SOON, || {
            let watching = |pid: &&u32| process::threads(**pid).len() > 1;
            nginx.workers().len() == workers && nginx.workers().iter().filter(watching).count() == 1
        });
        until_followed(&consul, &nginx, &service, &backends[1]);
    }
    let seen = load.finish();
    assert_eq!(load::failures(&seen, &["a", "b"]), "", "of {} requests", seen.total());
    wait::until_eq("in flight", SOON, &0, || nginx.in_flight());
}

#[test]
fn worker_shutdown_timeout_ends_an_old_worker_whose_requests_hang() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let mut nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;")
        .main("worker_shutdown_timeout 1s;")
        .start();
    until_served_by(&nginx, "/", "a");
    backend.set(Manner::Hold);
    let hanging = Load::start(nginx.address(), "/hanging", 2, false);
    wait::until("requests hang", SOON, || backend.busy() == 2);
    let start = Instant::now();
    let old = nginx.reload();
    hanging.stop();
    wait::until("the old worker ends", SOON, || !process::is_alive(old[0]));
    let span = start.elapsed();
    assert!((900..4000).contains(&span.as_millis()), "it ended after {span:?}");
    hanging.finish();
    // What it had in flight went with it.
    wait::until_eq("in flight", SOON, &0, || nginx.in_flight());
    backend.release();
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
}

#[test]
fn logs_are_reopened_also_for_the_watch_threads() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let mut nginx =
        gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").workers(2).start();
    until_served_by(&nginx, "/", "a");
    let (log, aside) = (nginx.prefix().join("error.log"), nginx.prefix().join("error.log.1"));
    fs::rename(&log, &aside).expect("the log, set aside");
    nginx.signal(Signal::USR1);
    wait::until("a new log", SOON, || log.exists());
    let open = |pid: u32| {
        let links = process::descriptors(pid);
        (links.iter().any(|l| l.ends_with("/error.log")), links.iter().any(|l| l.ends_with(".1")))
    };
    wait::until("all processes have it open", SOON, || {
        nginx.workers().into_iter().all(|pid| open(pid) == (true, false))
    });
    register_one(&consul, &service, &backends[1]);
    until_served_by(&nginx, "/", "a b");
    let line = nginx.wait_for_log(&format!("service \"{service}\": 2 peers"));
    assert!(line.contains("(+1 -0)"), "{line}");
    let old = fs::read_to_string(&aside).expect("the old log");
    assert!(!old.contains("2 peers"), "written to the old log");
}

/// As after an update of its package under another name: the zone, whose layout may be another, is
/// made anew, and the old workers keep theirs.
#[test]
fn a_reload_that_loads_another_file_of_the_module_costs_no_request() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let upstream = "consul_dynamic %%SERVICE%%;";
    let mut nginx = gateway(&consul.url(), &service, upstream).workers(2).start();
    let (file, copy) = (module(), nginx.prefix().join("another.so"));
    fs::copy(&file, &copy).expect("a copy of the module");
    let load = Load::start(nginx.address(), "/", 2, true);
    for (old, new) in [(&file, &copy), (&copy, &file)] {
        let (old, new) = (old.display().to_string(), new.display().to_string());
        nginx.rewrite(|text| text.replace(&old, &new));
        nginx.reload_and_wait();
        let maps = fs::read_to_string(format!("/proc/{}/maps", nginx.workers()[0]));
        assert!(maps.expect("a worker's maps").contains(&new), "{new} is not loaded");
        until_followed(&consul, &nginx, &service, &backends[1]);
    }
    assert_eq!(load::failures(&load.finish(), &["a", "b"]), "");
}
