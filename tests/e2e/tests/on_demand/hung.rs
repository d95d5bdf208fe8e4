//! A datacenter, or a server, that accepts connections and never answers.

use std::thread;

use nginx_consul_e2e::FakeConsul;

use super::*;

/// Requests for names that no service has, all the time.
fn invented(nginx: &Nginx) -> Vec<Load> {
    let start = |n| Load::start(nginx.address(), &path(&format!("invented-{n}")), 1, false);
    (0..6).map(start).collect()
}

/// Each of several new services is served on its first request.
fn new_services_are_served(nginx: &Nginx, consul: &FakeConsul, backend: &Backend) {
    for n in 0..4 {
        let service = format!("real-{n}");
        consul.publish_one(&service, 7, backend);
        assert_eq!(nginx.outcome(&path(&service)), "here", "{service}\n{}", nginx.tail());
        assert_eq!(tally(nginx, &path(&service), 4), "here: 4", "{service}");
    }
}

#[test]
fn a_datacenter_that_never_answers_delays_no_service_of_another() {
    let backend = Backend::start("here");
    for datacenters in ["dc=a,b", "dc=b,a"] {
        let consul = FakeConsul::start();
        consul.silence(&["dc=b"]);
        let lines = format!("consul_dynamic $arg_s {datacenters};");
        let nginx = gateway(&consul.url(), "unused", &lines).start();
        let loads = invented(&nginx);
        new_services_are_served(&nginx, &consul, &backend);
        let seen = loads.into_iter().map(|load| load.finish().outcomes());
        assert!(seen.into_iter().all(|outcomes| outcomes == "502"), "{datacenters}");
    }
}

#[test]
fn a_server_that_never_answers_is_passed_over() {
    let backend = Backend::start("here");
    let (hung, consul) = (FakeConsul::start(), FakeConsul::start());
    hung.silence(&["/"]);
    let servers = format!("{} {}", hung.url(), consul.url());
    let nginx = gateway(&servers, "unused", "consul_dynamic $arg_s;").start();
    let loads = invented(&nginx);
    new_services_are_served(&nginx, &consul, &backend);
    drop(loads);
}

/// A question that got lost is asked again as soon as its askers go.
#[test]
fn a_datacenter_that_answers_again_is_asked_at_once() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    let nginx = by_argument(&proxy.url(), "").start();
    proxy.set(Fault::BlackHole);
    let loads = invented(&nginx);
    wait::until("names wait", SOON, || loads.iter().all(|load| load.sent() > 0));
    // What was swallowed stays lost, and its connections stay open.
    proxy.set(Fault::Delay(Duration::ZERO));
    let (service, _backend) = new_service(&consul, "back");
    let start = Instant::now();
    wait::until_eq("who serves", SOON, &service, || nginx.outcome(&path(&service)));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    drop(loads);
}

#[test]
fn a_lookup_ends_when_its_askers_have_gone() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    proxy.set(Fault::BlackHole);
    let nginx = by_argument(&proxy.url(), "consul_first_wait 60s;").workers(1).start();
    let client = ask(nginx.address(), 0).expect("a connection");
    wait::until("Consul is asked", SOON, || proxy.open() > 0);
    let start = Instant::now();
    wait::holds("its lookup goes on", Duration::from_secs(3), || proxy.open() > 0);
    drop(client);
    wait::until("the lookup ends", SOON, || proxy.open() == 0);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(7), "{took:?}");
}

/// Its reads take no more than the share of the connections that reads have.
#[test]
fn a_datacenter_that_never_answers_leaves_connections_to_the_others() {
    let backend = Backend::start("here");
    let consul = FakeConsul::start();
    let text = format!(
        "consul_server %%CONSUL%%;\nconsul_connections 8;\n\
         upstream api {{ consul_dynamic $arg_s dc=a,b; }}\n{SERVER}"
    );
    let nginx = Config::http(&text).set("CONSUL", consul.url()).start();
    consul.silence(&["dc=b"]);
    let start = Instant::now();
    for n in 0..30 {
        let service = format!("many-{n}");
        consul.publish_one(&service, 7, &backend);
        assert_eq!(nginx.outcome(&path(&service)), "here", "{service}\n{}", nginx.tail());
    }
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

/// Also by nginx's own methods, over a reload, and after worker 0 was killed.
#[test]
fn whatever_else_a_block_has_a_datacenter_that_never_answers_is_passed_over() {
    let backend = Backend::start("here");
    let upstreams = [
        "consul_dynamic $arg_s dc=b,a; keepalive 8;",
        "least_conn; consul_dynamic $arg_s dc=b,a;",
        "hash $arg_s; consul_dynamic $arg_s dc=b,a;",
        "consul_dynamic $arg_s dc=b,a; consul_first_wait 0;",
        "consul_dynamic $arg_s dc=b,a consistency=stale; consul_balance least_conn;",
        "server 127.0.0.1:1 backup; consul_dynamic $arg_s dc=b,a;",
    ];
    thread::scope(|scope| {
        for upstream in upstreams {
            scope.spawn(|| is_passed_over(upstream, &backend));
        }
    });
}

fn is_passed_over(upstream: &str, backend: &Backend) {
    let consul = FakeConsul::start();
    consul.silence(&["dc=b"]);
    let config = gateway(&consul.url(), "unused", upstream).workers(2).allow_kills();
    let mut nginx = config.start();
    let served = |nginx: &Nginx, service: &str| {
        consul.publish_one(service, 7, backend);
        let (what, limit) = (format!("who serves {service}, {upstream}"), SOON / 2);
        wait::until_eq(&what, limit, "here", || nginx.outcome(&path(service)));
    };
    served(&nginx, "first");
    nginx.reload_and_wait();
    served(&nginx, "first");
    served(&nginx, "second");
    let killed = nginx.worker_zero();
    kill(killed);
    nginx.until_replaced(killed);
    served(&nginx, "first");
    served(&nginx, "third");
}

#[test]
fn server_lines_serve_a_service_whose_other_datacenter_never_answers() {
    let fallback = Backend::start("fallback");
    let consul = FakeConsul::start();
    consul.silence(&["dc=b"]);
    consul.publish("empty", 7, &Value::Array(Vec::new()));
    let upstream = format!("server {}; consul_dynamic $arg_s dc=a,b;", fallback.address());
    let nginx = gateway(&consul.url(), "unused", &upstream).start();
    assert_eq!(nginx.outcome("/?s=empty"), "fallback");
    assert_eq!(nginx.outcome("/?s=invented"), "502");
}
