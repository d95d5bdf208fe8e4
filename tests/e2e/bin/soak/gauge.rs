//! What the soak measures: requests, stalls of the event loops, peers, and what processes use.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::http::{Connection, Response};
use nginx_consul_e2e::{Nginx, process, wait};
use serde_json::Value;

use crate::scene::{SERVICES, Scene};

/// Pause of a client after each request.
const PACE: Duration = Duration::from_millis(3);
/// Pause of a probe.
const PROBE: Duration = Duration::from_millis(2);
/// Probes over one connection: another one may be another worker's.
const PROBES_PER_CONNECTION: usize = 50;

/// How long a killed worker may take to be gone.
const DYING: Duration = Duration::from_millis(100);

/// Counts of all threads.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) stop: AtomicBool,
    pub(crate) requests: AtomicU64,
    /// Requests sent again, since their connection was closed under them.
    pub(crate) again: AtomicU64,
    /// Requests lost with a worker that was killed.
    pub(crate) killed: AtomicU64,
    /// What else went wrong, the first few.
    pub(crate) failures: Mutex<Vec<String>>,
    pub(crate) failed: AtomicU64,
    pub(crate) kills: AtomicU64,
    pub(crate) last_kill: Mutex<Option<Instant>>,
    pub(crate) changes: AtomicU64,
    pub(crate) changes_refused: AtomicU64,
    pub(crate) reloads: AtomicU64,
    pub(crate) restarts: AtomicU64,
    pub(crate) rotations: AtomicU64,
    /// Looks at the status page.
    pub(crate) looks: AtomicU64,
    /// Times that an instance that was registered all the time was not listed.
    pub(crate) lost: AtomicU64,
}

impl Counts {
    /// Whether the actors and clients are to go on.
    pub(crate) fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed) && !wait::is_interrupted()
    }

    fn fail(&self, what: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < 10 {
            failures.push(what);
        }
    }

    /// Whether a worker died since then.
    fn lost_a_worker_since(&self, start: Instant) -> bool {
        let last = self.last_kill.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|at| at + DYING > start)
    }
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A client that asks one service after the other over a connection that it keeps.
pub(crate) fn client(counts: &Counts, address: SocketAddr, first: usize) {
    let mut connection = None;
    let mut service = first;
    while counts.goes_on() {
        service = (service + 1) % SERVICES;
        let start = Instant::now();
        match ask(counts, &mut connection, address, &format!("/s{service}")) {
            Ok(answer) if answer.status == 200 => {}
            Ok(answer) => counts.fail(format!("status {} of s{service}", answer.status)),
            Err(_) if counts.lost_a_worker_since(start) => count(&counts.killed),
            Err(error) => counts.fail(format!("{error}, s{service}")),
        }
        count(&counts.requests);
        thread::sleep(PACE);
    }
}

/// One request; a connection that nginx closed while it was idle is replaced. A request that a
/// killed worker has read looks the same, and is sent again too: GETs may be.
fn ask(
    counts: &Counts,
    kept: &mut Option<Connection>,
    address: SocketAddr,
    path: &str,
) -> io::Result<Response> {
    let mut last = Err(io::ErrorKind::NotConnected.into());
    for fresh in [false, true] {
        let mut open = match kept.take() {
            Some(open) if !fresh => open,
            _ if !fresh => continue,
            _ => Connection::open(address)?,
        };
        last = open.get(path);
        if let Ok(answer) = &last {
            if !answer.head.closes() {
                *kept = Some(open);
            }
            return last;
        }
        if !fresh {
            count(&counts.again);
        }
    }
    last
}

/// Latencies of a location that needs nothing but the event loop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stalls {
    /// Sorted, in microseconds.
    pub(crate) latencies: Vec<u32>,
    pub(crate) workers: usize,
}

impl Stalls {
    pub(crate) fn merge(mut self, other: &Stalls) -> Stalls {
        self.latencies.extend_from_slice(&other.latencies);
        self.latencies.sort_unstable();
        self.workers += other.workers;
        self
    }

    /// The latency that this share of the probes was below.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * share) as usize;
        Duration::from_micros(self.latencies.get(at).copied().unwrap_or(0).into())
    }
}

/// Probes a worker some times over one connection, and goes on with another one.
pub(crate) fn probe(counts: &Counts, address: SocketAddr) -> Stalls {
    let (mut latencies, mut workers) = (Vec::new(), HashSet::new());
    while counts.goes_on() {
        let Ok(mut connection) = Connection::open(address) else { continue };
        // The first answer includes the wait for a worker to accept, which may just start.
        let Ok(first) = connection.get("/probe") else { continue };
        workers.insert(first.header("x-worker").unwrap_or_default().to_owned());
        for _ in 0..PROBES_PER_CONNECTION {
            thread::sleep(PROBE);
            let start = Instant::now();
            let answer = connection.get("/probe");
            // A worker that was killed while it was held up counts too.
            latencies.push(u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX));
            if !answer.is_ok_and(|answer| !answer.head.closes()) {
                break;
            }
        }
    }
    latencies.sort_unstable();
    Stalls { latencies, workers: workers.len() }
}

/// Looks at the status page whether the instances that stay are there.
pub(crate) fn watch_peers(counts: &Counts, scene: &Scene) {
    while counts.goes_on() {
        thread::sleep(Duration::from_millis(250));
        let Ok(answer) = scene.nginx.try_get("/consul?format=json") else { continue };
        let Ok(status) = serde_json::from_str::<Value>(&answer.body) else {
            counts.fail("the status page is no JSON".to_owned());
            continue;
        };
        count(&counts.looks);
        let services = status["services"].as_array().cloned().unwrap_or_default();
        let has_home = |service: &&Value| {
            let peers = service["peers"].as_array().cloned().unwrap_or_default();
            let name = service["service"].as_str().unwrap_or_default();
            peers.iter().any(|peer| peer["service_id"] == format!("{name}-home"))
        };
        let well = services.iter().filter(has_home).count();
        counts.lost.fetch_add((SERVICES - well.min(SERVICES)) as u64, Ordering::Relaxed);
    }
}

/// What nginx's processes use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Private memory in KiB: of the master, and of all workers.
    pub(crate) memory: [u64; 2],
    /// Bytes of the zone.
    pub(crate) zone: u64,
    /// Requests that count as being with an instance.
    pub(crate) in_flight: u64,
    pub(crate) threads: usize,
    pub(crate) descriptors: usize,
    pub(crate) processes: usize,
}

impl Usage {
    pub(crate) fn of(nginx: &Nginx) -> Usage {
        let master = nginx.pid();
        let mut children = process::children(master, "");
        children.retain(|&pid| process::is_alive(pid));
        let mut all = children.clone();
        all.push(master);
        Usage {
            memory: [private(master), children.iter().map(|&pid| private(pid)).sum()],
            zone: nginx.status()["zone"]["used"].as_u64().expect("the size of the zone"),
            in_flight: nginx.in_flight(),
            threads: all.iter().map(|&pid| process::threads(pid).len()).sum(),
            descriptors: all.iter().map(|&pid| process::descriptors(pid).len()).sum(),
            processes: all.len(),
        }
    }
}

/// Private memory of a process in KiB.
fn private(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
