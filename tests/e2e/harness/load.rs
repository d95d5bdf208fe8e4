//! Requests without a pause, while something else happens.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::http::{self, Connection};
use crate::tally::Tally;

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicUsize,
    failures: AtomicUsize,
    window: Mutex<HashMap<String, Seen>>,
    /// How long each request took, if somebody wants to know.
    times: Mutex<Option<Vec<Duration>>>,
}

/// How often an outcome was seen in the window, and when first and last.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// How often.
    pub count: usize,
    /// When first.
    pub first: Instant,
    /// When last.
    pub last: Instant,
}

/// What a client waits for between two requests.
#[derive(Clone, Copy, Debug)]
enum Pause {
    /// So long from the end of one.
    After(Duration),
    /// So long from the beginning of one.
    Period(Duration),
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
        Load::start_paced(address, path, clients, keepalive, Duration::ZERO)
    }

    /// Starts `clients` of them, each with a request every `period`, or as soon as its last one has
    /// ended if that took longer; each request is on a connection of its own.
    pub fn start_every(address: SocketAddr, path: &str, clients: usize, period: Duration) -> Load {
        Load::spawn(clients, |shared| {
            let path = path.to_owned();
            move || run(&shared, address, &path, false, Pause::Period(period))
        })
    }

    /// As [`Load::start`], with a pause after each request.
    pub fn start_paced(
        address: SocketAddr,
        path: &str,
        clients: usize,
        keepalive: bool,
        pause: Duration,
    ) -> Load {
        Load::spawn(clients, |shared| {
            let path = path.to_owned();
            move || run(&shared, address, &path, keepalive, Pause::After(pause))
        })
    }

    fn spawn<F: FnOnce() -> Tally + Send + 'static>(
        clients: usize,
        client: impl Fn(Arc<Shared>) -> F,
    ) -> Load {
        let shared = Arc::<Shared>::default();
        let start = |_| thread::spawn(client(Arc::clone(&shared)));
        let clients = (0..clients).map(start).collect();
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

    /// Opens a new window: what [`Load::seen`] and [`Load::window`] tell starts now.
    pub fn open_window(&self) {
        lock(&self.shared.window).clear();
    }

    /// The same, and from now on it is noted how long each request takes.
    pub fn open_timed_window(&self) {
        *lock(&self.shared.times) = Some(Vec::new());
        self.open_window();
    }

    /// How long the requests took that ended since [`Load::open_timed_window`], in no order.
    pub fn times(&self) -> Vec<Duration> {
        lock(&self.shared.times).clone().unwrap_or_default()
    }

    /// What was seen of an outcome in the window.
    pub fn seen(&self, outcome: &str) -> Option<Seen> {
        lock(&self.shared.window).get(outcome).copied()
    }

    /// What was seen in the window.
    pub fn window(&self) -> Tally {
        let mut tally = Tally::default();
        for (outcome, seen) in lock(&self.shared.window).iter() {
            tally.add_many(outcome.as_str(), seen.count);
        }
        tally
    }

    /// Has the clients end after their present request.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }

    /// Clients that have not ended yet.
    pub fn running(&self) -> usize {
        self.clients.iter().filter(|client| !client.is_finished()).count()
    }

    /// Ends the clients; returns who answered, failures as `502` or as the error's text.
    pub fn finish(mut self) -> Tally {
        self.stop();
        let mut tally = Tally::default();
        for client in self.clients.drain(..) {
            tally.merge(&client.join().expect("a client that doesn't panic"));
        }
        tally
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The outcomes in a tally that are failures; empty if there is none.
pub fn failures(tally: &Tally, good: &[&str]) -> String {
    let bad = |outcome: &&str| !good.contains(outcome);
    tally
        .names()
        .filter(bad)
        .map(|o| format!("{o}: {}", tally.of(o)))
        .collect::<Vec<_>>()
        .join(", ")
}

fn run(shared: &Shared, address: SocketAddr, path: &str, keepalive: bool, pause: Pause) -> Tally {
    let mut tally = Tally::default();
    let mut connection = None;
    while !shared.stop.load(Ordering::SeqCst) {
        let start = Instant::now();
        let result = if keepalive {
            persistent(&mut connection, address, path)
        } else {
            http::get(address, path)
        };
        let good = result.as_ref().is_ok_and(|answer| answer.status == 200);
        let outcome = result.map_or_else(|error| error.to_string(), |answer| answer.outcome());
        note(shared, &outcome);
        if let Some(times) = &mut *lock(&shared.times) {
            times.push(start.elapsed());
        }
        tally.add(outcome);
        shared.sent.fetch_add(1, Ordering::SeqCst);
        if !good {
            shared.failures.fetch_add(1, Ordering::SeqCst);
            // A broken server must not turn the clients into a busy loop.
            thread::sleep(Duration::from_millis(1));
        }
        let pause = match pause {
            Pause::After(pause) => pause,
            Pause::Period(period) => period.saturating_sub(start.elapsed()),
        };
        if !pause.is_zero() {
            thread::sleep(pause);
        }
    }
    tally
}

fn note(shared: &Shared, outcome: &str) {
    let now = Instant::now();
    let mut window = lock(&shared.window);
    if let Some(seen) = window.get_mut(outcome) {
        seen.count += 1;
        seen.last = now;
    } else {
        window.insert(outcome.to_owned(), Seen { count: 1, first: now, last: now });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
