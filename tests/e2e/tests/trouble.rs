//! Consul in trouble, one kind after the other. In each the last good set is served, status and log
//! say what is wrong, Consul is not hammered, and its return is seen within one step of the backoff.

use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use nginx_consul_e2e::cluster::Cluster;
use nginx_consul_e2e::consul::Options;
use nginx_consul_e2e::fake_consul::{Answer, instance};
use nginx_consul_e2e::ports::BlackHole;
use nginx_consul_e2e::{
    Agent, Backend, Config, FakeConsul, Fault, Instance, Load, Nginx, Proxy, load, version, wait,
};
use serde_json::json;

use crate::support::{SOON, gateway, register_one, scripted, tally, unique, until_served_by};

/// Longest pause between two tries in these tests.
const STEP: Duration = Duration::from_millis(500);

/// What a busy machine may add to that.
const LENIENCE: Duration = Duration::from_millis(1500);

/// Longest that an answer may keep a watch waiting here: `consul_wait` (1 s), its sixteenth, and
/// the 10 s that Consul may take.
const DEADLINE: Duration = Duration::from_millis(11_063);

/// Most requests that a watch in trouble may send in [`SPAN`]: pauses start at 50 ms.
const MOST: usize = 20;
const SPAN: Duration = Duration::from_secs(2);

const UPSTREAM: &str =
    "consul_dynamic %%SERVICE%%; consul_retry 50ms 500ms; consul_wait 1s; keepalive 4;";

/// nginx behind a proxy to Consul, serving `a` of `a` and `b`.
struct Scene {
    service: String,
    backends: Vec<Backend>,
    proxy: Proxy,
    nginx: Nginx,
}

impl Scene {
    fn new(consul: &Agent) -> Scene {
        let service = unique("web");
        let backends = Backend::start_all(&["a", "b"]);
        register_one(consul, &service, &backends[0]);
        let proxy = Proxy::start(consul.address());
        let nginx = gateway(&proxy.url(), &service, UPSTREAM).start();
        until_served_by(&nginx, "/", "a");
        Scene { service, backends, proxy, nginx }
    }

    fn load(&self) -> Load {
        Load::start_paced(self.nginx.address(), "/", 1, true, Duration::from_millis(1))
    }

    fn failures(&self) -> usize {
        failures(&self.nginx, &self.service)
    }

    /// Waits until status and log tell of an error with `word`.
    fn until_visible(&self, word: &str) {
        until_visible(&self.nginx, &self.service, word, SOON);
    }

    /// Sees that few requests are sent while the trouble lasts.
    fn assert_few_requests(&self) {
        let target = format!("/v1/health/service/{}", self.service);
        let count = || (self.failures(), self.proxy.requests(&target).len());
        let before = count();
        wait::holds("few requests to Consul", SPAN, || {
            let now = count();
            now.0 <= before.0 + MOST && now.1 <= before.1 + MOST
        });
        let seen = count();
        println!("tries and requests, before: {before:?}, {SPAN:?} later: {seen:?}");
    }

    /// Sees that `b`, which Consul has, is served soon from now.
    fn assert_recovers(&self, load: Load, by: Duration) {
        let healed = Instant::now();
        wait::until("b is served again", by + LENIENCE, || load.seen("b").is_some());
        println!("followed again after {:?}", healed.elapsed());
        wait::until("no more failures", SOON, || self.failures() == 0);
        self.nginx.wait_for_log(&format!("service \"{}\": recovered after", self.service));
        let shown = self.nginx.service(&self.service)["last_error"].clone();
        assert!(shown.is_null(), "{shown}");
        assert_eq!(load::failures(&load.finish(), &["a", "b"]), "");
    }
}

fn failures(nginx: &Nginx, service: &str) -> usize {
    let count = nginx.service(service)["failures"].as_u64();
    usize::try_from(count.unwrap_or(0)).expect("a count")
}

fn until_visible(nginx: &Nginx, service: &str, word: &str, patience: Duration) {
    wait::until(&format!("an error with {word:?} in status"), patience, || {
        let shown = nginx.service(service)["last_error"].clone();
        shown.as_str().is_some_and(|text| text.contains(word))
    });
    // The first failure of an outage is an error; those that follow, maybe others, are informative.
    let logged = |what: &str, word: &str| {
        wait::until(&format!("{what} in the log"), SOON, || {
            let lines = nginx.logged(&format!("service \"{service}\""));
            lines.iter().any(|line| line.contains(what) && line.contains(word))
        });
    };
    logged("[error]", "");
    logged("consul: ", word);
}

