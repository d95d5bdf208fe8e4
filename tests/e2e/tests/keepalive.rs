//! `consul_keepalive`: connections are used again, and by nobody else.

use nginx_consul_e2e::{Agent, Backend, Config, Nginx, wait};
use serde_json::Value;

use crate::support::{SOON, gateway, register, unique};

mod chameleon;
mod churn;
mod closing;
mod leaving;
mod protocols;
mod shards;
mod trouble;

/// What nginx needs to keep connections to peers alive.
pub(crate) const ALIVE: &str = "proxy_http_version 1.1; proxy_set_header Connection \"\";";

/// nginx whose upstream `api` follows a service and keeps connections; `keepalive` are the
/// directive's arguments.
pub(crate) fn kept(consul: &str, service: &str, keepalive: &str) -> Config {
    upstream(consul, service, &format!("consul_dynamic %%SERVICE%%; consul_keepalive {keepalive};"))
}

/// The same with an upstream of these lines.
pub(crate) fn upstream(consul: &str, service: &str, lines: &str) -> Config {
    gateway(consul, service, lines).file("server.conf", ALIVE)
}

/// Connections open now, of all.
pub(crate) fn open(backends: &[Backend]) -> usize {
    backends.iter().map(Backend::open).sum()
}

/// One count of connections, summed over a service's peers in status.
pub(crate) fn counted(nginx: &Nginx, service: &str, count: &str) -> u64 {
    let service = nginx.service(service);
    let peers = service["peers"].as_array().expect("peers");
    peers.iter().map(|peer| peer["connections"][count].as_u64().expect("a count")).sum()
}

#[test]
fn a_connection_is_used_for_the_next_request() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a"]);
    register(&consul, &service, &backends);
    let nginx = kept(&consul.url(), &service, "4").start();
    assert_eq!(nginx.sequence("/", 10), "a ".repeat(10).trim_end());
    assert_eq!(backends[0].connections(), 1);
    let counts = &nginx.service(&service)["peers"][0]["connections"];
    let expected = serde_json::json!({"idle": 1, "active": 0, "opened": 1, "reused": 9});
    assert_eq!(*counts, expected);
}

#[test]
fn a_block_that_keeps_none_itself_counts_none() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a"]);
    register(&consul, &service, &backends);
    let nginx =
        upstream(&consul.url(), &service, "consul_dynamic %%SERVICE%%; keepalive 4;").start();
    assert_eq!(nginx.sequence("/", 3), "a a a");
    assert_eq!(nginx.service(&service)["peers"][0]["connections"], Value::Null);
    assert_eq!(backends[0].connections(), 1);
}

#[test]
fn there_are_never_more_than_told_and_the_oldest_are_closed_first() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c", "d", "e"]);
    register(&consul, &service, &backends);
    let nginx = kept(&consul.url(), &service, "2").workers(1).start();
    let order = nginx.sequence("/", 5);
    wait::until_eq("open connections", SOON, &2, || open(&backends));
    let kept: Vec<&str> = order.split(' ').skip(3).collect();
    for backend in &backends {
        assert_eq!(backend.open(), usize::from(kept.contains(&backend.name())), "{order}");
    }
    assert_eq!(counted(&nginx, &service, "idle"), 2);
}

#[test]
fn a_connection_lasts_as_long_as_told_and_no_longer() {
    for (parameter, paths, connections) in [
        ("requests=3", &["/"; 9][..], 3),
        ("timeout=200ms", &["/", "/"], 1),
        ("time=300ms", &["/", "/wait/400"], 1),
    ] {
        let (consul, service) = (Agent::shared(), unique("web"));
        let backends = Backend::start_all(&["a"]);
        register(&consul, &service, &backends);
        let nginx = kept(&consul.url(), &service, &format!("4 {parameter}")).start();
        for path in paths {
            assert_eq!(nginx.outcome(path), "a", "{parameter}");
        }
        assert_eq!(backends[0].connections(), connections, "{parameter}");
        wait::until_eq("open connections", SOON, &0, || open(&backends));
        assert_eq!(counted(&nginx, &service, "idle"), 0, "{parameter}");
    }
}

#[test]
fn every_method_and_the_server_lines_keep_connections() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a"]);
    register(&consul, &service, &backends);
    let spare = Backend::start("spare");
    let server = format!("server {} backup;", spare.address());
    for lines in [
        "consul_dynamic %%SERVICE%%; consul_balance random; consul_keepalive 4;",
        "consul_keepalive 4; consul_dynamic %%SERVICE%%; consul_balance least_time;",
        "consul_dynamic %%SERVICE%%; consul_balance hash $uri consistent; consul_keepalive 4;",
        "least_conn; consul_dynamic %%SERVICE%%; consul_keepalive 4;",
        "random two; consul_dynamic %%SERVICE%%; consul_keepalive 4;",
        "hash $uri; consul_keepalive 4; consul_dynamic %%SERVICE%%;",
        &format!("server {}; consul_dynamic none; consul_keepalive 4;", spare.address()),
        &format!(
            "least_conn; server {}; consul_dynamic none; consul_keepalive 4;",
            spare.address()
        ),
        &format!("{server} consul_dynamic %%SERVICE%% max_conns=1; consul_keepalive 4;"),
    ] {
        let before = backends[0].connections() + spare.connections();
        let nginx = upstream(&consul.url(), &service, lines).start();
        for answer in nginx.sequence("/", 6).split(' ') {
            assert!(["a", "spare"].contains(&answer), "{lines}: {answer}");
        }
        assert_eq!(backends[0].connections() + spare.connections(), before + 1, "{lines}");
    }
}

#[test]
fn services_that_requests_name_share_the_connections_and_their_limit() {
    let consul = Agent::shared();
    let services = [unique("web"), unique("web"), unique("web")];
    let backends = Backend::start_all(&["a", "b", "c"]);
    for (service, backend) in services.iter().zip(backends.chunks(1)) {
        register(&consul, service, backend);
    }
    let lines = "consul_dynamic $arg_service; consul_allow_service web-*; consul_keepalive 2;";
    let nginx = upstream(&consul.url(), "", lines).workers(1).start();
    let get = |n: usize| nginx.outcome(&format!("/?service={}", services[n]));
    for _ in 0..3 {
        assert_eq!(get(0), "a");
    }
    assert_eq!(backends[0].connections(), 1);
    assert_eq!((get(1), get(2)), ("b".to_owned(), "c".to_owned()));
    wait::until_eq("open connections", SOON, &2, || open(&backends));
    assert_eq!(backends[0].open(), 0, "the oldest made room");
    assert_eq!((get(1), backends[1].connections()), ("b".to_owned(), 1));
}

#[test]
fn each_worker_counts_its_idle_connections_until_it_is_gone() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a"]);
    register(&consul, &service, &backends);
    let nginx = kept(&consul.url(), &service, "8").workers(2).allow_kills().start();
    wait::until("both workers have served", SOON, || {
        nginx.get("/");
        open(&backends) == 2
    });
    assert_eq!(counted(&nginx, &service, "idle"), 2);
    let worker = nginx.workers()[1];
    nginx_consul_e2e::process::send(worker, rustix::process::Signal::KILL);
    nginx.until_replaced(worker);
    wait::until_eq("idle connections", SOON, &1, || counted(&nginx, &service, "idle"));
}
