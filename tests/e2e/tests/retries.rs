//! What happens when a peer fails, and what nginx does with a connection: all of nginx's own works.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use nginx_consul_e2e::http::{self, Connection};
use nginx_consul_e2e::ports::BlackHole;
use nginx_consul_e2e::tls::Authority;
use nginx_consul_e2e::{Agent, Backend, Config, Instance, Manner, Tally, wait};

use crate::support::{
    SERVER, SOON, balanced, first_tries, follow, gateway, register, register_one, tally, unique,
    until_peers,
};

/// `uri|status|addresses|statuses` with the addresses as backends' names.
fn named(line: &str, backends: &[Backend]) -> String {
    backends.iter().fold(line.to_owned(), |line, backend| {
        line.replace(&backend.address().to_string(), backend.name())
    })
}

#[test]
fn a_retry_goes_to_a_peer_not_yet_tried() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends);
    for method in ["round_robin", "random", "least_conn"] {
        let nginx = balanced(&consul, &service, "max_fails=0", method).start();
        backends[0].set(Manner::Reset);
        backends[1].set(Manner::Reset);
        assert_eq!(tally(&nginx, "/try", 12), "c: 12", "{method}");
        for line in nginx.access("/try", 12) {
            let addresses: Vec<&str> = line.split('|').nth(2).unwrap_or("").split(", ").collect();
            let distinct: Tally = addresses.iter().copied().collect();
            assert_eq!(distinct.outcomes().split(' ').count(), addresses.len(), "{method}: {line}");
        }
        backends.iter().for_each(Backend::release);
    }
}

#[test]
fn tries_end_when_every_peer_was_tried() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends);
    backends.iter().for_each(|backend| backend.set(Manner::Reset));
    for method in ["round_robin", "random", "least_conn"] {
        let nginx = balanced(&consul, &service, "max_fails=0", method).start();
        assert_eq!(nginx.get("/all").status, 502);
        let line = named(&nginx.access("/all", 1)[0], &backends);
        let fields: Vec<&str> = line.split('|').collect();
        let mut tried: Vec<&str> = fields[2].split(", ").collect();
        tried.sort_unstable();
        assert_eq!(tried, ["a", "b", "c"], "{method}: {line}");
        assert_eq!(fields[3], "502, 502, 502", "{method}: {line}");
    }
}

#[test]
fn proxy_next_upstream_tries_limits_the_tries() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends);
    backends.iter().for_each(|backend| backend.set(Manner::Reset));
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;")
        .file("server.conf", "proxy_next_upstream_tries 2;")
        .start();
    assert_eq!(nginx.get("/two").status, 502);
    let line = named(&nginx.access("/two", 1)[0], &backends);
    // Any other one is the second.
    let expected = ["/two|502|a, b|502, 502", "/two|502|a, c|502, 502"];
    assert!(expected.contains(&&*line), "{line}");
}

