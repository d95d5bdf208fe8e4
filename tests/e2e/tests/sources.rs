//! `source=catalog`, `kv` and `query`.

use nginx_consul_e2e::{Agent, Backend, Nginx, wait};
use serde_json::{Value, json};

use crate::support::{
    SOON, follow, gateway, register, register_one, tally, unique, until_peers, until_served_by,
};

/// nginx that follows the key or prefix.
fn follow_kv(consul: &Agent, prefix: &str) -> Nginx {
    gateway(&consul.url(), prefix, "consul_dynamic %%SERVICE%% source=kv;").start()
}

/// Writes a key; a text as it is, all else as JSON.
fn put(consul: &Agent, key: &str, value: &Value) {
    assert_eq!(consul.put(&format!("/v1/kv/{key}"), value), json!(true), "{key}");
}

fn delete(consul: &Agent, key: &str) {
    let answer = consul.request("DELETE", &format!("/v1/kv/{key}"), &Value::Null);
    assert_eq!(answer.expect("an answer").status, 200, "{key}");
}

#[test]
fn the_catalog_gives_every_registered_instance_whatever_its_health() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    consul.set_check(&ids[1], "critical");
    let health = follow(&consul.url(), &service);
    let catalog =
        gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%% source=catalog;").start();
    until_peers(&health, &service, &[&backends[0]]);
    until_peers(&catalog, &service, &[&backends[0], &backends[1]]);
    assert_eq!(tally(&catalog, "/", 4), "a: 2, b: 2");
    consul.deregister(&ids[0]);
    until_served_by(&catalog, "/", "b");
    assert_eq!(catalog.service(&service)["from"], "catalog");
}

#[test]
fn a_key_for_each_server_is_followed_as_it_comes_changes_and_goes() {
    let (consul, prefix) = (Agent::shared(), unique("upstreams/kv"));
    let backends = Backend::start_all(&["a", "b", "c"]);
    let key = |backend: &Backend| format!("{prefix}/{}", backend.address());
    put(&consul, &key(&backends[0]), &json!({"weight": 1, "max_fails": 2, "fail_timeout": 10}));
    put(&consul, &key(&backends[1]), &json!({"weight": 3}));
    let nginx = follow_kv(&consul, &prefix);
    assert_eq!(tally(&nginx, "/", 8), "a: 2, b: 6");
    put(&consul, &key(&backends[1]), &json!({"weight": 1, "down": 1}));
    until_served_by(&nginx, "/", "a");
    put(&consul, &key(&backends[2]), &json!({"backup": 1}));
    put(&consul, &key(&backends[0]), &json!({"down": 1}));
    until_served_by(&nginx, "/", "c");
    delete(&consul, &key(&backends[2]));
    put(&consul, &key(&backends[1]), &json!({}));
    until_served_by(&nginx, "/", "b");
    nginx.wait_for_log(&format!("kv \"{prefix}\": 2 peers (+0 -1"));
}

#[test]
fn one_key_may_hold_the_list_of_the_recipe() {
    let (consul, key) = (Agent::shared(), unique("upstreams/list"));
    let backends = Backend::start_all(&["a", "b"]);
    let server = |backend: &Backend, weight: u16| {
        let address = backend.address();
        json!({"ip": address.ip().to_string(), "port": address.port(), "weight": weight})
    };
    put(&consul, &key, &json!([server(&backends[0], 1), server(&backends[1], 2)]));
    let nginx = follow_kv(&consul, &format!("{key}/"));
    assert_eq!(tally(&nginx, "/", 6), "a: 2, b: 4");
    put(&consul, &key, &json!([server(&backends[1], 1)]));
    until_served_by(&nginx, "/", "b");
}

#[test]
fn a_prefix_that_appears_later_is_seen_and_its_neighbours_are_not() {
    let (consul, prefix) = (Agent::shared(), unique("upstreams/later"));
    let backends = Backend::start_all(&["a", "neighbour"]);
    let nginx = follow_kv(&consul, &prefix);
    put(&consul, &format!("{prefix}2/{}", backends[1].address()), &json!({}));
    assert_eq!(nginx.get("/").status, 502);
    put(&consul, &format!("{prefix}/{}", backends[0].address()), &json!({}));
    until_served_by(&nginx, "/", "a");
    delete(&consul, &format!("{prefix}/{}", backends[0].address()));
    until_served_by(&nginx, "/", "502");
    nginx.wait_for_log("1 removal confirmed by 3 more reads");
}

