//! A million names that nobody has.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use super::*;

/// Has its clients end, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Sends requests for names that don't exist, each for another one, until told to stop.
fn flood(nginx: &Nginx, stop: &AtomicBool, client: usize) -> Tally {
    let mut tally = Tally::default();
    let open = || Connection::open(nginx.address()).expect("a connection");
    let mut connection = open();
    for n in 0.. {
        if stop.load(Relaxed) {
            break;
        }
        match connection.get(&path(&format!("none-{client}-{n}"))) {
            Ok(answer) => tally.add(answer.outcome()),
            // nginx closes a connection after a thousand requests.
            Err(_) => connection = open(),
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
        wait::until("the flood rises", SOON, || proxy.requests("none-").len() >= 200);
        let mut fresh = Vec::new();
        while start.elapsed() < Duration::from_secs(4) {
            let (service, backend) = new_service(&consul, "amid");
            // At once, or when the list of all services is next asked for.
            wait::until_eq("a new service", SOON, &service, || nginx.outcome(&path(&service)));
            fresh.push((service, backend));
        }
        fresh
    });
    let seconds = start.elapsed().as_secs() as usize + 1;
    let tally = steady.finish();
    assert_eq!(tally.outcomes(), known, "{tally}");
    assert_eq!(flood.outcomes(), "502", "{flood}");
    let asked = proxy.requests("/v1/health/service/none-").len();
    assert!(flood.total() > 2 * asked, "{} names, {asked} questions", flood.total());
    assert!(asked <= 200 + 110 * seconds, "{asked} questions in {seconds} s");
    let lists = proxy.requests("/v1/catalog/services").len();
    assert!(lists <= 5 * seconds, "{lists} lists in {seconds} s");
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
