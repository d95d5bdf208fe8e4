//! What the error log says, and what it doesn't.

use std::net::SocketAddr;

use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::{Agent, Backend, Fault, Manner, Nginx, Proxy, wait};
use socket2::{Domain, Socket, Type};

use crate::support::{
    SOON, follow, gateway, register_one, tally, unique, until_peers, until_served_by,
};

/// The log's lines about a service: level and text, without what nginx puts around them.
fn lines(nginx: &Nginx, service: &str) -> Vec<String> {
    let own = |line: &str| {
        let level = line.split('[').nth(1)?.split(']').next()?;
        Some(format!("[{level}] {}", &line[line.find("consul: ")?..]))
    };
    nginx.logged(&format!("\"{service}\"")).iter().filter_map(|line| own(line)).collect()
}

fn without_index(line: &str) -> String {
    line.split(", index ").next().unwrap_or_default().to_owned()
}

#[test]
fn each_change_is_one_line() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    let nginx = follow(&consul.url(), &service);
    let mut ids = Vec::new();
    for backend in &backends {
        ids.push(register_one(&consul, &service, backend));
        let known: Vec<&Backend> = backends.iter().take(ids.len()).collect();
        until_peers(&nginx, &service, &known);
    }
    consul.deregister(&ids[0]);
    until_peers(&nginx, &service, &[&backends[1], &backends[2]]);
    let text = |n, change| format!("[notice] consul: service \"{service}\": {n} ({change})");
    let expected = [
        text("1 peer", "+1 -0"),
        text("2 peers", "+1 -0"),
        text("3 peers", "+1 -0"),
        text("2 peers", "+0 -1"),
    ];
    // One that says that there is nobody may come before them.
    let is_last = |line: &String| without_index(line) == expected[3];
    wait::until("the last line", SOON, || lines(&nginx, &service).last().is_some_and(is_last));
    let seen = lines(&nginx, &service);
    let bare: Vec<String> = seen.iter().map(|line| without_index(line)).collect();
    assert_eq!(bare[bare.len() - 4..], expected, "{seen:#?}");
    let index = |line: &String| line.split(", index ").nth(1).and_then(|n| n.parse::<u64>().ok());
    assert!(seen.iter().all(|line| index(line).is_some()), "{seen:#?}");
    let actual = nginx.service(&service)["index"].as_u64();
    assert_eq!(index(&seen[seen.len() - 1]), actual, "{seen:#?}");
}

#[test]
fn queries_that_differ_in_their_times_alone_are_logged_with_their_upstreams() {
    let (consul, service, backend) = (Agent::shared(), unique("web"), Backend::start("a"));
    register_one(&consul, &service, &backend);
    let quick = format!("upstream quick {{ consul_dynamic {service}; consul_wait 5s; }}");
    let nginx =
        gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").more(&quick).start();
    nginx.wait_for_log(&format!("service \"{service}\" in upstream \"quick\": 1 peer (+1 -0)"));
    let named = lines(&nginx, &service);
    assert!(named.iter().all(|line| line.contains("\" in upstream \"")), "{named:#?}");
    assert!(named.len() >= 2, "{named:#?}");
}

#[test]
fn an_outage_is_a_line_at_its_start_and_one_at_its_end_with_its_length() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let proxy = Proxy::start(consul.address());
    let nginx =
        gateway(&proxy.url(), &service, "consul_dynamic %%SERVICE%%; consul_retry 20ms 60ms;")
            .log_level("notice")
            .start();
    until_peers(&nginx, &service, &[&backend]);
    let before = lines(&nginx, &service).len();
    proxy.set(Fault::Refuse);
    nginx.wait_for_log("retrying in");
    wait::until("several failures", SOON, || {
        nginx.service(&service)["failures"].as_u64() >= Some(5)
    });
    proxy.set(Fault::Pass);
    nginx.wait_for_log("recovered after");
    let seen = lines(&nginx, &service).split_off(before);
    assert_eq!(seen.len(), 2, "{seen:#?}");
    let start = format!("[error] consul: service \"{service}\": ");
    assert!(seen[0].starts_with(&start), "{seen:#?}");
    assert!(seen[0].contains(", retrying in ") && seen[0].contains(&proxy.url()), "{seen:#?}");
    let end = format!("consul: service \"{service}\": recovered after ");
    let length = seen[1].split("recovered after ").nth(1).unwrap_or_default();
    let digits: String = length.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let unit = &length[digits.len()..];
    assert!(seen[1].contains(&end), "{seen:#?}");
    assert!(digits.parse::<f64>().is_ok_and(|n| n > 0.0), "no length in {seen:#?}");
    assert!(unit.starts_with('s') || unit.starts_with("ms"), "no unit in {seen:#?}");
}