#[test]
fn a_bad_key_or_value_is_named_once_and_costs_nobody_else() {
    let (consul, prefix) = (Agent::shared(), unique("upstreams/bad"));
    let backends = Backend::start_all(&["a", "b"]);
    put(&consul, &format!("{prefix}/nonsense"), &Value::Null);
    put(&consul, &format!("{prefix}/127.0.0.1:1"), &json!("weight=5"));
    let odd = format!("{prefix}/{}", backends[0].address());
    put(&consul, &odd, &json!({"weight": "heavy"}));
    let nginx = follow_kv(&consul, &prefix);
    until_served_by(&nginx, "/", "a");
    put(&consul, &format!("{prefix}/{}", backends[1].address()), &json!({}));
    until_served_by(&nginx, "/", "a b");
    for text in [
        format!("key \"{prefix}/nonsense\" skipped: invalid key"),
        format!("key \"{prefix}/127.0.0.1:1\" skipped: its value is not a JSON object"),
        format!("key \"{odd}\" ignored: invalid value \"heavy\" of \"weight\""),
    ] {
        nginx.wait_for_log(&text);
        let lines = nginx.logged(&text);
        assert_eq!(lines.len(), 1, "{text}: {lines:#?}");
        assert!(lines[0].contains("[warn]"), "{}", lines[0]);
    }
}

/// A prepared query for the service; returns its name.
fn prepare(consul: &Agent, service: &str) -> String {
    let name = format!("{service}-query");
    let query = json!({"Name": name, "Service": {"Service": service, "OnlyPassing": true}});
    let answer = consul.request("POST", "/v1/query", &query).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    name
}

#[test]
fn a_prepared_query_is_executed_again_and_again() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends);
    let name = prepare(&consul, &service);
    let upstream = "consul_dynamic %%SERVICE%% source=query; consul_poll 500ms;";
    let nginx = gateway(&consul.url(), &name, upstream).start();
    assert_eq!(tally(&nginx, "/", 4), "a: 2, b: 2");
    consul.deregister(&ids[0]);
    until_served_by(&nginx, "/", "b");
    register_one(&consul, &service, &backends[0]);
    until_served_by(&nginx, "/", "a b");
    let status = nginx.service(&name);
    assert_eq!((&status["from"], &status["mode"]), (&json!("query"), &json!("polling")));
}

#[test]
fn an_unknown_query_is_an_error_and_served_once_it_exists() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let upstream = "consul_dynamic %%SERVICE%%-query source=query; consul_poll 500ms;
                    consul_retry 50ms 300ms;";
    let nginx = gateway(&consul.url(), &service, upstream).start();
    nginx.wait_for_log("HTTP 404: Query not found");
    assert_eq!(nginx.get("/").status, 502);
    prepare(&consul, &service);
    wait::until_eq("who answers", SOON, "a", || nginx.outcome("/"));
}

#[test]
fn address_chooses_among_the_tagged_addresses() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["lan", "wan"]);
    let tagged = |backend: &Backend| {
        let address = backend.address();
        json!({"Address": address.ip().to_string(), "Port": address.port()})
    };
    let registration = json!({
        "Name": service,
        "ID": service,
        "Address": backends[0].address().ip().to_string(),
        "Port": backends[0].address().port(),
        "TaggedAddresses": {"wan": tagged(&backends[1])},
    });
    consul.put("/v1/agent/service/register", &registration);
    for (parameters, answers) in [
        ("", "lan"),
        ("address=lan", "lan"),
        ("address=wan", "wan"),
        ("address=wan source=catalog", "wan"),
    ] {
        let upstream = format!("consul_dynamic %%SERVICE%% {parameters};");
        let nginx = gateway(&consul.url(), &service, &upstream).start();
        until_served_by(&nginx, "/", answers);
    }
}
