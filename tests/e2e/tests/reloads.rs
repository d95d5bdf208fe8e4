//! Reloads: which worker follows Consul, and how soon changes are seen meanwhile.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use nginx_consul_e2e::{Agent, Backend, Fault, Nginx, Proxy, process, wait};
use rustix::process::Signal;

use crate::support::{
    SOON, gateway, register, register_one, unique, until_followed, until_served_by,
};

/// A worker that lost its leadership would learn of it in its next check, a second after it had
/// started.
const AT_ONCE: Duration = Duration::from_millis(700);

/// The configurations that a worker has led for, in the order of the log.
fn led(nginx: &Nginx) -> Vec<usize> {
    let lines = nginx.logged("this worker follows Consul, configuration ");
    let number = |line: &String| line.rsplit(' ').next().and_then(|number| number.parse().ok());
    lines.iter().map(|line| number(line).unwrap_or_else(|| panic!("{line}"))).collect()
}

fn until_time(at: Instant) {
    wait::until("the time for it", SOON, || Instant::now() >= at);
}

/// nginx starts the new workers 100 ms before it tells the old ones to quit. The old worker 0 checks
/// its threads a second after it has started, so every fourth reload comes just before that.
#[test]
fn of_a_hundred_reloads_none_delays_a_change_and_no_old_worker_leads_again() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let upstream = "consul_dynamic %%SERVICE%%; } consul_wait 2s; map $uri $unused {";
    let mut nginx = gateway(&consul.url(), &service, upstream).workers(2).start();
    until_served_by(&nginx, "/", "a b");
    let reloads = 100;
    let (mut late, mut reloaded) = (Vec::new(), Instant::now());
    for n in 0..reloads {
        let pause = if n % 4 == 0 { 930 + n % 50 } else { 150 };
        until_time(reloaded + Duration::from_millis(pause));
        reloaded = Instant::now();
        nginx.signal(Signal::HUP);
        until_time(reloaded + Duration::from_millis(n * 37 % 200));
        let names = if n % 2 == 0 {
            consul.deregister(&ids[1]);
            "a"
        } else {
            register_one(&consul, &service, &backends[1]);
            "a b"
        };
        let took = until_served_by(&nginx, "/", names);
        if took > AT_ONCE {
            late.push((n, took));
        }
    }
    assert_eq!(late, [], "changes that were seen late");
    assert_eq!(led(&nginx), (1..=reloads as usize + 1).collect::<Vec<_>>());
    let counted = |change: &str| nginx.logged(&format!("{service}\": {change}")).len();
    wait::until_eq("publications, one for each change", SOON, &(reloads as usize), || {
        counted("1 peer (+0 -1)") + counted("2 peers (+1 -0)")
    });
}

#[test]
fn after_a_reload_that_fails_on_a_port_in_use_the_old_workers_follow_changes_as_before() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let mut nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;")
        .workers(2)
        .allow("bind() to")
        .allow("still could not bind()")
        .allow_kills()
        .start();
    until_served_by(&nginx, "/", "a");
    let workers = nginx.workers();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let listen = format!("listen {};\ninclude server", taken.local_addr().expect("its address"));
    nginx.rewrite(|text| text.replace("include server", &listen));
    nginx.signal(Signal::HUP);
    nginx.wait_for_log("bind() to");
    until_followed(&consul, &nginx, &service, &backends[1]);
    nginx.wait_for_log("still could not bind()");
    until_followed(&consul, &nginx, &service, &backends[1]);
    assert_eq!((nginx.workers(), led(&nginx)), (workers, vec![1]));
    let zero = nginx.worker_zero();
    process::send(zero, Signal::KILL);
    nginx.until_replaced(zero);
    until_followed(&consul, &nginx, &service, &backends[1]);
    drop(taken);
    nginx.reload_and_wait();
    until_followed(&consul, &nginx, &service, &backends[1]);
    assert_eq!(led(&nginx), [1, 1, 2]);
}

#[test]
fn the_old_workers_follow_changes_while_a_reload_waits_for_the_answer_about_a_new_service() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let silent = Proxy::start(consul.address());
    silent.set(Fault::BlackHole);
    let upstream = "consul_dynamic %%SERVICE%%; } consul_init_timeout 3s; map $uri $unused {";
    let mut nginx = gateway(&consul.url(), &service, upstream).start();
    until_served_by(&nginx, "/", "a");
    let (old, new) = (nginx.workers(), format!("upstream new {{ consul_dynamic {service}-new; "));
    nginx.rewrite(|text| {
        let new = format!("{new} consul_server {}; }}\nupstream api", silent.url());
        text.replace("upstream api", &new)
    });
    nginx.signal(Signal::HUP);
    wait::until("the new service is asked for", SOON, || silent.accepted() > 0);
    until_followed(&consul, &nginx, &service, &backends[1]);
    assert_eq!(nginx.workers(), old, "the reload is still under way");
    wait::until_eq("who leads", SOON, &[1, 2][..], || led(&nginx));
    until_followed(&consul, &nginx, &service, &backends[1]);
}