#[test]
fn the_status_of_an_answer_may_be_a_reason_to_retry() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    backends[0].set(Manner::Status(503));
    let nginx = Config::http(
        "consul_server %%CONSUL%%; upstream api { consul_dynamic %%SERVICE%% max_fails=0; }
         server { listen 127.0.0.1:%%PORT%%;
             location / { proxy_pass http://api; proxy_next_upstream http_503; }
             location /once { proxy_pass http://api; } }",
    )
    .set("CONSUL", consul.url())
    .set("SERVICE", &service)
    .start();
    assert_eq!(nginx.outcome("/503"), "b");
    assert_eq!(named(&nginx.access("/503", 1)[0], &backends), "/503|200|a, b|503, 200");
    let seen: Tally = (0..4).map(|_| nginx.outcome("/once")).collect();
    assert_eq!(seen.to_string(), "503: 2, b: 2");
}

#[test]
fn a_post_is_not_sent_twice_unless_that_is_allowed() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    backends[0].set(Manner::Reset);
    let nginx = Config::http(
        "consul_server %%CONSUL%%; upstream api { consul_dynamic %%SERVICE%% max_fails=0; }
         server { listen 127.0.0.1:%%PORT%%;
             location / { proxy_pass http://api; }
             location /twice { proxy_pass http://api;
                 proxy_next_upstream error non_idempotent; } }",
    )
    .set("CONSUL", consul.url())
    .set("SERVICE", &service)
    .start();
    let post = |path| http::request(nginx.address(), "POST", path, &[], b"x").expect("an answer");
    let once: Tally = (0..4).map(|_| post("/once").outcome()).collect();
    assert_eq!(once.to_string(), "502: 2, b: 2");
    let twice: Tally = (0..4).map(|_| post("/twice").outcome()).collect();
    assert_eq!(twice.to_string(), "b: 4");
}

#[test]
fn a_peer_that_doesnt_connect_is_left_after_the_timeout() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let hole = BlackHole::open();
    let backend = Backend::start("b");
    consul.register(&Instance::new(&service, &format!("{service}-a"), hole.address()));
    register_one(&consul, &service, &backend);
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;")
        .file("server.conf", "proxy_connect_timeout 200ms;")
        .start();
    assert_eq!(tally(&nginx, "/", 4), "b: 4");
    let line = nginx.access("/", 1)[0].clone();
    assert_eq!(line, format!("/|200|{}, {}|504, 200", hole.address(), backend.address()));
}

#[test]
fn upstream_addr_is_right_for_every_try_while_the_set_changes() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c", "d"]);
    let ids = register(&consul, &service, &backends[..2]);
    let nginx = follow(&consul.url(), &service);
    backends[0].set(Manner::Hold);
    backends[1].set(Manner::Hold);
    let address = nginx.address();
    let client = thread::spawn(move || http::get(address, "/pinned"));
    wait::until("the request hangs at a", SOON, || backends[0].busy() == 1);
    // All it knows leaves, and others come, more than once.
    register(&consul, &service, &backends[2..]);
    ids.iter().for_each(|id| consul.deregister(id));
    until_peers(&nginx, &service, &[&backends[2], &backends[3]]);
    assert_eq!(tally(&nginx, "/", 4), "c: 2, d: 2");
    backends[0].set(Manner::Reset);
    wait::until("the retry hangs at b", SOON, || backends[1].busy() == 1);
    consul.deregister(&format!("{service}-d"));
    until_peers(&nginx, &service, &[&backends[2]]);
    backends[1].release();
    let answer = client.join().expect("a client").expect("an answer");
    assert_eq!(answer.outcome(), "b");
    assert_eq!(named(&nginx.access("/pinned", 1)[0], &backends), "/pinned|200|a, b|502, 200");
}

#[test]
fn websockets_work() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    let id = register_one(&consul, &service, &backend);
    let nginx = Config::http(
        "consul_server %%CONSUL%%; upstream api { consul_dynamic %%SERVICE%%; }
         server { listen 127.0.0.1:%%PORT%%;
             location / { proxy_pass http://api; proxy_http_version 1.1;
                 proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection Upgrade; }
             location = /consul { consul_status; } }",
    )
    .set("CONSUL", consul.url())
    .set("SERVICE", &service)
    .start();
    let mut connection = Connection::open(nginx.address()).expect("a connection");
    let headers = [("Upgrade", "websocket"), ("Connection", "Upgrade")];
    let answer = connection.request("GET", "/ws", &headers, b"").expect("an answer");
    assert_eq!((answer.status, answer.header("x-backend")), (101, Some("a")));
    let mut echo = |text: &[u8]| {
        connection.stream().write_all(text).expect("sent");
        let mut back = vec![0; text.len()];
        connection.reader().read_exact(&mut back).expect("echoed");
        assert_eq!(back, text);
    };
    echo(b"hello");
    // The instance leaves; the conversation goes on.
    consul.deregister(&id);
    until_peers(&nginx, &service, &[]);
    echo(b"still here");
}

/// With `Connection: close`, because nginx keeps connections without being told since 1.29.7.
#[test]
fn peers_are_reached_over_tls_and_sessions_are_reused() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let authority = Authority::new();
    let backends = ["a", "b"].map(|name| Backend::start_tls(name, authority.server(&["api.test"])));
    register(&consul, &service, &backends);
    let nginx = Config::http(&format!(
        "consul_server %%CONSUL%%; upstream api {{ consul_dynamic %%SERVICE%%; }}
         proxy_ssl_trusted_certificate %%PREFIX%%/ca.pem; proxy_ssl_verify on;
         proxy_ssl_name api.test; proxy_ssl_server_name on; proxy_set_header Connection close; {}",
        SERVER.replace("http://api", "https://api")
    ))
    .set("CONSUL", consul.url())
    .set("SERVICE", &service)
    .file("ca.pem", authority.pem())
    .start();
    assert_eq!(tally(&nginx, "/", 8), "a: 4, b: 4");
    for backend in &backends {
        assert_eq!(backend.connections(), 4, "{}", backend.name());
        assert_eq!(backend.resumed(), 3, "resumed sessions of {}", backend.name());
    }
    // Another generation: what is known of an instance stays.
    let late = Backend::start_tls("c", authority.server(&["api.test"]));
    register_one(&consul, &service, &late);
    until_peers(&nginx, &service, &[&backends[0], &backends[1], &late]);
    assert_eq!(tally(&nginx, "/", 9), "a: 3, b: 3, c: 3");
}

