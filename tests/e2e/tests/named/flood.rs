//! A million names that nobody has.

use super::*;

/// Sends requests for names that don't exist, each for another one, until told to stop.
fn flood(nginx: &Nginx, stop: &std::sync::atomic::AtomicBool, client: usize) -> Tally {
    use std::sync::atomic::Ordering::Relaxed;
    let mut tally = Tally::default();
    let mut connection = Connection::open(nginx.address()).expect("a connection");
    for n in 0.. {
        if stop.load(Relaxed) {
            break;
        }
        match connection.get(&path(&format!("none-{client}-{n}"))) {
            Ok(answer) => tally.add(answer.outcome()),
            // nginx closes a connection after a thousand requests.
            Err(_) => connection = Connection::open(nginx.address()).expect("a connection"),
        }
    }
    tally
}

#[test]
fn a_flood_of_random_names_disturbs_nobody_and_is_bounded() {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    let consul = Agent::shared();
    let proxy = Proxy::start(consul.address());
    let (known, _a) = new_service(&consul, "steady");
    let nginx = by_argument(&proxy.url(), "").workers(2).start();
    assert_eq!(nginx.outcome(&path(&known)), known);
    let used = |nginx: &Nginx| nginx.status()["zone"]["used"].as_u64().expect("bytes");
    let before = used(&nginx);
    let steady = Load::start(nginx.address(), &path(&known), 2, true);
    let stop = AtomicBool::new(false);
    let (start, mut fresh) = (Instant::now(), Vec::new());
    let flooded = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|n| {
                scope.spawn({
                    let (nginx, stop) = (&nginx, &stop);
                    move || flood(nginx, stop, n)
                })
            })
            .collect();
        wait::until("the flood rises", SOON, || proxy.requests("none-").len() >= 250);
        while start.elapsed() < Duration::from_secs(4) {
            let (service, backend) = new_service(&consul, "amid");
            let seen = wait::until_some("a new service is served", SOON, || {
                let outcome = nginx.outcome(&path(&service));
                (outcome == service).then_some(outcome)
            });
            fresh.push((seen, backend));
        }
        stop.store(true, Relaxed);
        clients.into_iter().map(|client| client.join().expect("a client")).fold(
            Tally::default(),
            |mut all, tally| {
                all.merge(&tally);
                all
            },
        )
    });
    let seconds = start.elapsed().as_secs() as usize + 1;
    let tally = steady.finish();
    assert_eq!(tally.outcomes(), known, "{tally}");
    assert_eq!(flooded.outcomes(), "502", "{flooded}");
    let asked = proxy.requests("none-").len();
    assert!(flooded.total() > 2 * asked, "{} names, {asked} questions", flooded.total());
    assert!(asked <= 200 + 110 * seconds, "{asked} questions in {seconds} s");
    assert!(!fresh.is_empty(), "new services are served meanwhile");
    let mut followed: Vec<String> = fresh.into_iter().map(|(service, _)| service).collect();
    followed.push(known);
    followed.sort_unstable();
    assert_eq!(named(&nginx), followed);
    let grown = used(&nginx).saturating_sub(before);
    assert!(grown < 2048 * followed.len() as u64, "{grown} bytes more in the zone");
    let lines = nginx.logged("no service").len();
    assert!(lines <= 2 * (seconds + 1), "{lines} lines in {seconds} s by two workers");
}
