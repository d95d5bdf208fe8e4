//! The answers before the first request: a child of the master asks for them.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nginx_consul_e2e::nginx::Nginx;
use nginx_consul_e2e::{Agent, Backend, Fault, Proxy, process, wait};
use rustix::process::Signal;

use crate::support::{SOON, follow, gateway, register_one, unique, until_served_by};

/// A block that follows a service, and what closes it opens another one for its end.
const UPSTREAM: &str =
    "consul_dynamic %%SERVICE%%; } consul_init_timeout %%TIMEOUT%%; map $uri $unused {";

/// The child of the master that asks.
pub(crate) fn asking(nginx: &Nginx) -> u32 {
    wait::until_some("a process asks for the first answers", SOON, || {
        let children = process::children(nginx.pid(), "");
        children
            .into_iter()
            .find(|&pid| !process::title(pid).contains("worker") && process::threads(pid).len() > 1)
    })
}

/// Nothing is left of the child, and nginx's log doesn't know of it.
fn assert_forgotten(nginx: &Nginx, child: u32) {
    assert!(!fs::exists(format!("/proc/{child}")).expect("/proc"), "{child} is still there");
    for line in nginx.log().lines() {
        let is_told = line.contains("unknown process")
            || line.contains("waitpid")
            || line.contains(&format!("received from {child}"));
        assert!(!is_told, "{line}");
    }
}

/// Whether the C library of a process holds that it never had a second thread: only then it makes
/// system calls the short way. It says so in a variable of one byte, `<sys/single_threaded.h>`.
fn had_no_threads(pid: u32) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let first = maps.lines().find(|line| line.ends_with("/libc.so.6")).expect("a C library");
    let base = u64::from_str_radix(first.split('-').next().expect("an address"), 16).expect("hex");
    let path = &first[first.find('/').expect("a path")..];
    let elf = fs::read(format!("/proc/{pid}/root{path}")).expect("the C library");
    let place = base + symbol(&elf, b"__libc_single_threaded");
    let mut flag = [0];
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("memory");
    memory.read_exact_at(&mut flag, place).expect("the flag");
    flag[0] != 0
}

/// Value of a symbol of a library (ELF, 64 bits, little-endian).
fn symbol(elf: &[u8], name: &[u8]) -> u64 {
    let number = |at: usize, size: usize| {
        elf[at..at + size].iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte))
    };
    let place = |at| number(at, 8) as usize;
    let sections = place(0x28);
    let section = |n: usize| sections + n * 64;
    let symbols = (0..number(0x3c, 2) as usize)
        .map(section)
        .find(|&header| number(header + 4, 4) == 11)
        .expect("dynamic symbols");
    let names = place(section(number(symbols + 40, 4) as usize) + 24);
    let (first, size) = (place(symbols + 24), place(symbols + 32));
    let is_named = |&entry: &usize| {
        let own = &elf[names + number(entry, 4) as usize..];
        own.starts_with(name) && own[name.len()] == 0
    };
    let found = (first..first + size).step_by(24).find(is_named);
    number(found.expect("the symbol") + 8, 8)
}

#[test]
fn no_process_but_worker_0_ever_has_a_thread() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let mut nginx =
        gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").workers(3).start();
    for round in ["started", "reloaded"] {
        until_served_by(&nginx, "/", "a");
        let zero = nginx.worker_zero();
        assert!(!had_no_threads(zero), "worker 0 follows Consul");
        let others: Vec<u32> = nginx.workers().into_iter().filter(|&pid| pid != zero).collect();
        assert_eq!(others.len(), 2);
        for pid in others.into_iter().chain([nginx.pid()]) {
            assert!(had_no_threads(pid), "{round}: {pid}, {}", process::title(pid));
        }
        // The new service needs a first answer.
        let next = unique("web");
        register_one(&consul, &next, &backend);
        nginx.rewrite(|text| text.replace(&service, &next));
        nginx.reload_and_wait();
    }
}

