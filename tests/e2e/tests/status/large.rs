//! A status that takes the worker several turns.

use nginx_consul_e2e::fake_consul::instance;
use nginx_consul_e2e::{Config, FakeConsul, Nginx, http};
use serde_json::Value;

pub(super) const PEERS: usize = 10_000;

/// A Consul with a service of [`PEERS`] instances, and what follows it; `more` adds to its server, and
/// `%%BUFFER%%` to its `listen`.
pub(crate) fn following(more: &str) -> (FakeConsul, Config) {
    following_many(PEERS, more)
}

/// As [`following`], with so many instances.
pub(super) fn following_many(instances: usize, more: &str) -> (FakeConsul, Config) {
    let consul = FakeConsul::start();
    let peer = |n: usize| {
        let n = u32::try_from(n).expect("few");
        let ip = std::net::Ipv4Addr::from(u32::from_be_bytes([127, 1, 0, 0]) + n);
        instance(&format!("web-{n}"), (ip, 80).into())
    };
    consul.publish("web", 7, &Value::Array((0..instances).map(peer).collect()));
    let text = format!(
        "consul_server {};\nupstream api {{ consul_dynamic web; }}\n\
         server {{ listen 127.0.0.1:%%PORT%%%%BUFFER%%; location = /consul {{ consul_status; }}\n{more} }}",
        consul.url()
    );
    (consul, Config::http(&text))
}

/// The same, once it knows all instances.
pub(super) fn start(more: &str) -> (FakeConsul, Nginx) {
    let (consul, config) = following(more);
    let nginx = config.set("BUFFER", "").start();
    until_known(&nginx);
    (consul, nginx)
}

pub(crate) fn until_known(nginx: &Nginx) {
    // The status itself is slow with so many, in a debug build on a busy machine.
    nginx.wait_for_log(&format!("service \"web\": {PEERS} peers"));
}

#[test]
fn it_is_whole_whoever_asks_and_however() {
    let (_consul, nginx) = start(
        "location = /inner { internal; consul_status; }\n\
         location = /jump { rewrite ^ /inner?format=json last; }\n\
         location = /limited { limit_rate 200m; consul_status; }\n\
         location = /zipped { gzip on; gzip_types application/json; consul_status; }",
    );
    let peers = |body: &str| {
        let status: Value = serde_json::from_str(body).expect("JSON");
        let peers = status["services"][0]["peers"].as_array().expect("peers").clone();
        let mut ids: Vec<&str> = peers.iter().filter_map(|p| p["service_id"].as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    };
    for path in ["/consul?format=json", "/jump", "/limited?format=json", "/zipped?format=json"] {
        let answer = nginx.get(path);
        assert_eq!((answer.status, peers(&answer.body)), (200, PEERS), "{path}");
    }
    let lines = |body: &str, name: &str| body.lines().filter(|l| l.starts_with(name)).count();
    let metrics = nginx.get("/consul?format=prometheus").body;
    assert_eq!(lines(&metrics, "nginx_consul_peer_picks_total{"), PEERS);
    // One connection after the other request, and with a body that nobody wants.
    let mut connection = http::Connection::open(nginx.address()).expect("a connection");
    for _ in 0..3 {
        let answer = connection.request("GET", "/consul?format=json", &[], b"body");
        assert_eq!(peers(&answer.expect("an answer").body), PEERS);
    }
}

#[test]
fn clients_may_leave_in_the_middle_and_a_reload_may_come() {
    let (_consul, mut nginx) = start("");
    for _ in 0..30 {
        let mut connection = http::Connection::open(nginx.address()).expect("a connection");
        connection.send("GET", "/consul?format=json", &[], b"").expect("sent");
    }
    let mut connection = http::Connection::open(nginx.address()).expect("a connection");
    connection.send("GET", "/consul?format=json", &[], b"").expect("sent");
    nginx.reload_and_wait();
    let answer = connection.receive().expect("an answer of the old worker");
    assert!(answer.body.ends_with("]}]}\n"), "{} bytes", answer.body.len());
    assert_eq!(nginx.get("/consul?format=json&service=web").status, 200);
}
