//! A scripted Consul, for answers that a real one gives only in rare moments.

use std::collections::HashMap;
use std::io::{self, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::backend::Backend;
use crate::{ports, threads, wire};

/// A request that the fake received.
#[derive(Clone, Debug)]
pub struct Query {
    /// Path and query.
    pub target: String,
    /// Service asked for.
    pub service: String,
    /// `index=`.
    pub index: Option<u64>,
    /// `wait=`; 60 s if it has none.
    pub wait: Duration,
    /// `X-Consul-Token`.
    pub token: Option<String>,
    /// When it came.
    pub at: Instant,
}

/// An answer out of the script.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// `X-Consul-Index`.
    pub index: Option<u64>,
    /// The body.
    pub body: Vec<u8>,
    /// Bytes announced beyond the body's own: the connection is closed before they come.
    pub missing: usize,
    /// Further headers; a `Content-Type` replaces JSON's.
    pub headers: Vec<(&'static str, String)>,
}

impl Answer {
    /// A 200 with index and body.
    pub fn ok(index: u64, body: impl ToString) -> Answer {
        let body = body.to_string().into_bytes();
        Answer { status: 200, index: Some(index), body, missing: 0, headers: Vec::new() }
    }

    /// An error as Consul sends it: those carry index 1.
    pub fn error(status: u16, body: &str) -> Answer {
        Answer { status, index: Some(1), ..Answer::ok(1, body) }
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: &str) -> Answer {
        self.headers.push((name, value.to_owned()));
        self
    }
}

type Script = dyn FnMut(&Query) -> Option<Answer> + Send;

#[derive(Default)]
struct State {
    services: HashMap<String, (u64, Vec<u8>)>,
    script: Option<Box<Script>>,
    hangs: bool,
    /// Queries whose path and query contain one of these are never answered.
    silent: Vec<String>,
    /// Of the list of all services.
    names_index: u64,
    tags: HashMap<String, Value>,
    queries: Vec<Query>,
    open: Vec<TcpStream>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stopping: AtomicBool,
}

/// The fake. It blocks on an unchanged index as Consul does, unless the script answers.
pub struct FakeConsul {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl FakeConsul {
    /// Starts one on a free port of 127.0.0.1, without services.
    ///
    /// # Panics
    /// If the port can't be bound.
    pub fn start() -> FakeConsul {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()));
        let listener = TcpListener::bind(address).expect("the reserved port");
        let shared = Arc::<Shared>::default();
        let accepting = Arc::clone(&shared);
        threads::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(clone) = stream.try_clone() else { continue };
                lock(&accepting.state).open.push(clone);
                let shared = Arc::clone(&accepting);
                // An error is nginx going away, which is the test's doing.
                threads::spawn(move || drop(serve(&shared, stream)));
            }
        });
        FakeConsul { shared, address }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets what it knows of a service, and wakes the queries for it.
    pub fn publish(&self, service: &str, index: u64, instances: &Value) {
        self.publish_text(service, index, instances.to_string());
    }

    /// Makes a backend the only instance of a service, under its own name.
    pub fn publish_one(&self, service: &str, index: u64, backend: &Backend) {
        self.publish(service, index, &json!([instance(backend.name(), backend.address())]));
    }

    /// As [`FakeConsul::publish`], with a body that may be anything.
    pub fn publish_text(&self, service: &str, index: u64, body: String) {
        self.publish_bytes(service, index, body.into_bytes());
    }

    /// As [`FakeConsul::publish_text`], with a body that need not even be text.
    pub fn publish_bytes(&self, service: &str, index: u64, body: Vec<u8>) {
        let mut state = lock(&self.shared.state);
        state.names_index += 1;
        state.services.insert(service.to_owned(), (index, body));
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Sets the tags of a service in the list of all services.
    pub fn tag(&self, service: &str, tags: &[&str]) {
        let mut state = lock(&self.shared.state);
        state.names_index += 1;
        state.tags.insert(service.to_owned(), json!(tags));
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Asks `script` first, from now on; what it answers `None` to goes its usual way.
    pub fn script(&self, script: impl FnMut(&Query) -> Option<Answer> + Send + 'static) {
        lock(&self.shared.state).script = Some(Box::new(script));
        self.shared.changed.notify_all();
    }

    /// Ends the script.
    pub fn unscript(&self) {
        lock(&self.shared.state).script = None;
        self.shared.changed.notify_all();
    }

    /// Queries that block never end by themselves from now on.
    pub fn hang(&self) {
        lock(&self.shared.state).hangs = true;
    }

    /// Accepts queries that contain one of these texts in their path and query, and never answers
    /// them; those of an earlier call are answered now.
    pub fn silence(&self, texts: &[&str]) {
        lock(&self.shared.state).silent = texts.iter().map(|&text| text.to_owned()).collect();
        self.shared.changed.notify_all();
    }

    /// The queries received so far.
    pub fn queries(&self) -> Vec<Query> {
        lock(&self.shared.state).queries.clone()
    }
}

impl Drop for FakeConsul {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        for stream in lock(&self.shared.state).open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.shared.changed.notify_all();
    }
}