/// A fault of the proxy that shows at once.
fn quick_fault(fault: Fault, word: &str) {
    let consul = Agent::shared();
    let scene = Scene::new(&consul);
    let load = scene.load();
    scene.proxy.set(fault);
    scene.proxy.cut_all();
    scene.until_visible(word);
    register_one(&consul, &scene.service, &scene.backends[1]);
    scene.assert_few_requests();
    assert!(load.seen("b").is_none(), "{:?}", load.window());
    scene.proxy.set(Fault::Pass);
    scene.assert_recovers(load, STEP);
}

#[test]
fn connections_refused() {
    quick_fault(Fault::Refuse, "refused");
}

#[test]
fn connections_closed_without_an_answer() {
    quick_fault(Fault::Cut(0), "closed without an answer");
}

#[test]
fn answers_reset_in_the_middle_of_the_head() {
    quick_fault(Fault::Reset(60), "reset");
}

#[test]
fn answers_reset_in_the_middle_of_the_body() {
    quick_fault(Fault::Reset(400), "ended early");
}

/// A fault that shows at the deadline of an answer only.
fn silent_fault(fault: Fault) {
    let consul = Agent::shared();
    let scene = Scene::new(&consul);
    let load = scene.load();
    let start = Instant::now();
    scene.proxy.set(fault);
    scene.proxy.cut_all();
    until_visible(&scene.nginx, &scene.service, "no answer", DEADLINE + LENIENCE);
    println!("seen after {:?}", start.elapsed());
    let target = format!("/v1/health/service/{}", scene.service);
    let asked = scene.proxy.requests(&target).iter().filter(|r| r.at > start).count();
    assert!(asked <= 4, "{asked} requests");
    register_one(&consul, &scene.service, &scene.backends[1]);
    scene.proxy.set(Fault::Pass);
    scene.proxy.cut_all();
    scene.assert_recovers(load, STEP);
}

#[test]
fn connections_accepted_and_never_answered() {
    silent_fault(Fault::BlackHole);
}

#[test]
fn an_answer_of_one_byte_a_second() {
    silent_fault(Fault::Trickle(Duration::from_secs(1)));
}

#[test]
fn an_agent_stopped_by_a_signal() {
    let mut consul = Options::dev().start();
    let scene = Scene::new(&consul);
    let load = scene.load();
    register_one(&consul, &unique("other"), &scene.backends[1]);
    consul.pause();
    until_visible(&scene.nginx, &scene.service, "no answer", DEADLINE + LENIENCE);
    consul.resume();
    register_one(&consul, &scene.service, &scene.backends[1]);
    scene.assert_recovers(load, STEP);
}

#[test]
fn a_consul_host_that_drops_all_packets() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let hole = BlackHole::open();
    let upstream =
        "consul_dynamic %%SERVICE%%; consul_connect_timeout 300ms; consul_retry 50ms 500ms;";
    let alone = gateway(&format!("http://{}", hole.address()), &service, upstream).start();
    until_visible(&alone, &service, "onnect", SOON);
    let before = failures(&alone, &service);
    wait::holds("few tries", SPAN, || failures(&alone, &service) <= before + MOST);
    assert_eq!(alone.get("/").status, 502);
    // With a second server, the first costs the connect timeout and no more.
    let servers = format!("http://{} {}", hole.address(), consul.url());
    let start = Instant::now();
    let nginx = gateway(&servers, &service, upstream).start();
    until_served_by(&nginx, "/", "a");
    assert!(start.elapsed() < Duration::from_millis(300) + LENIENCE, "{:?}", start.elapsed());
    wait::until_eq("the server in use", SOON, &json!(consul.url()), || {
        nginx.service(&service)["server"].clone()
    });
}

