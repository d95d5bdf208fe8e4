//! One HTTP request to a server of an endpoint, with deadlines, token and TLS.

use std::io::Read;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use ureq::{Agent, Body, Timeout};

pub use answer::Answer;
pub use rights::TokenState;
use rights::token_rights;

use crate::consul::blocking::Fetch;
use crate::consul::endpoint::Endpoint;
use crate::consul::query::{self, View};
use crate::consul::server::Server;
use crate::consul::token::CurrentToken;
use crate::consul::transport::{ConnectError, Dial, DialConnector, LastDial, NoResolver, is_reset};
use crate::model::{Query, Source};
use crate::stop::Stop;
use crate::text;

/// Time for Consul's own doings beyond `wait`: it holds a request for 7 s when it has no leader.
const SLACK: Duration = Duration::from_secs(10);
/// Time to hand a request to the kernel.
const SEND: Duration = Duration::from_secs(10);
/// Time from the header to the end of the body.
const BODY: Duration = Duration::from_secs(30);
/// Connections from one loopback address: two engines' and some others' are within the 200 that
/// Consul allows by default.
const PER_ADDRESS: usize = 80;
/// Time after connecting in which a close or reset is a refusal.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How much of an error's body is read, and quoted, in bytes.
const MAX_ERROR_BODY: u64 = 4096;
const MAX_ERROR_QUOTE: usize = 200;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Whom.
    pub endpoint: &'a Arc<Endpoint>,
    /// What.
    pub query: &'a Query,
    /// How much of it.
    pub view: View,
    /// Of which of the endpoint's servers, and whether it blocks.
    pub fetch: Fetch,
    /// Asks over a connection of its own, and gives up waiting for the header, and then for the
    /// body, after this time. If it is answered, that connection is the one in use; else the other
    /// one stays.
    pub patience: Option<Duration>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection that gave the index is gone, so nothing was sent: ask again without index.
    #[error("the connection was closed")]
    Reconnected,
    /// The engine ends.
    #[error("stopped")]
    Stopped,
    /// No connection.
    #[error("{0}")]
    Connect(String),
    /// Another status than 200, with the first line of the body.
    #[error("HTTP {status}{}{message}", if .message.is_empty() { "" } else { ": " })]
    Status {
        /// HTTP status.
        status: u16,
        /// Printable and short.
        message: String,
    },
    /// Longer than [`Endpoint::max_body`].
    #[error("answer is longer than {0} bytes (consul_max_body_size)")]
    TooLong(u64),
    /// The server keeps silent.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// The body does not come to its end.
    #[error("answer is not complete within {0:?}")]
    Slow(Duration),
    /// Closed before the first byte; agents do so to the connection that exceeds
    /// `limits.http_max_conns_per_client`.
    #[error("connection closed without an answer")]
    Closed,
    /// The body ended early.
    #[error("answer broke off ({0})")]
    BrokeOff(String),
    /// Reset.
    #[error("{0}")]
    Reset(String),
    /// Not HTTP.
    #[error("{0}")]
    Other(String),
}

/// What an error says of the number of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A new connection was refused: HTTP 429, or closed or reset within a second.
    Refused(String),
    /// A blocking query was cut off.
    Lost,
    /// A kept connection was closed meanwhile, or nobody listens there.
    Gone,
}

/// Asks servers, over one connection. For one thread.
#[derive(Debug)]
pub struct Client {
    stop: Arc<Stop>,
    line: Option<Line>,
    /// Where connections to an agent on this machine come from.
    source: Option<Ipv4Addr>,
    trouble: Option<(Server, Trouble)>,
}

/// The server in use.
#[derive(Debug)]
struct Line {
    endpoint: Arc<Endpoint>,
    server: usize,
    dial: Arc<Dial>,
    agent: Agent,
    token: CurrentToken,
}

impl Client {
    /// Requests are aborted when `stop` is raised.
    pub fn new(stop: Arc<Stop>) -> Self {
        Client { stop, line: None, source: None, trouble: None }
    }

    /// One of many: Consul bounds the connections from one address, but this machine has more of
    /// them where the agent is on 127.0.0.0/8. Numbers should begin at 0 and be used again.
    pub fn numbered(stop: Arc<Stop>, number: usize) -> Self {
        let address = u8::try_from(1 + number / PER_ADDRESS).ok().filter(|n| (2..255).contains(n));
        Client { source: address.map(|n| Ipv4Addr::new(127, 0, 0, n)), ..Client::new(stop) }
    }

