//! The JSON: what is new in it, and that every answer is one of docs/status.schema.json.

use std::sync::LazyLock;

use jsonschema::Validator;
use nginx_consul_e2e::{Agent, Backend, Config, Fault, Manner, Nginx, Proxy, http, nginx, wait};
use serde_json::{Value, json};

use crate::support::{
    SOON, balanced, follow, gateway, register, register_one, unique, until_peers,
};

static SCHEMA: LazyLock<Validator> = LazyLock::new(|| {
    let path = nginx::workspace().join("docs/status.schema.json");
    let text = std::fs::read_to_string(path).expect("docs/status.schema.json");
    let schema = serde_json::from_str(&text).expect("JSON");
    jsonschema::draft202012::meta::validate(&schema).expect("a schema");
    jsonschema::validator_for(&schema).expect("a schema")
});

/// The status, which the schema describes.
#[track_caller]
fn valid(nginx: &Nginx, path: &str) -> Value {
    let answer = nginx.get(path);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let status = serde_json::from_str(&answer.body).expect("JSON");
    let errors: Vec<String> =
        SCHEMA.iter_errors(&status).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}\nin {status:#}");
    status
}

fn history(nginx: &Nginx, service: &str) -> Vec<Value> {
    nginx.service(service)["history"].as_array().expect("a history").clone()
}

#[test]
fn the_schema_describes_a_good_answer_and_refuses_a_bad_one() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%; consul_panic 50%;");
    let nginx = nginx.start();
    assert_eq!(nginx.outcome("/"), "a");
    wait::until("it is live", SOON, || nginx.service(&service)["source"] == "live");
    let mut status = valid(&nginx, "/consul?format=json");
    assert_eq!((&status["version"], &status["state"]), (&json!(1), &Value::Null));
    assert!(status["connections"]["used"].as_u64().is_some_and(|n| (1..=64).contains(&n)));
    assert_eq!(status["connections"]["max"], 64);
    let shown = &status["services"][0];
    assert_eq!((&shown["backoff_ms"], &shown["zone_full"]), (&Value::Null, &json!(false)));
    let peer = &shown["peers"][0];
    assert_eq!((&peer["effective_weight"], &peer["max_conns"]), (&json!(1.0), &json!(0)));
    assert_eq!((&peer["latency_ms"], &peer["datacenter"]), (&Value::Null, &json!("dc1")));
    status["services"][0]["peers"][0]["state"] = json!("sleepy");
    assert!(!SCHEMA.is_valid(&status), "any state is taken");
}

#[test]
fn the_schema_describes_named_services_a_state_file_and_failures() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let proxy = Proxy::start(consul.address());
    let text = "consul_server %%CONSUL%%; consul_retry 50ms 100ms; consul_state state/file;\n\
        upstream api { consul_dynamic %%SERVICE%% tag=none; server 127.0.0.1:1; }\n\
        upstream any { consul_dynamic $arg_service; consul_allow_service *; }\n\
        server { listen 127.0.0.1:%%PORT%%; location /any { proxy_pass http://any/; }\n\
        location = /consul { consul_status; } }";
    let nginx = Config::http(text).set("CONSUL", proxy.url()).set("SERVICE", &service).start();
    assert_eq!(nginx.outcome(&format!("/any?service={service}")), "a");
    let status = valid(&nginx, "/consul?format=json");
    assert_eq!(status["upstreams"][0]["in_use"], "servers");
    let named = &status["on_demand"]["services"][0];
    assert_eq!(named["service"], service);
    assert!(named["last_used_seconds"].as_f64().is_some_and(|age| age < 20.0), "{named:#}");
    proxy.set(Fault::Refuse);
    wait::until("a pause between failures", SOON, || {
        nginx.service(&service)["backoff_ms"].as_u64().is_some_and(|ms| ms <= 100)
    });
    let status = valid(&nginx, "/consul?format=json");
    let refusals = status["services"][0]["refusals"].as_object();
    assert!(refusals.is_some_and(|refusals| !refusals.is_empty()), "{status:#}");
    proxy.set(Fault::Pass);
    wait::until("no pause", SOON, || nginx.service(&service)["backoff_ms"].is_null());
}

#[test]
fn the_history_says_who_joined_and_left_and_survives_a_reload() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let id = register_one(&consul, &service, &backends[0]);
    let mut nginx = follow(&consul.url(), &service);
    until_peers(&nginx, &service, &[&backends[0]]);
    register_one(&consul, &service, &backends[1]);
    until_peers(&nginx, &service, &[&backends[0], &backends[1]]);
    consul.deregister(&id);
    until_peers(&nginx, &service, &[&backends[1]]);
    let [a, b] = [0, 1].map(|n| backends[n].address().to_string());
    let told = |history: &[Value]| {
        let names = |c: &Value| (c["joined"].clone(), c["left"].clone());
        history.iter().map(names).collect::<Vec<_>>()
    };
    let before = history(&nginx, &service);
    let expected = [(json!([]), json!([a])), (json!([b]), json!([])), (json!([a]), json!([]))];
    assert_eq!(told(&before), expected);
    nginx.reload_and_wait();
    wait::until("the new worker has heard of it", SOON, || {
        nginx.service(&service)["source"] == "live"
    });
    assert_eq!(history(&nginx, &service), before);
    let times = before.iter().map(|c| c["time_ms"].as_u64().expect("a time"));
    let now = nginx.status()["time_ms"].as_u64().expect("the time");
    assert!(times.clone().is_sorted_by(|a, b| a >= b) && times.max() <= Some(now), "{before:#?}");
    valid(&nginx, "/consul?format=json");
}

