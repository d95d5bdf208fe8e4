//! Signals that nginx gets while its start waits for the first answers.

use std::time::{Duration, Instant};

use nginx_consul_e2e::{Agent, Backend, Config, Fault, Nginx, Proxy, process, wait};
use rustix::process::Signal;

use crate::first_answers::asking;
use crate::support::{SOON, gateway, register_one, unique};
use crate::upheaval::{Master, pid_in};

/// nginx whose start waits for Consul, which a proxy keeps silent.
fn waiting(consul: &Agent, change: impl FnOnce(Config) -> Config) -> (Nginx, Proxy, Backend) {
    let (service, backend) = (unique("web"), Backend::start("a"));
    register_one(consul, &service, &backend);
    let proxy = Proxy::start(consul.address());
    proxy.set(Fault::BlackHole);
    let upstream = "consul_dynamic %%SERVICE%%; } consul_init_timeout 60s; map $uri $unused {";
    let nginx = change(gateway(&proxy.url(), &service, upstream)).launch();
    wait::until("the start waits", SOON, || proxy.accepted() > 0);
    (nginx, proxy, backend)
}

/// Signals that the master acts on, and what it logs of them.
const EARLY: [(Signal, &str); 2] =
    [(Signal::HUP, "reconfiguring"), (Signal::USR1, "reopening logs")];

/// Waits until the master has acted, and sees that it serves.
fn until_done(nginx: &Nginx, master: u32, effect: &str) {
    nginx.wait_for_log(&format!("{master}#{master}: {effect}"));
    wait::until("nginx serves", SOON, || {
        nginx.try_get("/").is_ok_and(|seen| seen.outcome() == "a")
    });
}

#[test]
fn a_signal_to_the_master_takes_effect_once_it_has_started() {
    let consul = Agent::shared();
    for (signal, effect) in EARLY {
        let (mut nginx, proxy, _backend) = waiting(&consul, |config| config);
        nginx.signal(signal);
        proxy.set(Fault::Pass);
        until_done(&nginx, nginx.pid(), effect);
    }
}

#[test]
fn a_signal_to_the_process_that_becomes_a_daemon_is_the_daemon_s() {
    let consul = Agent::shared();
    for (signal, effect) in EARLY {
        let (mut nginx, proxy, _backend) = waiting(&consul, Config::daemon);
        nginx.signal(signal);
        proxy.set(Fault::Pass);
        let master = Master(pid_in(&nginx.prefix().join("nginx.pid")));
        until_done(&nginx, master.0, effect);
        assert_ne!(master.0, nginx.pid());
    }
}

/// nginx itself does not serve any more after a reload without a master.
#[test]
fn a_signal_to_a_process_without_a_master_does_not_kill_it() {
    let consul = Agent::shared();
    for (signal, effect) in EARLY {
        let (mut nginx, proxy, _backend) = waiting(&consul, Config::without_master);
        nginx.signal(signal);
        proxy.set(Fault::Pass);
        nginx.wait_for_log(effect);
        if signal == Signal::USR1 {
            until_done(&nginx, nginx.pid(), effect);
        }
        assert!(process::is_alive(nginx.pid()));
    }
}

#[test]
fn a_signal_that_ends_nginx_ends_a_start_at_once() {
    let consul = Agent::shared();
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let (mut nginx, _proxy, _backend) = waiting(&consul, |config| config);
        let child = asking(&nginx);
        let start = Instant::now();
        nginx.signal(signal);
        wait::until("both processes end", SOON, || {
            ![nginx.pid(), child].into_iter().any(process::is_alive)
        });
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
}