#[test]
fn what_changes_no_peer_is_no_line() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let text = "consul_dynamic %%SERVICE%%; consul_wait 1s;";
    let mut nginx = gateway(&consul.url(), &service, text).start();
    until_served_by(&nginx, "/", "a");
    let before = lines(&nginx, &service);
    assert_eq!(before.len(), 1, "{before:#?}");
    type Happens<'a> = &'a dyn Fn(&mut Nginx);
    let happens: [(&str, Happens<'_>); 3] = [
        ("the same registration", &|_| drop(register_one(&consul, &service, &backend))),
        ("that of another service", &|_| drop(register_one(&consul, &unique("other"), &backend))),
        ("a reload", &|nginx| nginx.reload_and_wait()),
    ];
    for (what, happen) in happens {
        happen(&mut nginx);
        // Then a poll that ends without news.
        let age = || nginx.service(&service)["last_good_seconds"].as_f64().unwrap_or(9.0);
        wait::until("a poll is under way", SOON, || age() > 0.4);
        wait::until("and ends", SOON, || age() < 0.2);
        assert_eq!(tally(&nginx, "/", 2), "a: 2");
        assert_eq!(lines(&nginx, &service), before, "{what}");
    }
}

/// The debug lines of requests, without what nginx puts around them.
fn traced(nginx: &Nginx) -> Vec<String> {
    let own = |line: &str| {
        let text = &line[line.find("consul: ")?..];
        line.contains("[debug]").then(|| text.split(", client: ").next().unwrap_or(text).to_owned())
    };
    let about_requests = |line: &String| !line.contains("made anew") && !line.contains("prepared");
    nginx.logged("consul: ").iter().filter_map(|line| own(line)).filter(about_requests).collect()
}

/// Waits until the log has the whole of what was asked: a client has its answer before.
fn until_done(nginx: &Nginx) {
    wait::until("the request is done", SOON, || {
        traced(nginx).last().is_some_and(|line| line.ends_with(" is done"))
    });
}

fn ask_from(client: [u8; 4], nginx: &Nginx) -> String {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((client, 0)).into()).expect("an address of the loopback");
    socket.connect(&nginx.address().into()).expect("nginx");
    let mut connection = Connection::over(socket.into()).expect("a connection");
    connection.get("/").expect("an answer").outcome()
}

#[test]
fn debug_lines_are_of_the_clients_that_debug_connection_names_only() {
    let consul = Agent::shared();
    for method in ["", "least_conn;"] {
        let service = unique("web");
        let backends = Backend::start_all(&["a", "b"]);
        let ids: Vec<String> =
            backends.iter().map(|backend| register_one(&consul, &service, backend)).collect();
        let upstream = format!("{method} consul_dynamic %%SERVICE%% fail_timeout=1m;");
        let nginx = gateway(&consul.url(), &service, &upstream)
            .events("debug_connection 127.0.0.7;")
            .log_level("notice")
            .start();
        until_peers(&nginx, &service, &backends.iter().collect::<Vec<_>>());
        for _ in 0..4 {
            ask_from([127, 0, 0, 8], &nginx);
        }
        assert_eq!(traced(&nginx), [""; 0], "{method}");
        ask_from([127, 0, 0, 7], &nginx);
        until_done(&nginx);
        let lines = traced(&nginx);
        let generation = nginx.service(&service)["generation"].to_string();
        assert_eq!(
            lines[0],
            format!(
                "consul: upstream \"api\": service \"{service}\", 2 peers, generation {generation}"
            )
        );
        assert!(lines[1].contains(" picked by ") && lines[1].ends_with("tier 1, attempt 1"));
        assert!(lines.len() == 3 && lines[2].ends_with(" is done"), "{lines:#?}");

        // One that fails is left, and passed over from then on.
        backends[0].set(Manner::Reset);
        wait::until("the first one has failed", SOON, || {
            assert_eq!(ask_from([127, 0, 0, 7], &nginx), "b");
            traced(&nginx).iter().any(|line| line.ends_with(" has failed"))
        });
        until_done(&nginx);
        let before = traced(&nginx).len();
        assert_eq!(ask_from([127, 0, 0, 7], &nginx), "b");
        wait::until("two lines more", SOON, || traced(&nginx).len() >= before + 2);
        let lines = traced(&nginx).split_off(before);
        let address = backends[0].address();
        let passed = format!("{address} passed over, its failures keep it out");
        assert!(!method.is_empty() || lines[1].ends_with(&passed), "{lines:#?}");
        ids.iter().for_each(|id| consul.deregister(id));
    }
}
