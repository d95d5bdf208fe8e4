//! The guides in `docs/migrating.md`: each new configuration with the data of the old setup in Consul.

use std::fs;

use nginx_consul_e2e::{Agent, Backend, Config, Instance, Nginx, nginx};
use serde_json::{Value, json};

use crate::support::{SERVER, unique, until_served_by};

/// The configuration after `<!-- becomes: name -->`.
fn guide(name: &str) -> String {
    let path = nginx::workspace().join("docs/migrating.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mark = format!("<!-- becomes: {name} -->\n```nginx\n");
    let (_, rest) = text.split_once(&mark).unwrap_or_else(|| panic!("no {mark}"));
    rest.split_once("```").expect("the end of the block").0.to_owned()
}

/// nginx with that configuration, of a service or key of the test's own.
fn migrated(consul: &Agent, name: &str, own: &str) -> Nginx {
    let text = guide(name);
    assert!(text.contains("upstream api_server") && text.contains("api_demo"), "{text}");
    let text = text.replace("api_demo", own).replace("/var/lib/nginx/", "%%PREFIX%%/");
    let server = SERVER.replace("http://api;", "http://api_server;");
    Config::http(&format!("consul_server %%CONSUL%%;\n{text}\n{server}"))
        .set("CONSUL", consul.url())
        .start()
}

fn put(consul: &Agent, key: &str, value: &Value) {
    assert_eq!(consul.put(&format!("/v1/kv/{key}"), value), json!(true), "{key}");
}

#[test]
fn from_the_lua_recipe() {
    let (consul, service) = (Agent::shared(), unique("recipe"));
    let backends = Backend::start_all(&["a", "b"]);
    for backend in &backends {
        consul.register(&Instance::new(&service, backend.name(), backend.address()));
    }
    until_served_by(&migrated(&consul, "recipe", &service), "/", "a b");
    let list: Vec<Value> = backends
        .iter()
        .map(|b| json!({"ip": b.address().ip().to_string(), "port": b.address().port(), "weight": 2}))
        .collect();
    put(&consul, &format!("upstreams/{service}"), &json!(list));
    until_served_by(&migrated(&consul, "recipe-kv", &service), "/", "a b");
}

#[test]
fn from_nginx_upsync_module() {
    let (consul, service) = (Agent::shared(), unique("upsync"));
    let backends = Backend::start_all(&["a", "b"]);
    let key = |backend: &Backend| format!("upstreams/{service}/{}", backend.address());
    let value = |down| {
        json!({"weight": 1, "max_fails": 2, "fail_timeout": 10, "max_conns": 0, "backup": 0,
               "down": down})
    };
    backends.iter().for_each(|backend| put(&consul, &key(backend), &value(0)));
    let nginx = migrated(&consul, "upsync", &service);
    until_served_by(&nginx, "/", "a b");
    put(&consul, &key(&backends[0]), &value(1));
    until_served_by(&nginx, "/", "b");
}

#[test]
fn from_resolve_over_consul_dns() {
    let (consul, service) = (Agent::shared(), unique("resolve"));
    let backend = Backend::start("a");
    consul.register(&Instance::new(&service, &service, backend.address()));
    until_served_by(&migrated(&consul, "resolve", &service), "/", "a");
}

#[test]
fn from_consul_template() {
    let (consul, service) = (Agent::shared(), unique("template"));
    let backend = Backend::start("a");
    let nginx = migrated(&consul, "consul-template", &service);
    assert_eq!(nginx.get("/").status, 502);
    consul.register(&Instance::new(&service, &service, backend.address()));
    until_served_by(&nginx, "/", "a");
}
