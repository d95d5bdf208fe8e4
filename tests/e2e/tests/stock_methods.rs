//! nginx's own balancing methods, which stand before `consul_dynamic` and do the picking.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread::{self, JoinHandle};

use nginx_consul_e2e::http::{self, Response};
use nginx_consul_e2e::tls::Authority;
use nginx_consul_e2e::{Agent, Backend, Config, Instance, Manner, Nginx, Tally, wait};
use socket2::{Domain, Socket, Type};

use crate::conf_errors::nginx_version;
use crate::methods::{owners, register_weighted, stock};
use crate::support::{SERVER, SOON, gateway, register, register_one, tally, unique, until_peers};

/// All of them, on every nginx.
pub(crate) const METHODS: [&str; 6] = [
    "least_conn",
    "hash $arg_key",
    "hash $arg_key consistent",
    "ip_hash",
    "random",
    "random two least_conn",
];

/// nginx whose upstream `api` picks by one of nginx's methods.
pub(crate) fn picking(consul: &Agent, service: &str, method: &str, parameters: &str) -> Config {
    let upstream = format!("{method}; consul_dynamic %%SERVICE%% {parameters};");
    gateway(&consul.url(), service, &upstream)
}

/// Waits until so many requests are answered by these: on a slow machine the worker takes its time
/// between two preparations of a method's peers.
#[track_caller]
fn until_tallied(nginx: &Nginx, requests: usize, expected: &str) {
    wait::until_eq("who answers", SOON, expected, || tally(nginx, "/", requests));
}

#[test]
fn keys_go_where_they_go_with_static_servers() {
    let consul = Agent::shared();
    let backends = Backend::start_all(&["a", "b", "c", "d", "e"]);
    for weights in [[1; 5], [1, 2, 3, 1, 5]] {
        for method in ["hash $arg_key", "hash $arg_key consistent"] {
            let service = unique("web");
            register_weighted(&consul, &service, &backends, &weights);
            let ours = picking(&consul, &service, method, "").workers(2).start();
            let theirs = stock(&backends, &weights, method);
            assert_eq!(owners(&ours, 0..200), owners(&theirs, 0..200), "{method} {weights:?}");
            // While one fails, its keys have the same second choice.
            backends[2].set(Manner::Reset);
            assert_eq!(owners(&ours, 0..100), owners(&theirs, 0..100), "{method} {weights:?}");
            backends[2].release();
        }
    }
}

#[test]
fn keys_move_as_the_set_changes_and_come_back() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c", "d"]);
    let ids = register(&consul, &service, &backends);
    let nginx = picking(&consul, &service, "hash $arg_key consistent", "").start();
    let before = owners(&nginx, 0..100);
    consul.deregister(&ids[1]);
    until_peers(&nginx, &service, &[&backends[0], &backends[2], &backends[3]]);
    let without = owners(&nginx, 0..100);
    assert!(before.values().any(|name| name == "b"), "{before:?}");
    for (key, owner) in &before {
        assert_eq!(owner == "b", *owner != without[key], "{key}: {owner}, then {}", without[key]);
    }
    register_one(&consul, &service, &backends[1]);
    until_peers(&nginx, &service, &backends.iter().collect::<Vec<_>>());
    assert_eq!(owners(&nginx, 0..100), before);
}

/// Who answers clients of some networks.
fn of_clients(nginx: &Nginx) -> BTreeMap<Ipv4Addr, String> {
    let networks = (0..40).map(|n| Ipv4Addr::new(127, n, n.wrapping_mul(13), 9));
    networks.map(|client| (client, from(client, nginx.address(), "/"))).collect()
}

/// Who answers a client of this address.
pub(crate) fn from(client: Ipv4Addr, nginx: SocketAddr, path: &str) -> String {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((client, 0)).into()).expect("an address of the loopback");
    socket.connect(&nginx.into()).expect("nginx listens");
    let mut connection = http::Connection::over(socket.into()).expect("a connection");
    connection.get(path).expect("an answer").outcome()
}

#[test]
fn ip_hash_sends_each_client_where_static_servers_would() {
    let consul = Agent::shared();
    let backends = Backend::start_all(&["a", "b", "c", "d", "e"]);
    for weights in [[1; 5], [3, 1, 2, 1, 1]] {
        let service = unique("web");
        register_weighted(&consul, &service, &backends, &weights);
        let ours = picking(&consul, &service, "ip_hash", "").workers(2).start();
        let theirs = stock(&backends, &weights, "ip_hash");
        let answers = of_clients(&ours);
        assert_eq!(answers, of_clients(&theirs), "{weights:?}");
        assert!(answers.values().any(|name| *name != answers[&Ipv4Addr::new(127, 0, 0, 9)]));
    }
}

