//! What becomes of an instance's address, port and weight.

use std::net::Ipv6Addr;

use nginx_consul_e2e::{Agent, Backend, Instance};

use crate::support::{follow, register_one, tally, unique, until_followed, until_served_by};

#[test]
fn an_instance_without_address_has_its_nodes() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    let instance = Instance::new(&service, &unique("id"), backend.address()).address("");
    consul.register_external(&unique("node"), "127.0.0.1", &instance);
    let nginx = follow(&consul.url(), &service);
    assert_eq!(tally(&nginx, "/", 2), "a: 2");
}

#[test]
fn an_instance_may_have_an_ipv6_address_bare_or_in_brackets() {
    let (consul, service) = (Agent::shared(), unique("web"));
    for (name, address) in [("bare", "::1"), ("brackets", "[::1]")] {
        let backend = Backend::start_on(name, Ipv6Addr::LOCALHOST);
        let service = format!("{service}-{name}");
        let id = unique("id");
        consul.register(&Instance::new(&service, &id, backend.address()).address(address));
        let nginx = follow(&consul.url(), &service);
        assert_eq!(tally(&nginx, "/", 2), format!("{name}: 2"));
        assert_eq!(nginx.peers(&service), backend.address().to_string());
    }
}

#[test]
fn an_instance_may_have_a_host_name() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    let instance = Instance::new(&service, &unique("id"), backend.address()).address("localhost");
    consul.register(&instance);
    let nginx = follow(&consul.url(), &service);
    until_served_by(&nginx, "/", "a");
}

#[test]
fn a_host_name_that_nobody_knows_is_skipped() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let id = unique("lost");
    consul.register(&Instance::new(&service, &id, backend.address()).address("nowhere.invalid"));
    let nginx = follow(&consul.url(), &service);
    let line = nginx.wait_for_log(&format!("instance \"{id}\""));
    assert!(line.contains("[warn]") && line.contains("nowhere.invalid"), "{line}");
    assert_eq!(tally(&nginx, "/", 4), "a: 4");
}

#[test]
fn duplicates_of_an_address_are_one_peer() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    for _ in 0..3 {
        consul.register(&Instance::new(&service, &unique("id"), backends[0].address()));
    }
    register_one(&consul, &service, &backends[1]);
    let nginx = follow(&consul.url(), &service);
    assert_eq!(tally(&nginx, "/", 8), "a: 4, b: 4");
}

#[test]
fn weights_share_the_requests_out() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = [unique("id"), unique("id")];
    for ((backend, id), weight) in backends.iter().zip(&ids).zip([3, 1]) {
        consul.register(&Instance::new(&service, id, backend.address()).weights(weight, 1));
    }
    let nginx = follow(&consul.url(), &service);
    assert_eq!(tally(&nginx, "/", 8), "a: 6, b: 2");
    consul.register(&Instance::new(&service, &ids[1], backends[1].address()).weights(3, 1));
    nginx_consul_e2e::wait::until_eq("new weights", crate::support::SOON, "a: 4, b: 4", || {
        tally(&nginx, "/", 8)
    });
}

#[test]
fn a_bad_instance_is_skipped_with_one_warning_and_costs_nobody_else() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let bad = |id: &str, address: &str| {
        Instance::new(&service, id, backends[0].address()).address(address)
    };
    let ids = [unique("bad"), unique("bad"), unique("bad")];
    let node = unique("node");
    consul.register_external(&node, "127.0.0.1", &bad(&ids[0], "bad addr!"));
    consul.register_external(&node, "127.0.0.1", &bad(&ids[1], "unix:///x"));
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    consul.register_external(&node, "127.0.0.1", &Instance::new(&service, &ids[2], address));
    let nginx = follow(&consul.url(), &service);
    assert_eq!(tally(&nginx, "/", 4), "a: 4");
    // More updates come, and the bad ones are still there.
    until_followed(&consul, &nginx, &service, &backends[1]);
    for id in &ids {
        nginx.wait_for_log(&format!("instance \"{id}\""));
        let lines = nginx.logged(&format!("instance \"{id}\""));
        assert_eq!(lines.len(), 1, "{lines:#?}");
        let text = format!("service \"{service}\": instance \"{id}\" on node \"{node}\" skipped: ");
        assert!(lines[0].contains("[warn]") && lines[0].contains(&text), "{}", lines[0]);
    }
}

#[test]
fn a_port_beyond_the_range_is_skipped() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let node = unique("node");
    consul.put(
        "/v1/catalog/register",
        &serde_json::json!({
            "Node": node, "Address": "127.0.0.1",
            "Service": { "Service": service, "ID": "high", "Address": "127.0.0.1", "Port": 70_000 },
        }),
    );
    let nginx = follow(&consul.url(), &service);
    assert_eq!(tally(&nginx, "/", 4), "a: 4");
    let line = nginx.wait_for_log("instance \"high\"");
    assert!(line.contains("70000"), "{line}");
}
