//! What is streamed, and what answers look like.

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::Quirks;
use crate::wire::Head;

/// What `wait` is without a value.
const DEFAULT_WAIT: Duration = Duration::from_secs(300);

/// A request, read.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) head: Head,
    pub(super) body: Vec<u8>,
    /// `index=`, unless it is 0.
    pub(super) index: Option<u64>,
    /// How long it may block.
    pub(super) wait: Duration,
    /// Whether a streaming Consul answers it from a view.
    pub(super) streamed: bool,
    pub(super) cached: bool,
}

impl Request {
    pub(super) fn new(head: Head, body: Vec<u8>, streaming: bool) -> Request {
        let value = |name| parameter(head.word(1), name);
        let index = value("index").and_then(|v| v.parse().ok()).filter(|&index| index > 0);
        let wait = value("wait").and_then(go_duration).unwrap_or(DEFAULT_WAIT);
        let cached = value("cached").is_some();
        let streamed = streaming
            && head.word(0) == "GET"
            && head.word(1).starts_with("/v1/health/service/")
            && (index.is_some() || cached)
            && value("near").is_none()
            && value("merge-central-config").is_none();
        Request { head, body, index, wait, streamed, cached }
    }

    /// Path and query.
    pub(super) fn target(&self) -> &str {
        self.head.word(1)
    }

    /// What a streaming Consul makes of the target: it knows no other consistency than its own.
    pub(super) fn forwarded(&self) -> String {
        let ignored: &[&str] = if self.streamed { &["stale", "consistent"] } else { &[] };
        without(self.target(), ignored)
    }

    /// The target of the same without blocking: what names the view.
    pub(super) fn unblocked(&self) -> String {
        without(self.target(), &["stale", "consistent", "index", "wait"])
    }

    pub(super) fn view(&self) -> super::View {
        let token = self.head.header("x-consul-token").unwrap_or_default();
        (self.unblocked(), token.to_owned())
    }
}

fn parameters(target: &str) -> impl Iterator<Item = (&str, &str)> {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    query.split('&').map(|part| part.split_once('=').unwrap_or((part, "")))
}

fn parameter<'a>(target: &'a str, name: &str) -> Option<&'a str> {
    parameters(target).find(|(n, _)| *n == name).map(|(_, value)| value)
}

fn without(target: &str, names: &[&str]) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.to_owned() };
    let name = |part: &str| part.split('=').next().unwrap_or_default().to_owned();
    let kept: Vec<&str> =
        query.split('&').filter(|part| !names.contains(&name(part).as_str())).collect();
    if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) }
}

/// Durations as our module writes them: whole numbers of `s` or `ms`.
fn go_duration(text: &str) -> Option<Duration> {
    let number = |digits: &str| digits.parse().ok();
    match text.strip_suffix("ms") {
        Some(digits) => number(digits).map(Duration::from_millis),
        None => number(text.strip_suffix('s')?).map(Duration::from_secs),
    }
}

/// An answer, read.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) head: Head,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// An error as Consul sends it for what failed before there was an index.
    pub(super) fn error(status: u16, reason: &str, body: &str) -> Answer {
        let mut head = Head { start: format!("HTTP/1.1 {status} {reason}"), headers: Vec::new() };
        set(&mut head, "Content-Type", "text/plain; charset=utf-8");
        Answer { head, body: body.as_bytes().to_owned() }
    }

    pub(super) fn index(&self) -> Option<u64> {
        self.head.header("x-consul-index")?.parse().ok()
    }

    fn is_list(&self) -> bool {
        matches!(self.head.word(1), "200" | "404") && self.index().is_some()
    }

    /// As bytes on the wire; bodies of 2 KiB and more are one chunk, as Go sends them.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{}\r\n", self.head.start).into_bytes();
        for (name, value) in &self.head.headers {
            if !is_framing(name) {
                let _ = write!(bytes, "{name}: {value}\r\n");
            }
        }
        let length = self.body.len();
        if length < 2048 {
            let _ = write!(bytes, "Content-Length: {length}\r\n\r\n");
            bytes.extend_from_slice(&self.body);
        } else {
            let _ = write!(bytes, "Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n");
            bytes.extend_from_slice(&self.body);
            bytes.extend_from_slice(b"\r\n0\r\n\r\n");
        }
        bytes
    }
}

/// Whether a header says where a body ends, which is for each connection to say.
pub(super) fn is_framing(name: &str) -> bool {
    ["content-length", "transfer-encoding"].iter().any(|framing| name.eq_ignore_ascii_case(framing))
}

fn set(head: &mut Head, name: &str, value: &str) {
    head.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
    head.headers.push((name.to_owned(), value.to_owned()));
}

/// Gives an answer of the Consul behind the look of a newer one's.
pub(super) fn dress(answer: &mut Answer, request: &Request, quirks: &Quirks) {
    let is_list = answer.is_list();
    if is_list && quirks.ports && answer.head.word(1) == "200" {
        answer.body = with_ports(&answer.body);
    }
    if is_list && request.streamed && request.cached && quirks.empty_cache {
        answer.body = b"[]".to_vec();
    }
    let head = &mut answer.head;
    set(head, "Vary", "Accept-Encoding");
    set(head, "X-Consul-Default-Acl-Policy", quirks.default_policy);
    if !is_list {
        return;
    }
    if request.streamed {
        set(head, "X-Consul-Effective-Consistency", "leader");
        set(head, "X-Consul-Knownleader", "false");
        set(head, "X-Consul-Lastcontact", "0");
        set(head, "X-Consul-Query-Backend", "streaming");
        if request.cached {
            set(head, "Age", "0");
        }
    } else {
        set(head, "X-Consul-Query-Backend", "blocking-query");
    }
    if quirks.filtered {
        set(head, "X-Consul-Results-Filtered-By-Acls", "true");
    }
    let expired = request.streamed.then(|| answer.index() <= request.index);
    if let (Some(true), true, Some(asked)) = (expired, quirks.lower_index, request.index) {
        set(&mut answer.head, "X-Consul-Index", &(asked - 1).max(1).to_string());
    }
}

/// Instances of 1.22 and later: the ports have names, and `Port` is 0.
fn with_ports(body: &[u8]) -> Vec<u8> {
    let Ok(mut document) = serde_json::from_slice::<Value>(body) else { return body.to_owned() };
    let list = if document.is_array() { &mut document } else { &mut document["Nodes"] };
    for entry in list.as_array_mut().into_iter().flatten() {
        let (object, port, ports) = match entry.get("Service").is_some_and(Value::is_object) {
            true => (&mut entry["Service"], "Port", "Ports"),
            false => (entry, "ServicePort", "ServicePorts"),
        };
        if let Some(number) = object.get(port).filter(|number| **number != 0).cloned() {
            object[ports] = json!([
                { "Name": "admin", "Port": 1, "Default": false },
                { "Name": "http", "Port": number, "Default": true },
            ]);
            object[port] = 0.into();
        }
    }
    document.to_string().into_bytes()
}