#[test]
fn what_a_reload_kept_is_from_the_zone_until_consul_answers() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let proxy = Proxy::start(consul.address());
    let text = "consul_dynamic %%SERVICE%%; consul_retry 50ms 100ms;";
    let mut nginx = gateway(&proxy.url(), &service, text).start();
    wait::until("it is live", SOON, || nginx.service(&service)["source"] == "live");
    proxy.set(Fault::Refuse);
    nginx.reload_and_wait();
    assert_eq!(nginx.service(&service)["source"], "zone");
    assert_eq!(nginx.outcome("/"), "a");
    proxy.set(Fault::Pass);
    wait::until("it is live again", SOON, || nginx.service(&service)["source"] == "live");
}

#[test]
fn one_service_can_be_asked_for() {
    let (consul, service, other) = (Agent::shared(), unique("web"), unique("odd name+"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let text = "consul_server %%CONSUL%%; upstream one { consul_dynamic %%SERVICE%%; }\n\
        upstream two { consul_dynamic '%%OTHER%%'; }\n\
        server { listen 127.0.0.1:%%PORT%%; location = /consul { consul_status; } }";
    let config = Config::http(text).set("CONSUL", consul.url()).set("SERVICE", &service);
    let nginx = config.set("OTHER", &other).start();
    let names = |path: &str| {
        let status = valid(&nginx, path);
        let list = |list: &str, name: &str| {
            let all = status[list].as_array().expect("a list").iter();
            all.map(|item| item[name].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
        };
        (list("upstreams", "name"), list("services", "service"))
    };
    let one = |name: &str, service: &String| (vec![name.to_owned()], vec![service.clone()]);
    let path = format!("/consul?format=json&service={service}");
    assert_eq!(names(&path), one("one", &service));
    let encoded = other.replace('+', "%2B").replace(' ', "+");
    assert_eq!(names(&format!("/consul?service={encoded}&format=json")), one("two", &other));
    assert_eq!(names("/consul?format=json").1.len(), 2);
    let answer = nginx.get("/consul?format=json&service=nobody");
    assert_eq!(answer.status, 404);
    let error: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(error, json!({"error": "no such service"}));
}

#[test]
fn an_unknown_format_is_explained_and_head_costs_no_body() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let nginx = follow(&consul.url(), &service);
    let answer = nginx.get("/consul?format=xml");
    assert_eq!(answer.status, 400);
    for word in ["xml", "json", "prometheus", "html"] {
        assert!(answer.body.contains(word), "{word} in {}", answer.body);
    }
    for (path, start) in [
        ("/consul?format=json", "HTTP/1.1 200"),
        ("/consul?format=json&service=nobody", "HTTP/1.1 404"),
        ("/consul?format=xml", "HTTP/1.1 400"),
    ] {
        let mut connection = http::Connection::open(nginx.address()).expect("a connection");
        connection.send("HEAD", path, &[("Connection", "close")], b"").expect("sent");
        let mut text = String::new();
        std::io::Read::read_to_string(connection.reader(), &mut text).expect("an answer");
        assert!(text.starts_with(start) && text.ends_with("\r\n\r\n"), "{path}: {text}");
    }
}

#[test]
fn peers_have_the_words_of_nginx() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backends = Backend::start_all(&["a", "b"]);
    let ids = register(&consul, &service, &backends[..1]);
    let nginx = balanced(&consul, &service, "max_conns=1 slow_start=1h", "least_time").start();
    let peer = |id: &str| {
        let shown = nginx.service(&service);
        let peers = shown["peers"].as_array().expect("peers");
        peers.iter().find(|peer| peer["service_id"] == *id).cloned().unwrap_or_default()
    };
    assert_eq!(nginx.outcome("/"), "a");
    let a = peer(&ids[0]);
    assert_eq!((&a["state"], &a["max_conns"]), (&json!("up"), &json!(1)));
    assert!(a["latency_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{a:#}");
    backends[0].set(Manner::Hold);
    let address = nginx.address();
    let client = std::thread::spawn(move || http::get(address, "/"));
    wait::until_eq("a's state", SOON, &json!("busy"), || peer(&ids[0])["state"].clone());
    backends[0].set(Manner::Reset);
    client.join().expect("a client").expect("an answer");
    // A newcomer warms up for an hour.
    let new = register_one(&consul, &service, &backends[1]);
    wait::until_eq("b's state", SOON, &json!("recovering"), || peer(&new)["state"].clone());
    let b = peer(&new);
    assert_eq!(b["weight"], 1);
    assert!(b["effective_weight"].as_f64().is_some_and(|w| (0.01..0.5).contains(&w)), "{b:#}");
    valid(&nginx, "/consul?format=json");
}