#[test]
fn an_agent_whose_name_doesnt_resolve() {
    let (consul, service) = (Agent::shared(), unique("web"));
    let backend = Backend::start("a");
    register_one(&consul, &service, &backend);
    let upstream = "consul_dynamic %%SERVICE%%; consul_retry 50ms 500ms;";
    // RFC 2606 keeps this name from ever being one.
    let alone = gateway("http://consul.invalid:8500", &service, upstream).start();
    until_visible(&alone, &service, "consul.invalid", Duration::from_secs(12));
    let before = failures(&alone, &service);
    wait::holds("few tries", SPAN, || failures(&alone, &service) <= before + MOST);
    assert_eq!(alone.get("/").status, 502);
    let servers = format!("http://consul.invalid:8500 {}", consul.url());
    let nginx = gateway(&servers, &service, upstream).start();
    until_served_by(&nginx, "/", "a");
    wait::until_eq("the server in use", SOON, &json!(consul.url()), || {
        nginx.service(&service)["server"].clone()
    });
}

#[test]
fn storms_of_500_503_and_429() {
    let (consul, backends) = scripted();
    let nginx = gateway(&consul.url(), "web", UPSTREAM).start();
    until_served_by(&nginx, "/", "a");
    let load = Load::start_paced(nginx.address(), "/", 1, true, Duration::from_millis(1));
    for (n, status) in [500_u16, 503, 429].into_iter().enumerate() {
        consul.script(move |_| Some(Answer::error(status, "storm")));
        until_visible(&nginx, "web", &status.to_string(), SOON);
        let before = consul.queries().len();
        wait::holds("few requests", SPAN, || consul.queries().len() <= before + MOST);
        println!("{status}: {} requests in {SPAN:?}", consul.queries().len() - before);
        assert_eq!(tally(&nginx, "/", 2).len(), 4, "one peer serves");
        // The weather clears, with news.
        let (name, backend) = [("b", &backends[1]), ("a", &backends[0])][n % 2];
        consul.publish("web", 8 + n as u64, &json!([instance(name, backend.address())]));
        consul.unscript();
        load.open_window();
        wait::until("the news is served", STEP + LENIENCE, || load.seen(name).is_some());
    }
    assert_eq!(load::failures(&load.finish(), &["a", "b"]), "");
}

#[test]
fn fifty_watches_with_the_default_pauses_dont_hammer_a_consul_in_trouble() {
    let consul = FakeConsul::start();
    let backend = Backend::start("a");
    let mut text = "consul_server %%CONSUL%%;\n".to_owned();
    for n in 0..50 {
        consul.publish(&format!("s{n}"), 7, &json!([instance("a", backend.address())]));
        text += &format!("upstream u{n} {{ consul_dynamic s{n}; }}\n");
    }
    text += &crate::support::SERVER.replace("http://api", "http://u7");
    let nginx = Config::http(&text).set("CONSUL", consul.url()).start();
    until_served_by(&nginx, "/", "a");
    let blocked = || consul.queries().iter().filter(|query| query.index == Some(7)).count();
    wait::until("all watches block", SOON, || blocked() >= 50);
    let before = consul.queries().len();
    consul.script(|_| Some(Answer::error(503, "storm")));
    let seconds = 5;
    wait::holds("a is served", Duration::from_secs(seconds), || nginx.outcome("/") == "a");
    let seen = consul.queries().len() - before;
    println!("{} requests a second of 50 watches", seen as u64 / seconds);
    // Pauses of 250 ms at least, up to 0.5, 1, 2, 4 s: 5 tries each, and 250 ms each time at worst.
    assert!((50..=50 * 8).contains(&seen), "{seen} requests");
    consul.unscript();
    // The longest pause is 30 s; each watch waits out its own.
    wait::until("the watch in use is well", Duration::from_secs(31), || {
        nginx.service("s7")["failures"] == 0
    });
}

#[test]
fn all_connections_that_consul_allows_are_taken() {
    let limit = 8;
    let option = format!("-hcl=limits {{ http_max_conns_per_client = {limit} }}");
    let consul = Options::dev().argument(&option).start();
    let scene = Scene::new(&consul);
    register_one(&consul, &scene.service, &scene.backends[1]);
    until_served_by(&scene.nginx, "/", "a b");
    consul.deregister(&format!("{}-b", scene.service));
    until_served_by(&scene.nginx, "/", "a");
    let load = scene.load();
    // Another client of the same address takes every place, and those that are freed.
    let mut taken = Vec::new();
    let start = Instant::now();
    wait::until("every place is taken, and stays so", SOON, || {
        if scene.failures() == 0 {
            scene.proxy.cut_all();
        }
        taken.extend((0..2).filter_map(|_| TcpStream::connect(consul.address()).ok()));
        // The place of a poll that was cut is free when the poll ends.
        scene.failures() >= 3 && start.elapsed() > Duration::from_millis(1500)
    });
    scene.until_visible(version::said_of_too_many_connections());
    scene.assert_few_requests();
    assert!(load.seen("b").is_none(), "{:?}", load.window());
    taken.clear();
    wait::until("a place for the test itself", SOON, || {
        let id = format!("{}-b", scene.service);
        let document = json!({
            "Name": scene.service, "ID": id, "Address": "127.0.0.1",
            "Port": scene.backends[1].address().port(),
        });
        let answer = consul.request("PUT", "/v1/agent/service/register", &document);
        answer.is_ok_and(|answer| answer.status == 200)
    });
    scene.assert_recovers(load, STEP);
}