#[test]
fn random_keeps_to_the_weights_and_to_what_is_busy() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register_weighted(&consul, &service, &backends, &[6, 1, 1]);
    let nginx = picking(&consul, &service, "random", "").workers(2).start();
    let seen: Tally = (0..400).map(|_| nginx.outcome("/")).collect();
    // 300 expected, with a standard deviation of 8.7.
    assert!(seen.total() == 400 && (250..350).contains(&seen.of("a")), "{seen}");
    drop(nginx);
    let service = unique("web");
    register(&consul, &service, &backends);
    let nginx = picking(&consul, &service, "random two least_conn", "").start();
    let clients = hanging(&nginx, &backends, 9);
    // The worse of two is never taken, so that nobody gets far ahead.
    assert!(backends.iter().all(|b| (1..=5).contains(&b.busy())), "{}", busy(&backends));
    release(&backends, clients);
}

pub(crate) type Client = JoinHandle<io::Result<Response>>;

/// `n` more requests, one after the other, that hang at whichever backend each is given. One that is
/// refused, because the worker has not come to prepare the new peers yet, is sent again.
pub(crate) fn hanging(nginx: &Nginx, backends: &[Backend], n: usize) -> Vec<Client> {
    backends.iter().for_each(|backend| backend.set(Manner::Hold));
    let (address, all) = (nginx.address(), || backends.iter().map(Backend::busy).sum::<usize>());
    let one = |_| {
        let before = all();
        let send = || thread::spawn(move || http::get(address, "/"));
        let mut client = send();
        wait::until("the request hangs", SOON, || {
            if client.is_finished() {
                client = send();
            }
            all() == before + 1
        });
        client
    };
    (0..n).map(one).collect()
}

pub(crate) fn busy(backends: &[Backend]) -> String {
    let each: Vec<String> =
        backends.iter().map(|b| format!("{}: {}", b.name(), b.busy())).collect();
    each.join(", ")
}

/// Has all of them answered.
#[track_caller]
pub(crate) fn release(backends: &[Backend], clients: Vec<Client>) {
    backends.iter().for_each(Backend::release);
    for client in clients {
        let answer = client.join().expect("a client").expect("an answer");
        assert_eq!(answer.status, 200);
    }
    // A backend has answered before it counts itself idle.
    wait::until("the backends are idle", SOON, || backends.iter().all(|b| b.busy() == 0));
}

#[track_caller]
pub(crate) fn until_idle(nginx: &Nginx) {
    wait::until_eq("requests in flight", SOON, &0, || nginx.in_flight());
}

#[test]
fn least_conn_knows_over_updates_who_is_busy() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    let ids = register(&consul, &service, &backends[..2]);
    let nginx = picking(&consul, &service, "least_conn", "").start();
    let mut clients = hanging(&nginx, &backends, 8);
    assert_eq!(busy(&backends), "a: 4, b: 4, c: 0");
    assert_eq!(nginx.in_flight(), 8);
    register_one(&consul, &service, &backends[2]);
    until_peers(&nginx, &service, &[&backends[0], &backends[1], &backends[2]]);
    clients.extend(hanging(&nginx, &backends, 4));
    assert_eq!(busy(&backends), "a: 4, b: 4, c: 4");
    // One that leaves with requests, and returns while they last.
    consul.deregister(&ids[0]);
    until_peers(&nginx, &service, &[&backends[1], &backends[2]]);
    clients.extend(hanging(&nginx, &backends, 2));
    assert_eq!(busy(&backends), "a: 4, b: 5, c: 5");
    register_one(&consul, &service, &backends[0]);
    until_peers(&nginx, &service, &[&backends[0], &backends[1], &backends[2]]);
    clients.extend(hanging(&nginx, &backends, 4));
    assert_eq!(busy(&backends), "a: 6, b: 6, c: 6");
    // Those that hold older sets end in the newest one.
    release(&backends, clients);
    until_idle(&nginx);
    let clients = hanging(&nginx, &backends, 9);
    assert_eq!(busy(&backends), "a: 3, b: 3, c: 3");
    release(&backends, clients);
    until_idle(&nginx);
}

