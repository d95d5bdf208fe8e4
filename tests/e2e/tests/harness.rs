//! The harness itself, over stock nginx alone.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nginx_consul_e2e::{
    Agent, Backend, Config, Failure, Fault, FaultyBackend, Instance, Manner, Proxy, Tally, http,
    wait,
};
use serde_json::Value;

#[test]
fn nginx_starts_reloads_and_quits_without_our_module() {
    let backends = Backend::start_all(&["a", "b"]);
    let mut nginx = Config::http(
        "upstream u { server %%A%%; server %%B%%; }
         server { listen 127.0.0.1:%%PORT%%; location / { proxy_pass http://u; } }",
    )
    .set("A", backends[0].address())
    .set("B", backends[1].address())
    .without_module()
    .start();
    let seen: Tally = (0..6).map(|_| nginx.outcome("/")).collect();
    assert_eq!(seen.to_string(), "a: 3, b: 3");
    backends[1].set(Manner::Reset);
    let seen: Tally = (0..6).map(|_| nginx.outcome("/")).collect();
    assert_eq!(seen.to_string(), "a: 6");
    assert_eq!(nginx.reload().len(), 1);
    assert_eq!(nginx.outcome("/"), "a");
    nginx.quit();
}

#[test]
fn a_consul_agent_registers_and_the_proxy_breaks_it() {
    let consul = Agent::shared();
    let backend = Backend::start("a");
    consul.register(&Instance::new("harness", "h-1", backend.address()).weights(5, 1));
    let proxy = Proxy::start(consul.address());
    let get = || http::get(proxy.address(), "/v1/health/service/harness");
    let answer = get().expect("an answer");
    let document: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(document[0]["Service"]["Weights"]["Passing"], 5);
    assert_eq!(document[0]["Checks"][1]["Status"], "passing");
    assert_eq!(proxy.requests("/v1/health/service/harness").len(), 1);
    proxy.set(Fault::Refuse);
    assert!(get().is_err(), "nothing listens");
    proxy.set(Fault::Cut(200));
    assert!(get().is_err(), "the body is cut");
    proxy.set(Fault::Pass);
    wait::until("the proxy passes again", Duration::from_secs(2), || get().is_ok());
    consul.deregister("h-1");
    wait::until_eq("the service is gone", Duration::from_secs(2), "[]", || {
        consul.get("/v1/health/service/harness").to_string()
    });
}

/// A counter of the kernel's TCP.
fn tcp_counter(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/net/netstat").expect("the kernel's counters");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let found = names.split(' ').zip(values.split(' ')).find(|(n, _)| *n == name);
    found.and_then(|(_, value)| value.parse().ok()).unwrap_or_else(|| panic!("no {name}: {names}"))
}

/// What comes within a time that is longer than a backend's second byte takes.
fn received(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).expect("it accepts");
    stream.set_read_timeout(Some(Duration::from_millis(1500))).expect("a timeout");
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
    let (mut all, mut buffer) = (String::new(), [0; 256]);
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        all.push_str(&String::from_utf8_lossy(&buffer[..n]));
        if all.len() == 2 || all.ends_with("\r\n\r\nxx") {
            break;
        }
    }
    all
}

#[test]
fn a_faulty_backend_fails_in_each_way_and_recovers() {
    let mut backend = FaultyBackend::start("a");
    let address = backend.address();
    let recovers = |backend: &mut FaultyBackend| {
        backend.recover();
        assert_eq!(http::get(address, "/").expect("an answer").outcome(), "a");
    };
    recovers(&mut backend);
    backend.fail(Failure::Refuses);
    let refused = TcpStream::connect(address).expect_err("nothing listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    recovers(&mut backend);
    backend.fail(Failure::DropsPackets);
    // The SYN is dropped, and not answered later: the kernel counts it, and nobody says a word.
    let before = tcp_counter("ListenOverflows");
    let timeout = Duration::from_millis(300);
    let dropped = TcpStream::connect_timeout(&address, timeout).expect_err("no answer");
    assert_eq!(dropped.kind(), ErrorKind::TimedOut);
    assert!(tcp_counter("ListenOverflows") > before, "the kernel dropped nothing");
    recovers(&mut backend);
    backend.fail(Failure::Silent);
    assert_eq!(received(address), "");
    recovers(&mut backend);
    backend.fail(Failure::SlowHeader);
    assert_eq!(received(address), "HT");
    recovers(&mut backend);
    backend.fail(Failure::SlowBody);
    let answer = received(address);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nxx"), "{answer:?}");
    recovers(&mut backend);
}