/// An instance as `/v1/health/service` lists it.
pub fn instance(id: &str, address: SocketAddr) -> Value {
    json!({
        "Node": { "Node": "fake", "Address": "127.0.0.1", "Meta": null },
        "Service": {
            "ID": id, "Service": "web", "Tags": null, "Address": address.ip().to_string(),
            "Port": address.port(), "Weights": { "Passing": 1, "Warning": 1 },
        },
        "Checks": null,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(shared: &Shared, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(head) = wire::read_head(&mut reader)? {
        let query = parse(&head);
        lock(&shared.state).queries.push(query.clone());
        let Some(answer) = decide(shared, &query) else { return Ok(()) };
        let mut message = format!("HTTP/1.1 {} Said\r\n", answer.status);
        if let Some(index) = answer.index {
            message += &format!("X-Consul-Index: {index}\r\n");
        }
        if !answer.headers.iter().any(|(name, _)| *name == "Content-Type") {
            message += "Content-Type: application/json\r\n";
        }
        for (name, value) in &answer.headers {
            message += &format!("{name}: {value}\r\n");
        }
        message += &format!("Content-Length: {}\r\n\r\n", answer.body.len() + answer.missing);
        let stream = reader.get_mut();
        stream.write_all(message.as_bytes())?;
        stream.write_all(&answer.body)?;
        if answer.missing > 0 {
            return stream.shutdown(Shutdown::Both);
        }
    }
    Ok(())
}

fn parse(head: &wire::Head) -> Query {
    let target = head.word(1).to_owned();
    let (path, parameters) = target.split_once('?').unwrap_or((&target, ""));
    let value = |name| parameters.split('&').find_map(|p| p.strip_prefix(name));
    let number = |text: &str| text.parse().ok();
    let wait = value("wait=").and_then(|wait| match wait.strip_suffix("ms") {
        Some(text) => number(text).map(Duration::from_millis),
        None => number(wait.strip_suffix('s')?).map(Duration::from_secs),
    });
    Query {
        service: path.rsplit('/').next().unwrap_or_default().to_owned(),
        index: value("index=").and_then(number),
        wait: wait.unwrap_or(Duration::from_secs(60)),
        token: head.header("x-consul-token").map(str::to_owned),
        at: Instant::now(),
        target,
    }
}

/// The answer, once there is one; `None` at the end.
fn decide(shared: &Shared, query: &Query) -> Option<Answer> {
    let end = query.at + query.wait;
    let mut state = lock(&shared.state);
    while !shared.stopping.load(Ordering::SeqCst) {
        if state.silent.iter().any(|text| query.target.contains(text)) {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        if let Some(answer) = state.script.as_mut().and_then(|script| script(query)) {
            return Some(answer);
        }
        let (index, body) = match query.target.starts_with("/v1/catalog/services") {
            true => {
                let tags = |name| state.tags.get(name).cloned().unwrap_or_else(|| json!([]));
                let names = state.services.keys().map(|name| (name.clone(), tags(name)));
                (state.names_index + 1, Value::Object(names.collect()).to_string().into_bytes())
            }
            false => {
                let known = state.services.get(&query.service).cloned();
                known.unwrap_or_else(|| (1, b"[]".to_vec()))
            }
        };
        let is_over = Instant::now() >= end && !state.hangs;
        if query.index != Some(index) || is_over {
            return Some(Answer { body, ..Answer::ok(index, "") });
        }
        let left = end.saturating_duration_since(Instant::now());
        let patience = Duration::from_secs(1);
        let patience = if state.hangs { patience } else { patience.min(left) };
        state = shared
            .changed
            .wait_timeout(state, patience)
            .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
    }
    None
}