/// Runs `consul snapshot save` or `restore`.
fn snapshot(consul: &Agent, verb: &str) {
    let file = consul.folder().join("state.snap");
    let mut command = Command::new(version::binary());
    command.args(["snapshot", verb, &format!("-http-addr={}", consul.url())]).arg(file);
    let output = command.output().expect("the consul program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_snapshot_restored_is_followed() {
    let consul = Options::server("s1").start();
    let service = unique("web");
    let backends = Backend::start_all(&["a", "b", "c"]);
    let add = |name: &str, backend: &Backend| {
        let instance = Instance::new(&service, name, backend.address());
        consul.register_external("elsewhere", "127.0.0.1", &instance);
    };
    add("a", &backends[0]);
    snapshot(&consul, "save");
    // The wait is long: what the restored index hides would stay hidden.
    let nginx = gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%; consul_wait 10m;");
    let nginx = nginx.start();
    add("b", &backends[1]);
    until_served_by(&nginx, "/", "a b");
    let load = Load::start_paced(nginx.address(), "/", 1, true, Duration::from_millis(1));
    let before = nginx.service(&service)["index"].as_u64();
    snapshot(&consul, "restore");
    until_served_by(&nginx, "/", "a");
    let after = nginx.service(&service)["index"].as_u64();
    assert!(after < before, "the index went from {before:?} to {after:?}: nothing was tested");
    add("c", &backends[2]);
    until_served_by(&nginx, "/", "a c");
    assert_eq!(load::failures(&load.finish(), &["a", "b", "c"]), "");
}

#[test]
fn a_leader_lost_and_a_quorum_lost() {
    let mut cluster = Cluster::start();
    let proxy = Proxy::start(cluster.client.address());
    let service = unique("web");
    let backends = Backend::start_all(&["a", "b", "c"]);
    register_one(&cluster.client, &service, &backends[0]);
    let nginx = gateway(&proxy.url(), &service, UPSTREAM).start();
    until_served_by(&nginx, "/", "a");
    let load = Load::start_paced(nginx.address(), "/", 1, true, Duration::from_millis(1));
    let leader = wait::until_some("a leader", Duration::from_secs(30), || cluster.leader());
    let servers = [&mut cluster.server].into_iter().chain(&mut cluster.joined);
    let mut servers: Vec<&mut Agent> = servers.collect();
    let is_leader = |agent: &&mut Agent| leader.contains(&agent.server_address());
    let position = servers.iter().position(is_leader).expect("the leader is one of the three");
    servers.remove(position).kill();
    until_visible(&nginx, &service, "500", Duration::from_secs(20));
    // The two that are left elect one of them.
    let patience = Duration::from_secs(40);
    wait::until("answers again", patience, || failures(&nginx, &service) == 0);
    wait::until("b is registered", patience, || {
        let instance = json!({
            "Name": service, "ID": "b", "Address": "127.0.0.1",
            "Port": backends[1].address().port(),
        });
        let answer = cluster.client.request("PUT", "/v1/agent/service/register", &instance);
        answer.is_ok_and(|answer| answer.status == 200)
    });
    wait::until("b is served", patience, || load.seen("b").is_some());
    // One of three is no quorum: the last good set stays, for all that it is worth.
    servers.remove(0).kill();
    wait::until("failures without a quorum", patience, || failures(&nginx, &service) > 0);
    load.open_window();
    wait::until("both serve", SOON, || load.seen("a").is_some() && load.seen("b").is_some());
    assert_eq!(load::failures(&load.finish(), &["a", "b"]), "");
}