#[test]
fn max_conns_holds_over_an_update() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends[..2]);
    for method in METHODS {
        let nginx = picking(&consul, &service, method, "max_conns=2").start();
        let mut clients = hanging(&nginx, &backends[..2], 4);
        assert_eq!(busy(&backends[..2]), "a: 2, b: 2", "{method}");
        assert_eq!(nginx.outcome("/"), "502", "{method}");
        let id = register_one(&consul, &service, &backends[2]);
        until_peers(&nginx, &service, &[&backends[0], &backends[1], &backends[2]]);
        clients.extend(hanging(&nginx, &backends, 2));
        assert_eq!(busy(&backends), "a: 2, b: 2, c: 2", "{method}");
        assert_eq!(nginx.outcome("/"), "502", "{method}");
        release(&backends, clients);
        until_idle(&nginx);
        let clients = hanging(&nginx, &backends, 6);
        assert_eq!(busy(&backends), "a: 2, b: 2, c: 2", "{method}, after the first ones");
        consul.deregister(&id);
        until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
        release(&backends, clients);
        until_idle(&nginx);
    }
}

#[test]
fn failures_are_remembered_over_an_update() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends[..2]);
    let nginx = picking(&consul, &service, "least_conn", "fail_timeout=1m").start();
    backends[0].set(Manner::Reset);
    assert_eq!(tally(&nginx, "/", 10), "b: 10");
    assert_eq!(backends[0].requests(), 1);
    register_one(&consul, &service, &backends[2]);
    until_peers(&nginx, &service, &[&backends[0], &backends[1], &backends[2]]);
    until_tallied(&nginx, 10, "b: 5, c: 5");
    assert_eq!(backends[0].requests(), 1);
    assert_eq!(nginx.logged("temporarily disabled").len(), 1);
    let peers = nginx.service(&service)["peers"].clone();
    let fails: Vec<_> =
        peers.as_array().into_iter().flatten().map(|p| p["fails"].clone()).collect();
    assert_eq!(fails, [1, 0, 0]);
}

#[test]
fn connections_are_kept_alive_over_an_update() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends[..2]);
    let nginx =
        gateway(&consul.url(), &service, "least_conn; consul_dynamic %%SERVICE%%; keepalive 8;")
            .file("server.conf", "proxy_http_version 1.1; proxy_set_header Connection \"\";")
            .start();
    assert_eq!(tally(&nginx, "/", 20), "a: 10, b: 10");
    let id = register_one(&consul, &service, &backends[2]);
    until_peers(&nginx, &service, &[&backends[0], &backends[1], &backends[2]]);
    until_tallied(&nginx, 12, "a: 4, b: 4, c: 4");
    consul.deregister(&id);
    until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
    until_tallied(&nginx, 12, "a: 6, b: 6");
    let connections: Vec<usize> = backends.iter().map(Backend::connections).collect();
    assert_eq!(connections, [1, 1, 1]);
}

#[test]
fn tls_sessions_are_resumed_over_an_update() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let authority = Authority::new();
    let backends =
        ["a", "b", "c"].map(|name| Backend::start_tls(name, authority.server(&["api.test"])));
    register(&consul, &service, &backends[..2]);
    let nginx = Config::http(&format!(
        "consul_server %%CONSUL%%; upstream api {{ least_conn; consul_dynamic %%SERVICE%%; }}
         proxy_ssl_trusted_certificate %%PREFIX%%/ca.pem; proxy_ssl_verify on;
         proxy_ssl_name api.test; proxy_ssl_server_name on; proxy_set_header Connection close; {}",
        SERVER.replace("http://api", "https://api")
    ))
    .set("CONSUL", consul.url())
    .set("SERVICE", &service)
    .file("ca.pem", authority.pem())
    .start();
    assert_eq!(tally(&nginx, "/", 8), "a: 4, b: 4");
    register_one(&consul, &service, &backends[2]);
    until_peers(&nginx, &service, &[&backends[0], &backends[1], &backends[2]]);
    until_tallied(&nginx, 9, "a: 3, b: 3, c: 3");
    for backend in &backends {
        assert_eq!(backend.resumed(), backend.connections() - 1, "{}", backend.name());
    }
}

