//! The proxy that makes a newer Consul of the real one, over the real one alone.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::http::{Connection, Response, get};
use nginx_consul_e2e::{Agent, Backend, Dressing, Instance, acl, consul, version, wait};
use serde_json::Value;

use crate::support::{SOON, register_one, unique};

/// A dressed agent, and a service with one instance in it.
struct Scene {
    dressing: Dressing,
    service: String,
    backend: Backend,
    consul: Arc<Agent>,
}

impl Scene {
    fn new(name: &str) -> Scene {
        let (service, backend) = (unique(name), Backend::start("a"));
        // What the dressing adds must not be there already.
        let consul = match version::streams() {
            true => Arc::new(consul::Options::dev().without_streaming().start()),
            false => Agent::shared(),
        };
        register_one(&consul, &service, &backend);
        let dressing = Dressing::start(consul.direct());
        Scene { dressing, service, backend, consul }
    }

    fn path(&self, parameters: &str) -> String {
        format!("/v1/health/service/{}?{parameters}", self.service)
    }

    fn ask(&self, parameters: &str) -> Response {
        get(self.dressing.address(), &self.path(parameters)).expect("an answer")
    }

    /// The index to block on.
    fn index(&self) -> u64 {
        index(&self.ask(""))
    }

    /// Sends a query that blocks, and waits until the dressing has it.
    fn block(&self, parameters: &str) -> Connection {
        let before = self.dressing.requests(&self.service).len();
        let mut connection = Connection::open(self.dressing.address()).expect("a connection");
        connection.send("GET", &self.path(parameters), &[], b"").expect("sent");
        wait::until("the query is there", SOON, || {
            self.dressing.requests(&self.service).len() > before
        });
        connection
    }
}

fn index(answer: &Response) -> u64 {
    answer.header("X-Consul-Index").and_then(|v| v.parse().ok()).expect("an index")
}

fn instances(answer: &Response) -> usize {
    let document: Value = serde_json::from_str(&answer.body).expect("JSON");
    document.as_array().expect("a list").len()
}

/// Values of headers, `-` for one that is absent.
fn heads(answer: &Response, names: &[&str]) -> String {
    let values: Vec<&str> = names.iter().map(|name| answer.header(name).unwrap_or("-")).collect();
    values.join(" ")
}

const HEAD: [&str; 6] = [
    "Vary",
    "X-Consul-Default-Acl-Policy",
    "X-Consul-Effective-Consistency",
    "X-Consul-Knownleader",
    "X-Consul-Lastcontact",
    "X-Consul-Query-Backend",
];
const PLAIN: &str = "Accept-Encoding allow leader true 0 blocking-query";
const STREAMED: &str = "Accept-Encoding allow leader false 0 streaming";

#[test]
fn heads_are_streamed_where_a_newer_consul_streams() {
    let scene = Scene::new("heads");
    let old = scene.index() - 1;
    for (parameters, expected) in [
        ("", PLAIN),
        ("index=0", PLAIN),
        ("index=OLD&near=_agent", PLAIN),
        ("index=OLD&merge-central-config", PLAIN),
        ("index=OLD", STREAMED),
        ("index=OLD&wait=5s", STREAMED),
        ("index=OLD&stale", STREAMED),
        ("index=OLD&consistent", STREAMED),
        ("cached", STREAMED),
    ] {
        let answer = scene.ask(&parameters.replace("OLD", &old.to_string()));
        assert_eq!(heads(&answer, &HEAD), expected, "{parameters}");
        assert_eq!((answer.status, instances(&answer)), (200, 1), "{parameters}");
        assert_eq!(index(&answer), old + 1, "{parameters}");
    }
    for path in ["/v1/catalog/services?index=1", "/v1/health/state/any", "/v1/kv/?recurse"] {
        let answer = get(scene.dressing.address(), path).expect("an answer");
        assert_eq!(heads(&answer, &HEAD[5..]), "blocking-query", "{path}");
    }
    scene.dressing.set(|quirks| quirks.streaming = false);
    assert_eq!(heads(&scene.ask(&format!("index={old}")), &HEAD), PLAIN, "streaming is off");
}

#[test]
fn cached_answers_have_no_age() {
    let scene = Scene::new("cached");
    let cache = ["X-Cache", "Age"];
    assert_eq!(heads(&scene.ask("cached"), &cache), "MISS 0");
    assert_eq!(heads(&scene.ask("cached"), &cache), "HIT 0");
    assert_eq!(heads(&scene.ask(""), &cache), "- -");
    scene.dressing.set(|quirks| quirks.empty_cache = true);
    assert_eq!(scene.ask("cached").body, "[]");
    assert_eq!(instances(&scene.ask("")), 1);
}