#[test]
fn connections_are_kept_alive() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%; keepalive 8;")
        .file("server.conf", "proxy_http_version 1.1; proxy_set_header Connection \"\";")
        .start();
    assert_eq!(tally(&nginx, "/", 20), "a: 10, b: 10");
    let connections: Vec<usize> = backends.iter().map(Backend::connections).collect();
    assert_eq!(connections, [1, 1]);
    // A change of the set doesn't cost the connections of those that stay.
    let late = Backend::start("c");
    let id = register_one(&consul, &service, &late);
    until_peers(&nginx, &service, &[&backends[0], &backends[1], &late]);
    assert_eq!(tally(&nginx, "/", 12), "a: 4, b: 4, c: 4");
    consul.deregister(&id);
    until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
    // One that left gets nothing more over the connection that is still kept.
    assert_eq!(tally(&nginx, "/", 12), "a: 6, b: 6");
    let connections: Vec<usize> = backends.iter().map(Backend::connections).collect();
    assert_eq!(connections, [1, 1]);
}

#[test]
fn a_slow_peer_times_out_and_another_answers() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    backends[0].set(Manner::Slow(Duration::from_secs(3)));
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;")
        .file("server.conf", "proxy_read_timeout 200ms;")
        .start();
    assert_eq!(nginx.outcome("/slow"), "b");
    assert_eq!(named(&nginx.access("/slow", 1)[0], &backends), "/slow|200|a, b|504, 200");
}

#[test]
fn a_peer_that_never_answers_costs_its_own_share_of_the_requests_a_timeout() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends);
    backends[0].set(Manner::Silent);
    let nginx = balanced(&consul, &service, "max_fails=0", "round_robin")
        .file("server.conf", "proxy_read_timeout 200ms;")
        .start();
    assert_eq!(tally(&nginx, "/slow", 10), "b: 10");
    let lines = nginx.access("/slow", 10);
    let timeouts = lines.iter().filter(|line| line.ends_with("|504, 200")).count();
    assert_eq!(timeouts, 5, "{lines:#?}");
}

#[test]
fn retries_take_no_turns_in_any_of_two_workers() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends);
    backends[0].set(Manner::Status(404));
    let nginx = balanced(&consul, &service, "", "round_robin")
        .file("server.conf", "proxy_next_upstream error timeout http_404;")
        .workers(2)
        .start();
    let seen = first_tries(&nginx, "/first", 240, &backends);
    // The last round of each worker may be unfinished.
    let is_even = |name| seen.of(name).abs_diff(80) <= 2;
    assert!(["a", "b", "c"].into_iter().all(is_even), "{seen}");
}

#[test]
fn when_all_fail_over_kept_connections_the_answer_is_502_at_once() {
    let consul = Agent::shared();
    for count in [1, 3] {
        for method in ["", "least_conn;", "random;", "hash $uri consistent;"] {
            for keepalive in ["keepalive 8;", "consul_keepalive 8;"] {
                let service = unique("web");
                let backends = Backend::start_all(&["a", "b", "c"][..count]);
                register(&consul, &service, &backends);
                let lines = format!("{method} consul_dynamic %%SERVICE%%; {keepalive}");
                let nginx = gateway(&consul.url(), &service, &lines)
                    .file("server.conf", crate::keepalive::ALIVE)
                    .workers(1)
                    .start();
                wait::until("a connection to each is kept", SOON, || {
                    (0..24).for_each(|n| drop(nginx.get(&format!("/{n}"))));
                    backends.iter().all(|backend| backend.connections() > 0)
                });
                backends.iter().for_each(|backend| backend.set(Manner::Reset));
                let what = format!("{count} instances, {lines}");
                for _ in 0..3 {
                    assert_eq!(nginx.outcome("/1"), "502", "{what}");
                }
                let asked: usize = backends.iter().map(Backend::requests).sum();
                assert!(asked < 100, "{what}: {asked} attempts");
            }
        }
    }
}
