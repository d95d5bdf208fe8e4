//! No request is answered by another instance than the one it was sent to, whatever its address was
//! before.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nginx_consul_e2e::fake_consul::instance;
use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::{Config, FakeConsul, Nginx, wait};
use serde_json::Value;

use super::ALIVE;
use super::chameleon::Chameleon;
use crate::support::SOON;

const REQUESTS: usize = 100_000;
const SERVICES: [&str; 2] = ["web", "shop"];
const ADDRESSES: usize = 12;
const LIMIT: usize = 16;
const WORKERS: usize = 2;
const CLIENTS: usize = 8;

/// The rounds: in each one, half of the addresses are new instances, of one of the services; the
/// other half rests, until nobody can be on the way to who was there before.
struct Rounds<'a> {
    consul: &'a FakeConsul,
    backends: &'a [Chameleon],
    nginx: &'a Nginx,
    /// The last one that nginx has taken.
    taken: AtomicUsize,
    /// Requests of all clients, and of each.
    sent: AtomicUsize,
    answered: [AtomicUsize; CLIENTS],
    /// The round that answered each client last.
    seen: [AtomicUsize; CLIENTS],
    /// A worker may take a round later, as nginx's own methods do to limit what that costs; then
    /// its clients must never see an older one again.
    is_late: bool,
}

impl Rounds<'_> {
    /// Gives the addresses that rested to new instances, and waits until nginx knows.
    fn turn(&self, round: usize) {
        let mut sets: [Vec<Value>; 2] = Default::default();
        let half = self.backends.iter().enumerate().filter(|(n, _)| n % 2 == round % 2);
        for (number, backend) in half {
            let service = (number / 2 + round / 2) % SERVICES.len();
            let name = format!("{}-{round}-{number}", SERVICES[service]);
            backend.become_one(&name);
            sets[service].push(instance(&name, backend.address()));
        }
        for (service, set) in SERVICES.iter().zip(sets) {
            self.consul.publish(service, 7 + round as u64, &Value::Array(set));
        }
        wait::until("nginx has the round", SOON, || {
            let status = self.nginx.status();
            let ids = status["services"].as_array().into_iter().flatten().flat_map(|service| {
                service["peers"].as_array().into_iter().flatten().map(|peer| &peer["service_id"])
            });
            let new = ids.flat_map(Value::as_str).filter(|id| round_of(id) == Some(round));
            new.count() == self.backends.len() / 2
        });
        self.taken.store(round, Ordering::SeqCst);
    }

    /// Waits until every client was answered by the round, and has sent a request since.
    fn rest(&self) {
        let count = || self.answered.each_ref().map(|n| n.load(Ordering::SeqCst));
        let before = count();
        wait::until("every client goes on", SOON, || {
            let round = self.taken.load(Ordering::SeqCst);
            let seen = self.seen.iter().all(|seen| seen.load(Ordering::SeqCst) == round);
            let on = count().iter().zip(before).all(|(&now, before)| now >= before + 2);
            self.is_over() || (seen && on)
        });
    }

    fn is_over(&self) -> bool {
        self.sent.load(Ordering::SeqCst) >= REQUESTS
    }

    /// Sends requests until there were enough, and says what was wrong.
    fn ask(&self, client: usize) -> Vec<String> {
        let service = SERVICES[client % SERVICES.len()];
        let open = || Connection::open(self.nginx.address()).expect("a connection");
        let mut connection = open();
        let mut wrong = Vec::new();
        while self.sent.fetch_add(1, Ordering::SeqCst) < REQUESTS {
            let first = if self.is_late { &self.seen[client] } else { &self.taken };
            let first = first.load(Ordering::SeqCst);
            let answer = connection.get(&format!("/{service}"));
            let last = self.taken.load(Ordering::SeqCst) + 1;
            let outcome = answer.as_ref().map_or_else(ToString::to_string, |a| a.outcome());
            let is_right = outcome.split('-').next() == Some(service)
                && round_of(&outcome).is_some_and(|round| (first..=last).contains(&round));
            if !is_right {
                wrong.push(format!("{service} in round {first} to {last}: {outcome}"));
            }
            self.seen[client].store(round_of(&outcome).unwrap_or(0), Ordering::SeqCst);
            if answer.is_err() {
                connection = open();
            }
            self.answered[client].fetch_add(1, Ordering::SeqCst);
        }
        wrong
    }
}

/// The round of an instance's name.
fn round_of(name: &str) -> Option<usize> {
    name.split('-').nth(1)?.parse().ok()
}

fn start(consul: &FakeConsul, method: &str) -> Nginx {
    Config::http(
        "consul_server %%CONSUL%%; access_log off; keepalive_requests 1000000;
         upstream web { %%METHOD%% consul_dynamic web; consul_keepalive %%LIMIT%%; }
         upstream shop { %%METHOD%% consul_dynamic shop; consul_keepalive %%LIMIT%%; }
         server {
             listen 127.0.0.1:%%PORT%%; %%ALIVE%%
             location /web { proxy_pass http://web; }
             location /shop { proxy_pass http://shop; }
             location = /consul { consul_status; }
         }",
    )
    .set("CONSUL", consul.url())
    .set("METHOD", method)
    .set("LIMIT", LIMIT)
    .set("ALIVE", ALIVE)
    .workers(WORKERS)
    .start()
}

fn no_request_goes_astray(method: &str) {
    let consul = FakeConsul::start();
    let backends: Vec<Chameleon> = (0..ADDRESSES).map(|_| Chameleon::start()).collect();
    let nginx = start(&consul, method);
    let rounds = Rounds {
        consul: &consul,
        backends: &backends,
        nginx: &nginx,
        taken: 0.into(),
        sent: 0.into(),
        answered: Default::default(),
        seen: Default::default(),
        is_late: !method.is_empty(),
    };
    rounds.turn(1);
    let mut turns = 1;
    let wrong: Vec<String> = thread::scope(|scope| {
        let rounds = &rounds;
        let clients: Vec<_> =
            (0..CLIENTS).map(|client| scope.spawn(move || rounds.ask(client))).collect();
        while !rounds.is_over() {
            turns += 1;
            rounds.turn(turns);
            rounds.rest();
        }
        clients.into_iter().flat_map(|client| client.join().expect("a client")).collect()
    });
    assert!(
        wrong.is_empty(),
        "{} of {REQUESTS}, as {:?}",
        wrong.len(),
        &wrong[..wrong.len().min(5)]
    );
    assert!(turns > 20, "only {turns} rounds");
    let accepted: usize = backends.iter().map(Chameleon::accepted).sum();
    assert!(accepted < REQUESTS / 3, "{accepted} connections for {REQUESTS} requests");
    // Nothing leaks: what is open is idle and counted.
    wait::until_eq("open connections that nginx does not know of", SOON, &0, || {
        let open: usize = backends.iter().map(Chameleon::open).sum();
        let idle: u64 =
            SERVICES.map(|service| super::counted(&nginx, service, "idle")).iter().sum();
        assert!(idle as usize <= LIMIT * SERVICES.len() * WORKERS, "{idle} idle connections");
        open.abs_diff(idle as usize)
    });
}

#[test]
fn no_request_goes_to_the_former_owner_of_an_address() {
    no_request_goes_astray("");
}

#[test]
fn no_request_goes_to_the_former_owner_of_an_address_by_a_method_of_nginx() {
    no_request_goes_astray("least_conn;");
}