    /// Asks and reads the whole answer.
    ///
    /// Asking another server or endpoint than the last time closes the connection.
    ///
    /// # Errors
    ///
    /// See [`Error`]. After an error other than [`Error::Status`] the connection is closed.
    pub fn get(&mut self, request: Request<'_>) -> Result<Answer, Error> {
        let Request { endpoint, fetch, patience, .. } = request;
        let line = match patience {
            None => self.take_line(endpoint, fetch.server),
            Some(_) => Line::new(endpoint, fetch.server, self.source, &self.stop),
        };
        let mut trouble = None;
        let answer = self.over(line, |line| {
            let answer = line.get(request);
            trouble = answer.as_ref().err().and_then(|error| line.trouble(error, fetch));
            answer
        });
        self.trouble = self.trouble.take().or(trouble);
        answer
    }

    /// What the errors since the last time say of the number of connections.
    pub fn take_trouble(&mut self) -> Option<(Server, Trouble)> {
        self.trouble.take()
    }

    /// Asks a server what it knows of the token.
    ///
    /// # Errors
    ///
    /// See [`Error`]; [`Error::Status`] with 403 or 404 if the token is not known.
    pub fn token_state(
        &mut self,
        endpoint: &Arc<Endpoint>,
        server: usize,
        query: &Query,
    ) -> Result<TokenState, Error> {
        let line = self.take_line(endpoint, server);
        let answer = self.over(line, |line| {
            line.dial.allowed.store(true, Ordering::Relaxed);
            line.fetch(&query::token_self(query), false, SLACK, BODY)
        });
        match answer {
            Ok(answer) if answer.default_allow => Ok(TokenState::Rightful),
            Ok(answer) => token_rights(&answer.body),
            // "ACL support disabled"
            Err(Error::Status { status: 401, .. }) => Ok(TokenState::Disabled),
            Err(error) => Err(error),
        }
    }

    /// Closes the connection.
    pub fn close(&mut self) {
        self.line = None;
    }

    fn take_line(&mut self, endpoint: &Arc<Endpoint>, server: usize) -> Line {
        let same = |line: &Line| Arc::ptr_eq(&line.endpoint, endpoint) && line.server == server;
        let line = self.line.take().filter(same);
        line.unwrap_or_else(|| Line::new(endpoint, server, self.source, &self.stop))
    }

    /// Asks over a line, which is the one in use from here on, unless an error closes it. One that
    /// refuses takes no other's place.
    fn over(
        &mut self,
        mut line: Line,
        ask: impl FnOnce(&mut Line) -> Result<Answer, Error>,
    ) -> Result<Answer, Error> {
        if self.stop.is_raised() {
            return Err(Error::Stopped);
        }
        let answer = ask(&mut line);
        // An aborted read can look like the end of a body.
        if self.stop.is_raised() {
            return Err(Error::Stopped);
        }
        let refuses = matches!(answer, Err(Error::Status { .. }));
        if answer.is_ok() || (refuses && self.line.is_none()) {
            self.line = Some(line);
        }
        answer
    }
}

impl Line {
    fn new(
        endpoint: &Arc<Endpoint>,
        server: usize,
        source: Option<Ipv4Addr>,
        stop: &Arc<Stop>,
    ) -> Self {
        let dial = Arc::new(Dial {
            server: endpoint.servers[server].clone(),
            tls: endpoint.tls.clone(),
            timeout: endpoint.connect_timeout,
            source,
            stop: Arc::clone(stop),
            allowed: AtomicBool::new(true),
            last: Mutex::default(),
        });
        let config = Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(1)
            .max_idle_connections_per_host(1)
            // Consul closes no idle connection.
            .max_idle_age(Duration::from_secs(24 * 3600))
            .max_response_header_size(12 * 1024)
            .user_agent(concat!("nginx-consul/", env!("CARGO_PKG_VERSION")))
            .accept("application/json")
            .accept_encoding("")
            .timeout_send_request(Some(SEND))
            .build();
        let agent = Agent::with_parts(config, DialConnector(Arc::clone(&dial)), NoResolver);
        Line {
            endpoint: Arc::clone(endpoint),
            server,
            dial,
            agent,
            token: CurrentToken::new(endpoint.token.clone()),
        }
    }

