//! One HTTP request to a server of an endpoint, with timeouts, token and TLS.
//!
//! `error`: why there is no response; `response`: what the headers of one say; `acl`: what Consul
//! says about a token.

mod error;
mod response;
mod acl;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::io::Read;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use ureq::{Agent, Body, Timeout};

pub use acl::TokenState;
pub use error::{ConnectionFailure, Error};
pub use response::Response;

use crate::consul::endpoint::Endpoint;
use crate::consul::query::{self, Fetch, View};
use crate::consul::server::Server;
use crate::consul::token::CurrentToken;
use crate::consul::transport::{ConnectError, Dial, DialConnector, LastDial, NoResolver, is_reset};
use crate::model::{Query, Secret, Source};
use crate::stop::Stop;
use crate::text;

/// Longest time to a response beyond `wait`: Consul holds a request for 7 s while it has no leader.
const SLACK: Duration = Duration::from_secs(10);
/// Time to hand a request to the kernel.
const SEND: Duration = Duration::from_secs(10);
/// Time from the header to the end of the body.
const BODY: Duration = Duration::from_secs(30);
/// Connections from one loopback address: those of two watchers (during a reload) and some others
/// stay within the 200 that Consul allows by default.
const PER_ADDRESS: usize = 80;
/// A close or reset within this time after connecting is a refusal.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How much of an error's body is read, and quoted, in bytes.
const MAX_ERROR_BODY: u64 = 4096;
const MAX_ERROR_QUOTE: usize = 200;

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The servers, the token and the settings of connections.
    pub endpoint: &'a Arc<Endpoint>,
    /// What to ask.
    pub query: &'a Query,
    /// Which part of it.
    pub view: View,
    /// Which of the endpoint's servers to ask, and whether to block.
    pub fetch: Fetch,
    /// Sends the request over a new connection, with this timeout for the header and then for the
    /// body. If it is answered, the new connection replaces the one in use; else that one stays.
    pub timeout: Option<Duration>,
}

/// Sends requests, over one connection. For one thread.
#[derive(Debug)]
pub struct Client {
    stop: Arc<Stop>,
    connection: Option<Connection>,
    /// Source address of connections to an agent on this machine.
    source: Option<Ipv4Addr>,
    failure: Option<(Server, ConnectionFailure)>,
}

/// The connection to the server in use.
#[derive(Debug)]
struct Connection {
    endpoint: Arc<Endpoint>,
    server: usize,
    dial: Arc<Dial>,
    agent: Agent,
    token: CurrentToken,
}

impl Client {
    /// Requests are aborted when `stop` is raised.
    pub fn new(stop: Arc<Stop>) -> Self {
        Client { stop, connection: None, source: None, failure: None }
    }

    /// One of many. Consul limits the connections from one address, but this machine has more
    /// addresses if the agent is on 127.0.0.0/8. Numbers should begin at 0 and be reused.
    pub fn numbered(stop: Arc<Stop>, number: usize) -> Self {
        let address = u8::try_from(1 + number / PER_ADDRESS).ok().filter(|n| (2..255).contains(n));
        Client { source: address.map(|n| Ipv4Addr::new(127, 0, 0, n)), ..Client::new(stop) }
    }

    /// Sends a request and reads the whole response.
    ///
    /// A request to another server or endpoint than the last one closes the connection.
    ///
    /// # Errors
    ///
    /// See [`Error`]. After an error other than [`Error::Status`] the connection is closed.
    pub fn get(&mut self, request: Request<'_>) -> Result<Response, Error> {
        let Request { endpoint, fetch, timeout, .. } = request;
        let connection = match timeout {
            None => self.take_connection(endpoint, fetch.server),
            Some(_) => self.connection(endpoint, fetch.server, None),
        };
        self.get_over(connection, request)
    }

    /// As [`Client::get`], over the connection in use whatever the timeout, which holds for a new one
    /// too.
    ///
    /// # Errors
    ///
    /// As of [`Client::get`].
    pub fn get_in_time(&mut self, request: Request<'_>) -> Result<Response, Error> {
        let (endpoint, server) = (request.endpoint, request.fetch.server);
        let used = self.take_used_connection(endpoint, server);
        let new = || self.connection(endpoint, server, request.timeout);
        let connection = used.unwrap_or_else(new);
        self.get_over(connection, request)
    }

    fn get_over(
        &mut self,
        connection: Connection,
        request: Request<'_>,
    ) -> Result<Response, Error> {
        let fetch = request.fetch;
        let mut failure = None;
        let response = self.send_over(connection, |connection| {
            let response = connection.get(request);
            failure = response.as_ref().err().and_then(|error| connection.failure(error, fetch));
            response
        });
        self.failure = self.failure.take().or(failure);
        response
    }

