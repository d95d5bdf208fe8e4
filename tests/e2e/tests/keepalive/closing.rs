//! What ends a connection: either side, a reload, the end.

use std::io::{Read, Write};
use std::time::Duration;

use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::{Agent, Backend, Manner, process, wait};
use rustix::process::Signal;

use super::{ALIVE, kept, open};
use crate::support::{SOON, gateway, register, unique};

/// Another one in its place; its connections are closed.
fn restarted(backend: Backend) -> Backend {
    let (name, address) = (backend.name().to_owned(), backend.address());
    drop(backend);
    wait::until("it is gone", SOON, || std::net::TcpStream::connect(address).is_err());
    Backend::start_at(&name, address, None)
}

#[test]
fn one_that_either_side_wants_closed_is_not_kept() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a"]);
    register(&consul, &service, &backends);
    let lines = "consul_dynamic %%SERVICE%%; consul_keepalive 8;";
    let nginx = gateway(&consul.url(), &service, lines)
        .file("server.conf", "proxy_http_version 1.1; proxy_set_header Connection close;")
        .start();
    nginx.sequence("/", 3);
    assert_eq!(backends[0].connections(), 3);
    wait::until_eq("open connections", SOON, &0, || open(&backends));
}

#[test]
fn an_upgraded_one_is_not_kept() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a"]);
    register(&consul, &service, &backends);
    let lines = "consul_dynamic %%SERVICE%%; consul_keepalive 8;";
    let upgrade = "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; \
                   proxy_set_header Connection $http_connection;";
    let nginx = gateway(&consul.url(), &service, lines).file("server.conf", upgrade).start();
    let mut client = Connection::open(nginx.address()).expect("a connection");
    let headers = [("Upgrade", "echo"), ("Connection", "Upgrade")];
    assert_eq!(client.request("GET", "/", &headers, b"").expect("an answer").status, 101);
    client.stream().write_all(b"hello").expect("sent");
    let mut echo = [0; 5];
    client.reader().read_exact(&mut echo).expect("the echo");
    assert_eq!(&echo, b"hello");
    drop(client);
    wait::until_eq("open connections", SOON, &0, || open(&backends));
    let mut plain = Connection::open(nginx.address()).expect("a connection");
    for _ in 0..3 {
        assert_eq!(plain.get("/").expect("an answer").outcome(), "a");
    }
    assert_eq!(backends[0].connections(), 2);
}

#[test]
fn one_whose_client_went_away_is_not_kept() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a"]);
    register(&consul, &service, &backends);
    let nginx = kept(&consul.url(), &service, "8").workers(1).start();
    nginx.get("/");
    backends[0].set(Manner::Hold);
    let mut client = Connection::open(nginx.address()).expect("a connection");
    client.send("GET", "/", &[], b"").expect("sent");
    wait::until_eq("requests with a", SOON, &1, || backends[0].busy());
    drop(client);
    nginx.access("/", 2);
    backends[0].release();
    wait::until_eq("open connections", SOON, &0, || open(&backends));
    assert_eq!(nginx.sequence("/", 3), "a a a");
    assert_eq!(backends[0].connections(), 2);
}

#[test]
fn one_that_its_peer_closes_is_closed_at_once() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let mut backend = Backend::start("a");
    register(&consul, &service, std::slice::from_ref(&backend));
    let nginx = kept(&consul.url(), &service, "8").workers(1).start();
    for _ in 0..3 {
        nginx.get("/");
        backend = restarted(backend);
        wait::until("nginx has closed it", SOON, || {
            let shown = nginx.service(&service);
            shown["peers"][0]["connections"]["idle"] == 0
        });
        let answer = nginx_consul_e2e::http::request(nginx.address(), "POST", "/", &[], b"x");
        assert_eq!(answer.expect("an answer").outcome(), "a");
    }
}

#[test]
fn one_that_its_peer_has_just_closed_is_not_handed_out() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let mut backend = Backend::start("a");
    register(&consul, &service, std::slice::from_ref(&backend));
    let nginx = kept(&consul.url(), &service, "8").workers(1).start();
    let worker = nginx.workers()[0];
    let mut client = Connection::open(nginx.address()).expect("a connection");
    for _ in 0..10 {
        assert_eq!(client.get("/").expect("an answer").outcome(), "a");
        // The request and the close are both there when the worker looks, the request first.
        process::send(worker, Signal::STOP);
        client.send("POST", "/", &[], b"x").expect("sent");
        backend = restarted(backend);
        process::send(worker, Signal::CONT);
        assert_eq!(client.receive().expect("an answer").outcome(), "a");
    }
}

#[test]
fn a_reload_and_the_end_close_all_without_delay() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let mut nginx = kept(&consul.url(), &service, "8").workers(2).start();
    let fill = |nginx: &nginx_consul_e2e::Nginx| {
        wait::until("both workers have a connection to each", SOON, || {
            nginx.get("/");
            backends.iter().all(|backend| backend.open() == 2)
        });
    };
    fill(&nginx);
    let start = std::time::Instant::now();
    nginx.reload_and_wait();
    wait::until_eq("open connections", SOON, &0, || open(&backends));
    assert!(start.elapsed() < Duration::from_secs(5), "the reload took {:?}", start.elapsed());
    fill(&nginx);
    let took = nginx.quit();
    assert!(took < Duration::from_secs(3), "the end took {took:?}");
    wait::until_eq("open connections", SOON, &0, || open(&backends));
}

#[test]
fn an_end_at_once_is_one() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a"]);
    register(&consul, &service, &backends);
    for with_master in [true, false] {
        let config = kept(&consul.url(), &service, "8").file("server.conf", ALIVE);
        let config = if with_master { config.workers(2) } else { config.without_master() };
        let mut nginx = config.start();
        nginx.get("/");
        nginx.signal(Signal::TERM);
        wait::until_eq("open connections", SOON, &0, || open(&backends));
    }
}