    fn get(&mut self, request: Request<'_>) -> Result<Answer, Error> {
        let Request { query, view, fetch, patience, .. } = request;
        let path = query::path(query, view, fetch);
        let mut deadline = read_deadline(fetch.index.map(|_| fetch.wait));
        if let Some(patience) = patience {
            deadline = deadline.min(patience);
        }
        self.dial.allowed.store(fetch.index.is_none(), Ordering::Relaxed);
        self.fetch(&path, query.source == Source::Kv, deadline, patience.unwrap_or(BODY))
    }

    /// What an error says of the number of connections.
    fn trouble(&self, error: &Error, fetch: Fetch) -> Option<(Server, Trouble)> {
        let LastDial { at, was_cut } = *self.dial.last.lock();
        let is_new = at.is_some_and(|at| at.elapsed() < AT_ONCE);
        // Whoever blocks has been answered over this connection before.
        let blocks = fetch.index.is_some();
        let trouble = match error {
            Error::Closed | Error::Reset(_) | Error::BrokeOff(_) if blocks => Trouble::Lost,
            Error::Status { status: 429, .. } | Error::Closed | Error::Reset(_) if is_new => {
                Trouble::Refused(error.to_string())
            }
            Error::Connect(text) if was_cut => Trouble::Refused(text.clone()),
            Error::Connect(_) | Error::Reconnected => Trouble::Gone,
            _ => return None,
        };
        Some((self.dial.server.clone(), trouble))
    }

    /// `missing`: what is not there (404) is an empty list, as Consul has it for keys alone.
    fn fetch(
        &mut self,
        path: &str,
        missing: bool,
        deadline: Duration,
        body: Duration,
    ) -> Result<Answer, Error> {
        let mut call = self.agent.get(format!("{}{path}", self.dial.server.base()));
        if let Some(token) = self.token.get() {
            call = call.header("X-Consul-Token", token.expose());
        }
        let call = call
            .config()
            .timeout_recv_response(Some(deadline))
            .timeout_recv_body(Some(body))
            .build();
        let response = call.call().map_err(|error| failure(error, deadline))?;
        let (head, content) = response.into_parts();
        let is_missing = missing && head.status == 404;
        if head.status != 200 && !is_missing {
            let status = head.status.as_u16();
            return Err(Error::Status { status, message: first_line(content) });
        }
        let mut answer = Answer::of_head(&head.headers);
        if is_missing {
            answer.content_type = Some("application/json".to_owned());
        }
        answer.body = match self.read(content, body)? {
            _ if is_missing => b"[]".to_vec(),
            body => body,
        };
        Ok(answer)
    }

    fn read(&self, body: Body, timeout: Duration) -> Result<Vec<u8>, Error> {
        let limit = self.endpoint.max_body;
        if body.content_length().is_some_and(|announced| announced > limit) {
            return Err(Error::TooLong(limit));
        }
        let read = body.into_with_config().limit(limit).read_to_vec();
        read.map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(_) => Error::TooLong(limit),
            ureq::Error::Timeout(_) => Error::Slow(timeout),
            error => Error::BrokeOff(plain(&error)),
        })
    }
}

/// Consul adds up to a sixteenth to `wait`.
fn read_deadline(wait: Option<Duration>) -> Duration {
    wait.map_or(Duration::ZERO, |wait| wait + wait / 16) + SLACK
}

fn failure(error: ureq::Error, deadline: Duration) -> Error {
    match error {
        ureq::Error::Other(cause) => match cause.downcast_ref::<ConnectError>() {
            Some(ConnectError::NotAllowed) => Error::Reconnected,
            // A certificate's names are its own choice.
            _ => Error::Connect(text::printable(&cause.to_string()).into_owned()),
        },
        ureq::Error::Timeout(Timeout::SendRequest) => Error::Silent(SEND),
        ureq::Error::Timeout(_) => Error::Silent(deadline),
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Error::Closed
        }
        ureq::Error::Io(ref io) if is_reset(io) => Error::Reset(plain(&error)),
        error => Error::Other(plain(&error)),
    }
}

/// ureq's text without its "io: ".
fn plain(error: &ureq::Error) -> String {
    let text = error.to_string();
    printable(text.strip_prefix("io: ").unwrap_or(&text))
}

fn first_line(body: Body) -> String {
    let mut bytes = Vec::new();
    // Whatever was read before an error is as good as the rest.
    let _ = body.into_reader().take(MAX_ERROR_BODY).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    printable(text.lines().next().unwrap_or_default().trim())
}

/// One short line.
fn printable(text: &str) -> String {
    text::printable(text::beginning(text, MAX_ERROR_QUOTE)).into_owned()
}

mod answer;
mod rights;
#[cfg(test)]
mod tests;
