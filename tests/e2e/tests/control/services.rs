//! Services that requests name, several datacenters, and what is shown.

use nginx_consul_e2e::{Agent, Backend, wait};
use serde_json::{Value, json};

use super::{answered, remove_override, set_override, with_upstream};
use crate::support::{SOON, register, register_one, tally, unique, until_served_by};

#[test]
fn services_that_requests_name_are_steered_as_others() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    let ids = register(&consul, &service, &backends[..2]);
    let lines = "consul_dynamic $arg_s;";
    let nginx = with_upstream(&consul.url(), &service, lines).workers(2).start();
    let path = format!("/?s={service}");
    let none = answered(&nginx, ("POST", &format!("{service}/freeze"), ""), 404);
    assert_eq!(none["error"]["code"], "ServiceNotFound");
    until_served_by(&nginx, &path, "a b");
    set_override(&nginx, &format!("{service}/instances/{}/drain", ids[0]), "");
    assert_eq!(tally(&nginx, &path, 20), "b: 20");
    let status = nginx.status();
    let peers = status["on_demand"]["services"][0]["peers"].as_array().expect("peers");
    let drained = peers.iter().find(|peer| peer["service_id"] == *ids[0]).expect("a");
    assert_eq!(drained["state"], "draining", "{status:#}");
    remove_override(&nginx, &format!("{service}/instances/{}", ids[0]));
    until_served_by(&nginx, &path, "a b");
    set_override(&nginx, &format!("{service}/freeze"), "");
    register_one(&consul, &service, &backends[2]);
    wait::until_eq("what is withheld", SOON, &json!(1), || {
        nginx.status()["on_demand"]["services"][0]["frozen"]["joined"].clone()
    });
    until_served_by(&nginx, &path, "a b");
    set_override(&nginx, &format!("{service}/thaw"), "");
    until_served_by(&nginx, &path, "a b c");
    answered(&nginx, ("POST", &format!("{service}/resync"), ""), 202);
}

#[test]
fn a_frozen_service_stays_though_no_request_names_it() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    register_one(&consul, &service, &backends[0]);
    let other = unique("other");
    register_one(&consul, &other, &backends[1]);
    let lines = "consul_dynamic $arg_s; consul_idle 2s;";
    let nginx = with_upstream(&consul.url(), &service, lines).start();
    let path = |service: &str| format!("/?s={service}");
    assert_eq!(nginx.outcome(&path(&service)), "a");
    set_override(&nginx, &format!("{service}/freeze"), "");
    assert_eq!(nginx.outcome(&path(&other)), "b");
    let named = || {
        let status = nginx.status();
        let services = status["on_demand"]["services"].as_array().expect("services").clone();
        services.iter().map(|s| s["service"].clone()).collect::<Vec<_>>()
    };
    wait::until_eq("what is followed", SOON, &vec![json!(service)], named);
    set_override(&nginx, &format!("{service}/thaw"), "");
    wait::until_eq("what is followed", SOON, &Vec::new(), named);
}

#[test]
fn the_paths_show_what_there_is() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let nginx = with_upstream(&consul.url(), &service, "consul_dynamic %%SERVICE%%;").start();
    until_served_by(&nginx, "/", "a b");
    let get = |path: &str| -> Value {
        let answer = nginx.send_json("GET", path, "");
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        serde_json::from_str(&answer.body).expect("JSON")
    };
    for path in ["/api", "/api/"] {
        let root = get(path);
        assert_eq!((&root["version"], &root["overrides"]), (&json!(1), &json!([])), "{root:#}");
        assert_eq!(root["capacity"], 1024);
    }
    assert_eq!(get("/api/services"), json!({ "services": [service] }));
    let shown = get(&format!("/api/services/{service}"));
    let selection = &shown["selections"][0];
    assert_eq!(selection["upstreams"], json!(["api"]), "{shown:#}");
    assert_eq!(selection["peers"].as_array().map(Vec::len), Some(2));
    let one = get(&format!("/api/services/{service}/instances/{}", backends[1].address()));
    let one = &one["instances"][0];
    for (member, expected) in [
        ("service_id", json!(ids[1])),
        ("node", json!(consul.node())),
        ("datacenter", json!("dc1")),
        ("server", json!(backends[1].address().to_string())),
        ("upstreams", json!(["api"])),
        ("health", json!("passing")),
        ("weight", json!(1)),
        ("override", Value::Null),
    ] {
        assert_eq!(one[member], expected, "{member} of {one:#}");
    }
    let all = get(&format!("/api/services/{service}/instances"));
    assert_eq!(all["instances"].as_array().map(Vec::len), Some(2));
    let mut connection =
        nginx_consul_e2e::http::Connection::open(nginx.address()).expect("a connection");
    connection.send("HEAD", "/api/", &[("Connection", "close")], b"").expect("sent");
    let mut text = String::new();
    std::io::Read::read_to_string(connection.reader(), &mut text).expect("an answer");
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("\r\n\r\n"), "{text}");
}
