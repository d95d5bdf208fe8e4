//! A million names that nobody has.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use nginx_consul_e2e::FakeConsul;
use nginx_consul_e2e::fake_consul::instance;

use super::*;

/// Has its clients end, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Connections of a client.
const WIDTH: usize = 32;

/// Sends requests for names that don't exist, each for another one, until told to stop.
fn flood(nginx: &Nginx, stop: &AtomicBool, client: usize) -> Tally {
    let mut tally = Tally::default();
    let open = || Connection::open(nginx.address()).expect("a connection");
    let mut connections: Vec<Connection> = (0..WIDTH).map(|_| open()).collect();
    for n in 0.. {
        if stop.load(Relaxed) {
            break;
        }
        for (at, connection) in connections.iter_mut().enumerate() {
            let path = path(&format!("none-{client}-{at}-{n}"));
            // nginx closes a connection after a thousand requests.
            if connection.send("GET", &path, &[], b"").is_err() {
                *connection = open();
            }
        }
        for connection in &mut connections {
            match connection.receive() {
                Ok(answer) => tally.add(answer.outcome()),
                Err(_) => *connection = open(),
            }
        }
    }
    tally
}

/// Floods nginx while `work` goes on.
fn flooded<T>(nginx: &Nginx, clients: usize, work: impl FnOnce() -> T) -> (Tally, T) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        let clients: Vec<_> =
            (0..clients).map(|n| scope.spawn(move || flood(nginx, stop, n))).collect();
        let end = Stop(stop);
        let done = work();
        drop(end);
        let mut all = Tally::default();
        for client in clients {
            all.merge(&client.join().expect("a client"));
        }
        (all, done)
    })
}

const CATALOG: &str = "/v1/catalog/services";

#[test]
fn a_flood_of_random_names_disturbs_nobody_and_is_bounded() {
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    let (known, _a) = new_service(&consul, "steady");
    let nginx = by_argument(&proxy.url(), "").workers(2).start();
    assert_eq!(nginx.outcome(&path(&known)), known);
    let used = |nginx: &Nginx| nginx.status()["zone"]["used"].as_u64().expect("bytes");
    let before = used(&nginx);
    let steady = Load::start(nginx.address(), &path(&known), 2, true);
    let start = Instant::now();
    let (flood, fresh) = flooded(&nginx, 8, || {
        wait::until("the flood rises", SOON, || proxy.requests(CATALOG).len() >= 2);
        let mut fresh = Vec::new();
        while start.elapsed() < Duration::from_secs(4) {
            let (service, backend) = new_service(&consul, "amid");
            assert_eq!(nginx.outcome(&path(&service)), service);
            fresh.push((service, backend));
        }
        fresh
    });
    let seconds = start.elapsed().as_secs() as usize + 1;
    let tally = steady.finish();
    assert_eq!(tally.outcomes(), known, "{tally}");
    assert_eq!(flood.outcomes(), "502", "{flood}");
    assert!(flood.total() > 1000, "only {} names", flood.total());
    assert_eq!(proxy.requests("none-").len(), 0, "no question is about a single name");
    let catalogs = proxy.requests(CATALOG).len();
    assert!(catalogs <= 4 * seconds + 1, "{catalogs} catalogs in {seconds} s");
    assert!(fresh.len() > 2, "{} new services were served meanwhile", fresh.len());
    let mut followed: Vec<String> = fresh.into_iter().map(|(service, _)| service).collect();
    followed.push(known);
    followed.sort_unstable();
    assert_eq!(named(&nginx), followed);
    let grown = used(&nginx).saturating_sub(before);
    assert!(grown < 2048 * followed.len() as u64, "{grown} bytes more in the zone");
    let lines = nginx.logged("no service").len();
    assert!(lines <= 2 * (seconds + 1), "{lines} lines in {seconds} s by two workers");
}

/// Names that exist, but without the tag: Consul says when that changes.
#[test]
fn a_name_without_the_tag_costs_no_question_until_the_catalog_changes() {
    let consul = FakeConsul::start();
    let backend = Backend::start("tagged");
    let mut of_backend = instance("tagged", backend.address());
    let lines = "consul_allow_service tag=public; consul_unknown_service valid=200ms;";
    consul.publish("hidden", 7, &Value::Array(vec![of_backend.clone()]));
    let nginx = by_argument(&consul.url(), lines).workers(2).start();
    let load = Load::start(nginx.address(), &path("hidden"), 4, true);
    let queries = || consul.queries().into_iter().filter(|q| q.target.starts_with(CATALOG)).count();
    wait::until("Consul is asked for changes", SOON, || {
        let all = consul.queries();
        all.iter().any(|query| query.target.starts_with(CATALOG) && query.index.is_some())
    });
    let (asked, sent) = (queries(), load.sent());
    wait::holds("nothing is asked", Duration::from_secs(3), || queries() == asked);
    assert!(load.sent() > sent + 1000, "only {} requests", load.sent());
    of_backend["Service"]["Tags"] = serde_json::json!(["public"]);
    consul.publish("hidden", 8, &Value::Array(vec![of_backend]));
    consul.tag("hidden", &["public"]);
    until_served_by(&nginx, &path("hidden"), "tagged");
    assert_eq!(load.finish().outcomes(), "502 tagged");
}
