//! Names that requests ask for while nginx reloads.

use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::Signal;

use super::*;

/// A worker asks again for a name after 500 ms, if nobody has answered.
const AT_ONCE: Duration = Duration::from_millis(400);

#[test]
fn a_name_that_is_asked_for_while_nginx_reloads_is_found_at_once() {
    let consul = Agent::shared();
    let mut nginx = by_argument(&consul.url(), "").workers(2).start();
    let backend = Backend::start("b");
    let mut late = Vec::new();
    for reload in 0..20 {
        nginx.signal(Signal::HUP);
        let end = Instant::now() + Duration::from_millis(250);
        while Instant::now() < end {
            let service = unique("moment");
            register_one(&consul, &service, &backend);
            let start = Instant::now();
            assert_eq!(nginx.outcome(&path(&service)), "b", "reload {reload}");
            if start.elapsed() > AT_ONCE {
                late.push((reload, start.elapsed()));
            }
        }
    }
    assert_eq!(late, []);
}

#[test]
fn an_old_worker_that_ends_still_finds_names() {
    let consul = Agent::shared();
    let mut nginx = by_argument(&consul.url(), "").start();
    let (service, _backend) = new_service(&consul, "late");
    let mut client = TcpStream::connect(nginx.address()).expect("a connection");
    // A request that has begun keeps its worker.
    write!(client, "GET {} HTTP/1.0\r\nHost: e2e\r\n", path(&service)).expect("half a request");
    assert_eq!(nginx.get("/consul").status, 200, "the only worker has read the other, too");
    let old = nginx.reload();
    wait::until("the old worker ends", SOON, || {
        nginx_consul_e2e::process::title(old[0]).contains("shutting down")
    });
    let start = Instant::now();
    write!(client, "\r\n").expect("the other half");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    let took = start.elapsed();
    assert!(answer.trim_end().ends_with(&service), "{answer}");
    assert!(took < AT_ONCE, "{took:?}");
}
