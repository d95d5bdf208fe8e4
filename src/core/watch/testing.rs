//! A Consul of a few lines, and a sink that remembers.

pub(super) mod registry;

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::model::{Connections, Level, PeerSet, Query, Selection};

pub(super) const SOON: Duration = Duration::from_secs(5);

pub(crate) fn endpoint(url: &str) -> Endpoint {
    Endpoint {
        servers: vec![url.parse().unwrap()],
        token: None,
        tls: Tls::default(),
        connect_timeout: Duration::from_secs(2),
        max_body: 16 << 20,
    }
}

pub(crate) fn target(endpoint: &Arc<Endpoint>, service: &str) -> Target {
    Target {
        query: Query { service: service.to_owned(), ..Query::default() },
        selection: Selection::default(),
        endpoint: Arc::clone(endpoint),
        timing: Timing {
            wait: Duration::from_secs(60),
            retry_min: Duration::from_millis(50),
            retry_max: Duration::from_secs(30),
            max_stale: None,
            resolve: Duration::from_secs(30),
            poll: Duration::from_secs(5),
        },
        policy: Policy { on_empty: OnEmpty::Drop, max_removal: None },
    }
}

/// One instance of a service.
pub(super) fn element(id: &str, port: u16) -> String {
    format!(
        r#"{{"Node":{{"Node":"n","Address":"127.0.0.1"}},"Service":{{"ID":"{id}","Port":{port}}}}}"#
    )
}

/// Answers blocking queries for every service name with the same list.
pub(super) struct FakeConsul {
    pub(super) url: String,
    state: Arc<State>,
}

struct State {
    now: Mutex<(u64, String)>,
    changed: Condvar,
    connections: AtomicUsize,
    requests: AtomicUsize,
}

impl FakeConsul {
    pub(super) fn new(elements: &[String]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            now: Mutex::new((10, elements.join(","))),
            changed: Condvar::new(),
            connections: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                state.connections.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || state.serve(stream));
            }
        });
        FakeConsul { url, state }
    }

    pub(super) fn set(&self, elements: &[String]) {
        let mut now = self.state.now.lock().unwrap();
        *now = (now.0 + 1, elements.join(","));
        self.state.changed.notify_all();
    }

    pub(super) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    pub(super) fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }
}

/// The head of the next request; `None` at the end of the connection.
fn read_head(stream: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if !matches!(stream.read_line(&mut head), Ok(1..)) {
            return None;
        }
    }
    Some(head)
}

impl State {
    fn serve(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        loop {
            let Some(head) = read_head(&mut stream) else { return };
            self.requests.fetch_add(1, Ordering::SeqCst);
            let index = head.split_once("index=").map(|(_, rest)| {
                let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                rest[..end].parse::<u64>().unwrap()
            });
            let wait =
                head.split_once("wait=").map_or(Duration::ZERO, |(_, rest)| go_duration(rest));
            let now = self.now.lock().unwrap();
            let asked = |now: &mut (u64, String)| index.is_some_and(|index| now.0 <= index);
            let now = self.changed.wait_timeout_while(now, wait, asked).unwrap().0;
            let (index, list) = now.clone();
            drop(now);
            let length = list.len() + 2;
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Consul-Index: {index}\r\n\
                 Content-Length: {length}\r\n\r\n[{list}]"
            );
            if stream.get_mut().write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

/// The time that a text begins with, in seconds or milliseconds.
fn go_duration(text: &str) -> Duration {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..end].parse().unwrap();
    if text[end..].starts_with("ms") {
        Duration::from_millis(number)
    } else {
        Duration::from_secs(number)
    }
}

/// Records every call.
#[derive(Default)]
pub(super) struct RecordingSink {
    pub(super) state: Mutex<Recorded>,
    changed: Condvar,
    /// Panics at each publication while it is not zero, and counts down.
    pub(super) panics: AtomicUsize,
    /// What to say to every publication.
    pub(super) refuse: Mutex<Option<String>>,
    /// A publication for this target lasts until it is let go; and whether one does.
    pub(super) hold: Mutex<Option<usize>>,
    pub(super) is_held: AtomicBool,
    /// Connections of earlier watchers, and those that the watcher has reported.
    pub(super) foreign: AtomicUsize,
    pub(super) noted: Mutex<Connections>,
}

#[derive(Default)]
pub(super) struct Recorded {
    pub(super) sets: HashMap<usize, PeerSet>,
    pub(super) lines: Vec<String>,
    pub(super) reports: Vec<String>,
}

impl RecordingSink {
    /// Waits until `what` is so.
    pub(super) fn until(&self, what: impl Fn(&Recorded) -> bool) -> Duration {
        self.until_within(SOON, what)
    }

    pub(super) fn until_within(
        &self,
        time: Duration,
        what: impl Fn(&Recorded) -> bool,
    ) -> Duration {
        let start = Instant::now();
        let state = self.state.lock().unwrap();
        let (state, timeout) =
            self.changed.wait_timeout_while(state, time, |state| !what(state)).unwrap();
        assert!(!timeout.timed_out(), "lines: {:#?}\n{:#?}", state.lines, state.reports);
        start.elapsed()
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.state.lock().unwrap().lines.clone()
    }

    /// Waits until a target has this many peers.
    pub(super) fn until_peers(&self, target: usize, count: usize) -> Duration {
        self.until(|told| told.sets.get(&target).is_some_and(|set| set.peers().len() == count))
    }
}

impl Sink for RecordingSink {
    fn publish(&self, target: usize, set: &PeerSet, _: u64) -> Published {
        if self
            .panics
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_ok()
        {
            panic!("as the test wants it");
        }
        if let Some(reason) = &*self.refuse.lock().unwrap() {
            return Published::Refused(reason.clone());
        }
        while *self.hold.lock().unwrap() == Some(target) {
            self.is_held.store(true, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(1));
        }
        let mut state = self.state.lock().unwrap();
        let old = state.sets.insert(target, set.clone()).unwrap_or_default();
        self.changed.notify_all();
        if old.digest() == set.digest() {
            return Published::Unchanged;
        }
        let not_in = |a: &PeerSet, b: &PeerSet| {
            a.peers().iter().filter(|p| b.peers().iter().all(|q| q.identity != p.identity)).count()
        };
        Published::Changed {
            peers: set.peers().len(),
            added: not_in(set, &old),
            removed: not_in(&old, set),
            changed: 0,
        }
    }

    fn report(&self, target: usize, report: &Report<'_>) {
        self.state.lock().unwrap().reports.push(format!("{target} {report:?}"));
        self.changed.notify_all();
    }

    fn log(&self, level: Level, line: String) {
        self.state.lock().unwrap().lines.push(format!("{level:?} {line}"));
        self.changed.notify_all();
    }

    fn has_data(&self, target: usize) -> bool {
        self.state.lock().unwrap().sets.contains_key(&target)
    }

    fn published_identities(&self, target: usize) -> HashSet<u64> {
        let state = self.state.lock().unwrap();
        state
            .sets
            .get(&target)
            .map_or_else(HashSet::new, |set| set.peers().iter().map(|peer| peer.identity).collect())
    }
    fn note_connections(&self, connections: Connections) {
        *self.noted.lock().unwrap() = connections;
    }

    fn earlier_connections(&self) -> usize {
        self.foreign.load(Ordering::SeqCst)
    }
}