#[test]
fn a_streamed_query_blocks_until_a_change() {
    let scene = Scene::new("change");
    let asked = scene.index();
    let mut blocked = scene.block(&format!("index={asked}&wait=60s"));
    let other = Backend::start("b");
    let start = Instant::now();
    register_one(&scene.consul, &scene.service, &other);
    let answer = blocked.receive().expect("an answer");
    assert!(start.elapsed() < SOON, "it came with the change, not with the end of the wait");
    assert_eq!(instances(&answer), 2);
    assert!(index(&answer) > asked);
    assert_eq!(heads(&answer, &HEAD), STREAMED);
    // The connection is good for more.
    let again = blocked.get(&scene.path("")).expect("an answer");
    assert_eq!((instances(&again), heads(&again, &HEAD)), (2, PLAIN.to_owned()));
    assert_eq!(scene.dressing.requests(&scene.service).iter().filter(|s| s.streamed).count(), 1);
}

#[test]
fn a_streamed_wait_has_no_jitter_and_may_have_a_lower_index() {
    let scene = Scene::new("expired");
    let asked = scene.index();
    let ask = || {
        let start = Instant::now();
        let answer = scene.ask(&format!("index={asked}&wait=300ms"));
        assert_eq!((instances(&answer), heads(&answer, &HEAD)), (1, STREAMED.to_owned()));
        (index(&answer), start.elapsed())
    };
    let (index, took) = ask();
    assert_eq!(index, asked);
    assert!(took >= Duration::from_millis(300), "{took:?}");
    scene.dressing.set(|quirks| quirks.lower_index = true);
    assert_eq!(ask().0, asked - 1);
}

#[test]
fn connections_are_closed_as_by_some_versions_and_by_proxies_between() {
    let scene = Scene::new("closed");
    let parameters = format!("index={}&wait=600ms", scene.index());
    let ask = || {
        let start = Instant::now();
        let answer = get(scene.dressing.address(), &scene.path(&parameters));
        (answer.map_err(|error| error.kind()).map(|answer| answer.status), start.elapsed())
    };
    let closed = std::io::ErrorKind::UnexpectedEof;
    scene.dressing.set(|quirks| quirks.write_timeout = Some(Duration::from_millis(100)));
    let (outcome, took) = ask();
    assert_eq!(outcome, Err(closed));
    assert!(took >= Duration::from_millis(600), "at the end of the wait, not after {took:?}");
    assert_eq!(instances(&scene.ask("")), 1, "an answer in time is written");
    scene.dressing.set(|quirks| {
        quirks.write_timeout = None;
        quirks.cut = Some(Duration::from_millis(100));
    });
    let (outcome, took) = ask();
    assert_eq!(outcome, Err(closed));
    assert!(took < Duration::from_millis(600), "before the end of the wait, not after {took:?}");
    scene.dressing.set(|quirks| {
        quirks.cut = None;
        quirks.idle = Some(Duration::from_millis(100));
    });
    let mut connection = Connection::open(scene.dressing.address()).expect("a connection");
    assert_eq!(connection.get(&scene.path("")).expect("an answer").status, 200);
    wait::until("an idle connection is closed", SOON, || scene.dressing.open() == 0);
    assert!(connection.get(&scene.path("")).is_err());
    assert_eq!(ask().0, Ok(200), "one that waits for an answer is not idle");
}

#[test]
fn streamed_queries_fail_while_plain_ones_work() {
    let scene = Scene::new("mixed");
    let old = scene.index() - 1;
    let error = "can't find the service";
    scene.dressing.set(|quirks| quirks.stream_error = Some(error));
    let answer = scene.ask(&format!("index={old}"));
    assert_eq!(answer.status, 500);
    assert_eq!(answer.body, format!("rpc error: code = Unknown desc = {error}"));
    assert_eq!(heads(&answer, &["X-Consul-Index", "X-Consul-Query-Backend"]), "- -");
    assert_eq!(scene.ask("").status, 200);
    assert_eq!(scene.ask(&format!("index={old}&near=_agent")).status, 200);
    assert_eq!(scene.ask("cached").status, 500);
    scene.dressing.set(|quirks| quirks.stream_error = None);
    assert_eq!(scene.ask(&format!("index={old}")).status, 200);
}

