//! A Consul with services of their own, and with queries about all of them.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::{element, read_head};

/// The Consul.
pub(in crate::watch) struct Registry {
    pub(in crate::watch) url: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    index: u64,
    /// Index and elements.
    services: BTreeMap<String, (u64, Vec<String>)>,
    /// Of the names and of the critical checks.
    names: u64,
    critical: (u64, Vec<String>),
    /// Queries about all services get this status.
    refuses: Option<u16>,
    requests: Vec<String>,
    connections: usize,
    most_connections: usize,
    /// More connections are closed, or not heard until there are fewer.
    limit: Option<(usize, bool)>,
    /// Clones of the connections, to cut them, and how often that was done.
    streams: Vec<TcpStream>,
    cuts: usize,
    /// Blocking queries under way, by path.
    blocked: HashMap<String, usize>,
}

impl Registry {
    /// Starts one with so many services, `s0` and so on, of one instance.
    pub(in crate::watch) fn new(services: usize) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let registry = Registry { url, shared: Arc::clone(&shared) };
        for service in 0..services {
            registry.set(&format!("s{service}"), &[element("a", 1)]);
        }
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    if !shared.accept(&stream) {
                        return;
                    }
                    shared.serve(stream);
                    shared.count(-1);
                });
            }
        });
        registry
    }

    /// Registers the instances of a service.
    pub(in crate::watch) fn set(&self, service: &str, elements: &[String]) {
        self.change(|state, index| {
            state.services.insert(service.to_owned(), (index, elements.to_vec()));
            state.names = index;
        });
    }

    /// A check of the service turned: its elements are these now.
    pub(in crate::watch) fn set_health(&self, service: &str, elements: &[String]) {
        self.change(|state, index| {
            state.services.insert(service.to_owned(), (index, elements.to_vec()));
            let check = format!(
                r#"{{"Node":"n","CheckID":"c-{service}","ServiceName":"{service}","ModifyIndex":{index}}}"#
            );
            state.critical.1.retain(|other| !other.contains(&format!("\"{service}\"")));
            state.critical.1.push(check);
            state.critical.0 = index;
        });
    }

    /// Queries about all services get this status from now on; those under way too.
    pub(in crate::watch) fn refuse(&self, status: Option<u16>) {
        self.change(|state, index| {
            state.refuses = status;
            (state.names, state.critical.0) = (index, index);
        });
    }

    /// Closes connections beyond so many, or lets them wait until there are fewer.
    pub(in crate::watch) fn limit(&self, most: usize, is_silent: bool) {
        self.shared.state.lock().unwrap().limit = Some((most, is_silent));
    }

    /// Closes all connections.
    pub(in crate::watch) fn cut_all(&self) {
        let streams = std::mem::take(&mut self.shared.state.lock().unwrap().streams);
        streams.iter().for_each(|stream| drop(stream.shutdown(std::net::Shutdown::Both)));
        self.change(|state, _| state.cuts += 1);
    }

    /// Connections now.
    pub(in crate::watch) fn connections(&self) -> usize {
        self.shared.state.lock().unwrap().connections
    }

    fn change(&self, f: impl FnOnce(&mut State, u64)) {
        let mut state = self.shared.state.lock().unwrap();
        state.index += 1;
        let index = state.index;
        f(&mut state, index);
        self.shared.changed.notify_all();
    }

    /// Requests so far whose path has `text` in it.
    pub(in crate::watch) fn requests(&self, text: &str) -> usize {
        let state = self.shared.state.lock().unwrap();
        state.requests.iter().filter(|path| path.contains(text)).count()
    }

    /// Most connections at a time.
    pub(in crate::watch) fn most_connections(&self) -> usize {
        self.shared.state.lock().unwrap().most_connections
    }

    /// Waits until so many blocking queries with `text` in their path are under way.
    pub(in crate::watch) fn until_blocked(&self, text: &str, count: usize) {
        let deadline = Instant::now() + super::SOON * 4;
        loop {
            let state = self.shared.state.lock().unwrap();
            let blocked: usize =
                state.blocked.iter().filter(|(path, _)| path.contains(text)).map(|(_, n)| n).sum();
            if blocked == count {
                return;
            }
            assert!(Instant::now() < deadline, "{blocked} of {count} {text}: {:?}", state.blocked);
            drop(state);
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Shared {
    /// Takes a connection within the limit.
    fn accept(&self, stream: &TcpStream) -> bool {
        loop {
            let mut state = self.state.lock().unwrap();
            match state.limit {
                Some((most, is_silent)) if state.connections >= most => {
                    drop(state);
                    if !is_silent {
                        return false;
                    }
                    thread::sleep(Duration::from_millis(2));
                }
                _ => {
                    state.streams.push(stream.try_clone().unwrap());
                    drop(state);
                    self.count(1);
                    return true;
                }
            }
        }
    }

    fn count(&self, by: isize) {
        let mut state = self.state.lock().unwrap();
        state.connections = state.connections.wrapping_add_signed(by);
        state.most_connections = state.most_connections.max(state.connections);
    }

    fn serve(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        loop {
            let Some(head) = read_head(&mut stream) else { return };
            let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let (path, query) = target.split_once('?').unwrap_or((&target, ""));
            let (status, index, body) = self.answer(path, query);
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nX-Consul-Index: {index}\
                 \r\nContent-Length: {length}\r\n\r\n{body}"
            );
            if stream.get_mut().write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn answer(&self, path: &str, query: &str) -> (u16, u64, String) {
        let value = |name: &str| query.split('&').find_map(|part| part.strip_prefix(name));
        let index: Option<u64> = value("index=").and_then(|text| text.parse().ok());
        let wait = value("wait=").map_or(Duration::ZERO, super::go_duration);
        let deadline = Instant::now() + wait;
        let mut state = self.state.lock().unwrap();
        state.requests.push(format!("{path}?{query}"));
        let cuts = state.cuts;
        if index.is_some() {
            *state.blocked.entry(path.to_owned()).or_default() += 1;
        }
        loop {
            let (status, now, body) = state.answer(path, query);
            let left = deadline.saturating_duration_since(Instant::now());
            let is_over = left.is_zero() || state.cuts != cuts;
            if index.is_none_or(|index| now > index) || status != 200 || is_over {
                if let (Some(_), Some(count)) = (index, state.blocked.get_mut(path)) {
                    *count -= 1;
                }
                return (status, now, body);
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

impl State {
    fn answer(&self, path: &str, query: &str) -> (u16, u64, String) {
        if let Some(service) = path.strip_prefix("/v1/health/service/") {
            let (index, list) = self.services.get(service).cloned().unwrap_or_default();
            let list = if query.contains("tag=") { String::new() } else { list.join(",") };
            return (200, index.max(1), format!("[{list}]"));
        }
        if let Some(status) = self.refuses {
            return (status, 1, "Permission denied".to_owned());
        }
        match path {
            "/v1/health/state/critical" => {
                (200, self.critical.0.max(1), format!("[{}]", self.critical.1.join(",")))
            }
            "/v1/health/state/warning" => (200, 1, "[]".to_owned()),
            "/v1/catalog/services" => {
                let names: Vec<String> =
                    self.services.keys().map(|name| format!("\"{name}\":[]")).collect();
                (200, self.names.max(1), format!("{{{}}}", names.join(",")))
            }
            _ => (404, 1, String::new()),
        }
    }
}