    /// The first [`ConnectionFailure`] since the last call, with its server.
    pub fn take_connection_failure(&mut self) -> Option<(Server, ConnectionFailure)> {
        self.failure.take()
    }

    /// Asks a server for the state of the token.
    ///
    /// # Errors
    ///
    /// See [`Error`]; [`Error::Status`] with 403 or 404 if Consul doesn't know the token.
    pub fn token_state(
        &mut self,
        endpoint: &Arc<Endpoint>,
        server: usize,
        query: &Query,
    ) -> Result<TokenState, Error> {
        let connection = self.take_connection(endpoint, server);
        let response = self.send_over(connection, |connection| {
            connection.dial.may_connect.store(true, Ordering::Relaxed);
            connection.send(&query::token_self(query), false, SLACK, BODY)
        });
        match response {
            Ok(response) if response.default_allow => Ok(TokenState::HasRights),
            Ok(response) => acl::token_state(&response.body),
            // "ACL support disabled"
            Err(Error::Status { status: 401, .. }) => Ok(TokenState::Disabled),
            Err(error) => Err(error),
        }
    }

    /// A text that may quote the last response, without the token.
    pub fn redact(&self, text: &str) -> String {
        let token = self.connection.as_ref().and_then(|connection| connection.token.last());
        token.map_or(Cow::Borrowed(text), |token| token.redact(text)).into_owned()
    }

    /// Closes the connection.
    pub fn close(&mut self) {
        self.connection = None;
    }

    fn take_connection(&mut self, endpoint: &Arc<Endpoint>, server: usize) -> Connection {
        let used = self.take_used_connection(endpoint, server);
        used.unwrap_or_else(|| self.connection(endpoint, server, None))
    }

    fn take_used_connection(
        &mut self,
        endpoint: &Arc<Endpoint>,
        server: usize,
    ) -> Option<Connection> {
        self.connection.take().filter(|connection| {
            Arc::ptr_eq(&connection.endpoint, endpoint) && connection.server == server
        })
    }

    /// A new connection, which is opened within `limit`.
    fn connection(
        &self,
        endpoint: &Arc<Endpoint>,
        server: usize,
        limit: Option<Duration>,
    ) -> Connection {
        let timeout = endpoint.connect_timeout;
        let timeout = limit.map_or(timeout, |limit| timeout.min(limit));
        Connection::new(endpoint, (server, timeout), self.source, &self.stop)
    }

    /// Sends over a connection and keeps it, unless an error closes it. One that refuses does not
    /// replace another.
    fn send_over(
        &mut self,
        mut connection: Connection,
        send: impl FnOnce(&mut Connection) -> Result<Response, Error>,
    ) -> Result<Response, Error> {
        if self.stop.is_raised() {
            return Err(Error::Stopped);
        }
        let response = send(&mut connection);
        // An aborted read can look like the end of a body.
        if self.stop.is_raised() {
            return Err(Error::Stopped);
        }
        let is_refused = matches!(response, Err(Error::Status { .. }));
        if response.is_ok() || (is_refused && self.connection.is_none()) {
            self.connection = Some(connection);
        }
        response
    }
}