#[test]
fn backups_and_server_lines_come_after_the_method_whatever_it_supports() {
    let (consul, backends) = (Agent::shared(), Backend::start_all(&["a", "b", "backup", "line"]));
    for method in METHODS {
        let service = unique("web");
        let ids = register(&consul, &service, &backends[..2]);
        let backup_id = format!("{service}-backup");
        let backup = Instance::new(&service, &backup_id, backends[2].address());
        consul.register(&backup.meta("nginx_backup", "true"));
        let upstream =
            format!("{method}; consul_dynamic %%SERVICE%% fail_timeout=2s; server %%LINE%%;");
        let nginx =
            gateway(&consul.url(), &service, &upstream).set("LINE", backends[3].address()).start();
        let seen: Tally = (0..10).map(|n| nginx.outcome(&format!("/?key={n}"))).collect();
        assert_eq!(seen.of("a") + seen.of("b"), 10, "{method}: {seen}");
        // Within one request, from failed ones to the next tier.
        backends[..2].iter().for_each(|backend| backend.set(Manner::Reset));
        assert_eq!(tally(&nginx, "/", 4), "backup: 4", "{method}");
        backends[2].set(Manner::Reset);
        assert_eq!(tally(&nginx, "/", 4), "line: 4", "{method}");
        backends.iter().for_each(Backend::release);
        // As instances leave.
        ids.iter().for_each(|id| consul.deregister(id));
        until_peers(&nginx, &service, &[&backends[2]]);
        wait::until_eq("who answers", SOON, "backup", || nginx.outcome("/"));
        consul.deregister(&backup_id);
        until_peers(&nginx, &service, &[]);
        until_tallied(&nginx, 4, "line: 4");
        register(&consul, &service, &backends[..1]);
        until_peers(&nginx, &service, &[&backends[0]]);
        until_tallied(&nginx, 4, "a: 4");
    }
}

#[test]
fn without_instances_the_answer_is_502_until_some_come() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    for method in METHODS {
        let nginx = picking(&consul, &service, method, "").start();
        assert_eq!(tally(&nginx, "/", 3), "502: 3", "{method}");
        assert_eq!(nginx.logged("no usable instance of service").len(), 1, "{method}");
        let id = register_one(&consul, &service, &backend);
        until_peers(&nginx, &service, &[&backend]);
        until_tallied(&nginx, 3, "a: 3");
        consul.deregister(&id);
        until_peers(&nginx, &service, &[]);
        until_tallied(&nginx, 3, "502: 3");
    }
}

#[test]
fn status_names_the_method_as_it_is_written() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let nginx = Config::http(&format!(
        "consul_server %%CONSUL%%; consul_balance random;
         upstream api {{
             keepalive_timeout 5s; # not a method; nor this
             hash  $arg_key
                 consistent; consul_dynamic %%SERVICE%%;
         }}
         {SERVER}"
    ))
    .set("CONSUL", consul.url())
    .set("SERVICE", &service)
    .start();
    assert_eq!(nginx.status()["upstreams"][0]["method"], "hash $arg_key consistent");
}

#[test]
fn sticky_keeps_a_client_with_its_instance_over_updates() {
    if nginx_version() < (1, 29, 6) {
        println!("skipped: this nginx has no \"sticky\" directive, which came with 1.29.6");
        return;
    }
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends[..2]);
    let nginx = picking(&consul, &service, "least_conn; sticky cookie srv", "").start();
    let mut cookies = BTreeMap::new();
    for _ in 0..4 {
        let answer = nginx.get("/");
        let cookie = answer.header("set-cookie").expect("a cookie").to_owned();
        cookies.insert(answer.outcome(), cookie.split(';').next().unwrap_or("").to_owned());
    }
    assert_eq!(cookies.len(), 2, "{cookies:?}");
    let who = |cookie: &str| {
        let answer = http::request(nginx.address(), "GET", "/", &[("Cookie", cookie)], b"");
        answer.expect("an answer").outcome()
    };
    let stays = |name: &str, cookie: &str| (0..5).all(|_| who(cookie) == name);
    assert!(cookies.iter().all(|(name, cookie)| stays(name, cookie)), "{cookies:?}");
    register_one(&consul, &service, &backends[2]);
    until_peers(&nginx, &service, &[&backends[0], &backends[1], &backends[2]]);
    assert!(cookies.iter().all(|(name, cookie)| stays(name, cookie)), "{cookies:?}");
    // Its instance gone, a client goes to another.
    consul.deregister(&format!("{service}-a"));
    until_peers(&nginx, &service, &[&backends[1], &backends[2]]);
    assert_ne!(who(&cookies["a"]), "a");
    assert!(stays("b", &cookies["b"]), "{cookies:?}");
}
