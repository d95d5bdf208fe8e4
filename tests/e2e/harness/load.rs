//! Requests without a pause, while something else happens.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::http::{self, Connection};
use crate::tally::Tally;

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicUsize,
    failures: AtomicUsize,
    last: Mutex<Option<(String, Instant)>>,
}

/// Clients that go on until [`Load::finish`].
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Tally>>,
}

impl Load {
    /// Starts `clients` of them; each request is on a connection of its own unless `keepalive`.
    pub fn start(address: SocketAddr, path: &str, clients: usize, keepalive: bool) -> Load {
        let shared = Arc::<Shared>::default();
        let clients = (0..clients)
            .map(|_| {
                let (shared, path) = (Arc::clone(&shared), path.to_owned());
                thread::spawn(move || run(&shared, address, &path, keepalive))
            })
            .collect();
        Load { shared, clients }
    }

    /// Answers seen so far, good or bad.
    pub fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// Failures so far: any status but 200, any error.
    pub fn failures(&self) -> usize {
        self.shared.failures.load(Ordering::SeqCst)
    }

    /// When an outcome was last seen, if the last answer of all was that one.
    pub fn last(&self) -> Option<(String, Instant)> {
        self.shared.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the clients; returns who answered, failures as `502` or as the error's text.
    pub fn finish(mut self) -> Tally {
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut tally = Tally::default();
        for client in self.clients.drain(..) {
            tally.merge(&client.join().expect("a client that doesn't panic"));
        }
        tally
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

/// The outcomes in a tally that are failures; empty if there is none.
pub fn failures(tally: &Tally, good: &[&str]) -> String {
    let bad = |outcome: &&str| !good.contains(outcome);
    tally.names().filter(bad).map(|o| format!("{o}: {}", tally.of(o))).collect::<Vec<_>>().join(", ")
}

fn run(shared: &Shared, address: SocketAddr, path: &str, keepalive: bool) -> Tally {
    let mut tally = Tally::default();
    let mut connection = None;
    while !shared.stop.load(Ordering::SeqCst) {
        let result = if keepalive {
            persistent(&mut connection, address, path)
        } else {
            http::get(address, path)
        };
        let good = result.as_ref().is_ok_and(|answer| answer.status == 200);
        let outcome = result.map_or_else(|error| error.to_string(), |answer| answer.outcome());
        *shared.last.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((outcome.clone(), Instant::now()));
        tally.add(outcome);
        shared.sent.fetch_add(1, Ordering::SeqCst);
        if !good {
            shared.failures.fetch_add(1, Ordering::SeqCst);
            // A broken server must not turn the clients into a busy loop.
            thread::sleep(Duration::from_millis(1));
        }
    }
    tally
}

/// A request on the connection at hand, or on a new one if the server closed that one while it was
/// idle, as it may do at any time.
fn persistent(
    connection: &mut Option<Connection>,
    address: SocketAddr,
    path: &str,
) -> std::io::Result<http::Response> {
    if let Some(mut open) = connection.take() {
        if let Ok(answer) = open.get(path) {
            if !answer.head.closes() {
                *connection = Some(open);
            }
            return Ok(answer);
        }
    }
    let mut open = Connection::open(address)?;
    let answer = open.get(path)?;
    if !answer.head.closes() {
        *connection = Some(open);
    }
    Ok(answer)
}