impl Connection {
    fn new(
        endpoint: &Arc<Endpoint>,
        (server, timeout): (usize, Duration),
        source: Option<Ipv4Addr>,
        stop: &Arc<Stop>,
    ) -> Self {
        let dial = Arc::new(Dial {
            server: endpoint.servers[server].clone(),
            tls: endpoint.tls.clone(),
            timeout,
            source,
            stop: Arc::clone(stop),
            may_connect: AtomicBool::new(true),
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
        Connection {
            endpoint: Arc::clone(endpoint),
            server,
            dial,
            agent,
            token: CurrentToken::new(endpoint.token.clone()),
        }
    }

    fn get(&mut self, request: Request<'_>) -> Result<Response, Error> {
        let Request { query, view, fetch, timeout, .. } = request;
        let path = query::path(query, view, fetch);
        let header_timeout = header_timeout(fetch.index.map(|_| fetch.wait));
        let header_timeout = timeout.map_or(header_timeout, |limit| header_timeout.min(limit));
        self.dial.may_connect.store(fetch.index.is_none(), Ordering::Relaxed);
        self.send(&path, query.source == Source::Kv, header_timeout, timeout.unwrap_or(BODY))
    }

    /// What an error says about the number of connections.
    fn failure(&self, error: &Error, fetch: Fetch) -> Option<(Server, ConnectionFailure)> {
        let LastDial { at, was_cut } = *self.dial.last.lock();
        let is_new = at.is_some_and(|at| at.elapsed() < AT_ONCE);
        // A request that blocks is not the first one over its connection.
        let blocks = fetch.index.is_some();
        let failure = match error {
            Error::Closed | Error::Reset(_) | Error::BrokeOff(_) if blocks => {
                ConnectionFailure::CutOff
            }
            Error::Status { status: 429, .. } | Error::Closed | Error::Reset(_) if is_new => {
                ConnectionFailure::Refused(error.to_string())
            }
            Error::Connect(text) if was_cut => ConnectionFailure::Refused(text.clone()),
            Error::Connect(_) | Error::Reconnected => ConnectionFailure::Unreachable,
            _ => return None,
        };
        Some((self.dial.server.clone(), failure))
    }

    /// `missing_is_empty`: HTTP 404 is an empty list, which Consul answers for keys only.
    fn send(
        &mut self,
        path: &str,
        missing_is_empty: bool,
        header_timeout: Duration,
        body_timeout: Duration,
    ) -> Result<Response, Error> {
        let mut call = self.agent.get(format!("{}{path}", self.dial.server.base()));
        let texts = Texts(self.token.get().cloned());
        if let Some(token) = &texts.0 {
            call = call.header("X-Consul-Token", token.expose());
        }
        let call = call
            .config()
            .timeout_recv_response(Some(header_timeout))
            .timeout_recv_body(Some(body_timeout))
            .build();
        let received = call.call().map_err(|error| texts.http_error(error, header_timeout))?;
        let (head, content) = received.into_parts();
        let is_missing = missing_is_empty && head.status == 404;
        if head.status != 200 && !is_missing {
            let status = head.status.as_u16();
            return Err(Error::Status { status, message: texts.first_line(content) });
        }
        let mut response = Response::from_headers(&head.headers);
        response.content_type = response.content_type.map(|text| texts.redacted(&text).into());
        if is_missing {
            response.content_type = Some("application/json".to_owned());
        }
        response.body = match self.read(content, body_timeout, &texts)? {
            _ if is_missing => b"[]".to_vec(),
            body => body,
        };
        Ok(response)
    }

    fn read(&self, body: Body, timeout: Duration, texts: &Texts) -> Result<Vec<u8>, Error> {
        let limit = self.endpoint.max_body;
        if body.content_length().is_some_and(|announced| announced > limit) {
            return Err(Error::TooLong(limit));
        }
        let read = body.into_with_config().limit(limit).read_to_vec();
        read.map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(_) => Error::TooLong(limit),
            ureq::Error::Timeout(_) => Error::Slow(timeout),
            error => Error::BrokeOff(texts.plain(&error)),
        })
    }
}

/// Consul adds up to a sixteenth to `wait`.
fn header_timeout(wait: Option<Duration>) -> Duration {
    wait.map_or(Duration::ZERO, |wait| wait + wait / 16) + SLACK
}

/// Makes texts of errors, which may quote the server: it knows the token, and can be any program.
struct Texts(Option<Secret>);

impl Texts {
    fn http_error(&self, error: ureq::Error, timeout: Duration) -> Error {
        match error {
            ureq::Error::Other(cause) => match cause.downcast_ref::<ConnectError>() {
                Some(ConnectError::NotAllowed) => Error::Reconnected,
                // A certificate's names are its own choice.
                _ => {
                    Error::Connect(text::printable(&self.redacted(&cause.to_string())).into_owned())
                }
            },
            ureq::Error::Timeout(Timeout::SendRequest) => Error::Silent(SEND),
            ureq::Error::Timeout(_) => Error::Silent(timeout),
            ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Error::Closed
            }
            ureq::Error::Io(ref io) if is_reset(io) => Error::Reset(self.plain(&error)),
            error => Error::Other(self.plain(&error)),
        }
    }

    /// ureq's text without its "io: ".
    fn plain(&self, error: &ureq::Error) -> String {
        let text = error.to_string();
        self.short(text.strip_prefix("io: ").unwrap_or(&text))
    }

    fn first_line(&self, body: Body) -> String {
        let mut bytes = Vec::new();
        // An error ends the text early, which is fine for a quote.
        let _ = body.into_reader().take(MAX_ERROR_BODY).read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        self.short(text.lines().next().unwrap_or_default().trim())
    }

    /// One short line. It is cut last: half a token would not be found.
    fn short(&self, text: &str) -> String {
        let text = self.redacted(text);
        text::printable(text::beginning(&text, MAX_ERROR_QUOTE)).into_owned()
    }

    fn redacted<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.0.as_ref().map_or(Cow::Borrowed(text), |token| token.redact(text))
    }
}