#[test]
fn all_streams_break_at_once_and_the_next_queries_are_good() {
    let scene = Scene::new("break");
    let parameters = format!("index={}&wait=60s", scene.index());
    let mut plain = scene.block(&format!("{parameters}&near=_agent"));
    let mut streamed = [scene.block(&parameters), scene.block(&parameters)];
    scene.dressing.break_streams();
    for connection in &mut streamed {
        let answer = connection.receive().expect("an answer");
        assert_eq!(answer.status, 500);
        assert!(answer.body.starts_with("rpc error: code = Unavailable"), "{}", answer.body);
    }
    let mut next = scene.block(&parameters);
    register_one(&scene.consul, &scene.service, &Backend::start("b"));
    for connection in [&mut plain, &mut next] {
        assert_eq!(instances(&connection.receive().expect("an answer")), 2);
    }
}

#[test]
fn a_frozen_view_stands_still_while_the_agent_goes_on() {
    let scene = Scene::new("frozen");
    let asked = scene.index();
    let mut blocked = scene.block(&format!("index={asked}&wait=500ms"));
    let mut long = scene.block(&format!("index={asked}&wait=60s"));
    scene.dressing.freeze();
    register_one(&scene.consul, &scene.service, &Backend::start("b"));
    let plain = scene.ask("");
    assert_eq!(instances(&plain), 2, "the agent goes on");
    let answer = blocked.receive().expect("an answer");
    assert_eq!((instances(&answer), index(&answer)), (1, asked), "the view does not");
    assert_eq!(heads(&answer, &HEAD), STREAMED);
    // With the plain read's index it waits to the end all the same.
    let start = Instant::now();
    let answer = scene.ask(&format!("index={}&wait=200ms", index(&plain)));
    assert_eq!((instances(&answer), index(&answer)), (1, asked));
    assert!(start.elapsed() >= Duration::from_millis(200));
    let answer = scene.ask(&format!("index={}&wait=60s", asked - 1));
    assert_eq!(index(&answer), asked, "what is older than the view is answered at once");
    scene.dressing.thaw();
    assert_eq!(instances(&long.receive().expect("an answer")), 2);
}

#[test]
fn limits_ports_and_hidden_instances_are_told_as_newer_versions_do() {
    let scene = Scene::new("told");
    scene.dressing.set(|quirks| quirks.filtered = true);
    let filtered = ["X-Consul-Results-Filtered-By-Acls"];
    assert_eq!(heads(&scene.ask(""), &filtered), "true");
    scene.dressing.set(|quirks| {
        quirks.filtered = false;
        quirks.ports = true;
    });
    let answer = scene.ask("");
    assert_eq!(heads(&answer, &filtered), "-");
    let document: Value = serde_json::from_str(&answer.body).expect("JSON");
    let service = &document[0]["Service"];
    assert_eq!(service["Port"], 0);
    assert_eq!(service["Ports"][1]["Port"], scene.backend.address().port());
    assert_eq!(service["Ports"][1]["Default"], true);
    for status in [429, 503] {
        scene.dressing.set(|quirks| quirks.refuse = Some(status));
        assert_eq!(scene.ask("").status, status);
    }
}

#[test]
fn the_dressing_passes_tokens_and_says_the_default_policy() {
    let (consul, token) = acl::start(consul::Options::dev());
    consul.register(&Instance::new("web", "web-1", ([127, 0, 0, 1], 80)));
    let dressing = Dressing::start(consul.direct());
    dressing.set(|quirks| quirks.default_policy = "deny");
    let mut connection = Connection::open(dressing.address()).expect("a connection");
    let mut ask = |token: &str| {
        let headers = [("X-Consul-Token", token)];
        connection.request("GET", "/v1/health/service/web", &headers, b"").expect("an answer")
    };
    let answer = ask(&token.secret);
    assert_eq!((instances(&answer), heads(&answer, &HEAD[1..2])), (1, "deny".to_owned()));
    assert_eq!(ask("b1000000-0000-4000-8000-00000000dead").status, 403);
}

#[test]
fn many_queries_block_at_once_and_their_end_frees_the_connections() {
    let scene = Scene::new("many");
    let parameters = format!("index={}&wait=60s", scene.index());
    let blocked: Vec<Connection> = (0..100).map(|_| scene.block(&parameters)).collect();
    wait::until_eq("open connections", SOON, &100, || scene.dressing.open());
    drop(blocked);
    wait::until_eq("open connections", SOON, &0, || scene.dressing.open());
    let asking = thread::spawn({
        let (address, path) = (scene.dressing.address(), scene.path(&parameters));
        move || get(address, &path).is_err()
    });
    wait::until_eq("open connections", SOON, &1, || scene.dressing.open());
    scene.dressing.refuse();
    assert!(asking.join().expect("no panic"), "the connection is closed");
    assert!(get(scene.dressing.address(), "/").is_err(), "nothing listens");
    scene.dressing.listen();
    assert_eq!(instances(&scene.ask("")), 1);
}