#[test]
fn the_master_writes_what_the_child_has_to_say() {
    let (consul, service) = (Agent::shared(), unique("web"));
    register_one(&consul, &service, &Backend::start("a"));
    let nginx = follow(&consul.url(), &service);
    let line = nginx.wait_for_log("1 peer (+1 -0)");
    assert!(line.contains(&format!("{}#", nginx.pid())), "{line}");
    assert!(nginx.logged("received from").is_empty(), "{}", nginx.log());
}

#[test]
fn nginx_starts_though_the_child_is_killed() {
    let (consul, service) = (Agent::shared(), unique("web"));
    register_one(&consul, &service, &Backend::start("a"));
    let proxy = Proxy::start(consul.address());
    proxy.set(Fault::BlackHole);
    let start = Instant::now();
    let nginx = gateway(&proxy.url(), &service, UPSTREAM).set("TIMEOUT", "60s").launch();
    let child = asking(&nginx);
    process::send(child, Signal::KILL);
    let answer = wait::until_some("nginx listens", SOON, || nginx.try_get("/").ok());
    assert_eq!(answer.status, 502);
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    let line = nginx.wait_for_log("initial fetch incomplete");
    assert!(line.contains("got signal 9"), "{line}");
    assert_forgotten(&nginx, child);
}

#[test]
fn nginx_starts_though_the_child_is_stopped() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let proxy = Proxy::start(consul.address());
    proxy.set(Fault::BlackHole);
    let nginx = gateway(&proxy.url(), &service, UPSTREAM).set("TIMEOUT", "2s").launch();
    let child = asking(&nginx);
    process::send(child, Signal::STOP);
    proxy.set(Fault::Pass);
    until_served_by(&nginx, "/", "a");
    let line = nginx.wait_for_log("initial fetch incomplete");
    assert!(line.contains("took over 2s"), "{line}");
    assert_forgotten(&nginx, child);
}

#[test]
fn a_worker_that_dies_while_a_reload_asks_is_reaped() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let proxy = Proxy::start(consul.address());
    let mut nginx = gateway(&proxy.url(), &service, UPSTREAM)
        .set("TIMEOUT", "2s")
        .workers(2)
        .allow_kills()
        .start();
    until_served_by(&nginx, "/", "a");
    let next = unique("web");
    register_one(&consul, &next, &backend);
    nginx.rewrite(|text| text.replace(&service, &next));
    proxy.set(Fault::BlackHole);
    let (zero, old) = (nginx.worker_zero(), nginx.workers());
    let other = *old.iter().find(|&&pid| pid != zero).expect("another worker");
    nginx.signal(Signal::HUP);
    let child = asking(&nginx);
    process::send(other, Signal::KILL);
    proxy.set(Fault::Pass);
    wait::until("only new workers are left", SOON, || {
        let children = process::children(nginx.pid(), "");
        children.len() == 2 && !children.iter().any(|pid| old.contains(pid))
    });
    until_served_by(&nginx, "/", "a");
    nginx.wait_for_log(&format!("worker process {other} exited on signal 9"));
    assert_forgotten(&nginx, child);
}

#[test]
fn a_starter_that_ignores_the_end_of_children_makes_no_difference() {
    let (consul, service) = (Agent::shared(), unique("web"));
    register_one(&consul, &service, &Backend::start("a"));
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;")
        .started_by(&["env", "--ignore-signal=CHLD"])
        .start();
    let line = nginx.wait_for_log("1 peer (+1 -0)");
    assert!(line.contains(&format!("{}#", nginx.pid())), "{line}");
    assert!(nginx.logged("first answers").is_empty(), "{}", nginx.log());
}

#[test]
fn a_test_of_the_configuration_asks_nobody() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let proxy = Proxy::start(consul.address());
    let checked = gateway(&proxy.url(), &service, "consul_dynamic %%SERVICE%%;").check();
    assert!(checked.passed, "{}", checked.output);
    assert_eq!(proxy.accepted(), 0, "connections to Consul");
}
