//! From one request to a valid answer: sends it, checks the headers, and reads the instances.
//!
//! An answer that changes the set of peers must be valid: Consul's errors carry an index too, a
//! server without a leader answers from old data, and a token may hide instances.

use std::hash::Hash;
use std::time::Duration;

use siphasher::sip128::{Hasher128, SipHasher13};

use super::blocking::FetchResult;
use super::client::{Client, Error, Request, Response, TokenState};
use super::endpoint::WatchedQuery;
use super::instances::{Fields, ParseError, parse_catalog, parse_executed, parse_health};
use super::kv;
use super::query::{Fetch, ReadFrom, View, has_tags};
use crate::model::{Consistency, Instance, Instances, Query, Reason, Source};
use crate::text::quote;

/// Consul's indices count writes. One in the upper half of the range comes from a broken server or
/// proxy, and blocking on it would hide every change.
const MAX_INDEX: u64 = i64::MAX as u64;

/// A valid answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// At least 1, as <https://developer.hashicorp.com/consul/api-docs/features/blocking> demands.
    pub(crate) index: u64,
    /// Length of the body in bytes.
    pub(crate) bytes: u64,
    pub(crate) instances: Instances,
    /// It comes from a copy of the state ([`ReadFrom`]).
    pub(crate) is_copy: bool,
}

impl Answer {
    /// Whether Consul lists no instance at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.instances.good.is_empty() && self.instances.skipped.is_empty()
    }

    /// Digest of the instances, which are sorted already.
    pub(crate) fn digest(&self) -> u128 {
        digest(&self.instances.good)
    }
}

/// Why a request has no valid answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection over which the index came is closed; nothing was sent.
    Reconnected,
    /// The request failed, or its answer was rejected: the reason it is counted under, and the
    /// error.
    Failed(Reason, String),
}

impl Failure {
    /// What it means for the rules of blocking queries.
    pub(crate) fn result(&self) -> FetchResult {
        match self {
            Failure::Reconnected => FetchResult::Reconnected,
            Failure::Failed(reason, _) if reason.is_answered() => FetchResult::Rejected,
            Failure::Failed(..) => FetchResult::Failed,
        }
    }
}

impl Failure {
    /// Of an answer whose text may be quoted.
    pub(crate) fn of_body(failure: impl Into<Failure>, client: &Client) -> Failure {
        match failure.into() {
            Failure::Failed(reason, text) => Failure::Failed(reason, client.redact(&text)),
            other => other,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        error.reason().map_or(Failure::Reconnected, |r| Failure::Failed(r, error.to_string()))
    }
}

impl From<Rejected> for Failure {
    fn from(rejected: Rejected) -> Failure {
        Failure::Failed(rejected.reason(), rejected.to_string())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Failure {
        Failure::Failed(Reason::Json, format!("unexpected JSON in the answer ({error})"))
    }
}

/// Why an answer with status 200 is rejected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Rejected {
    /// Consul sends an index with every answer; a proxy or another program may not.
    #[error("no valid X-Consul-Index in the answer")]
    NoIndex,
    /// Above 2^63.
    #[error("X-Consul-Index {0} in the answer is out of range")]
    Index(u64),
    /// Not `application/json`.
    #[error("the answer is not JSON (Content-Type \"{0}\")")]
    ContentType(String),
    /// A server without a leader answers a stale query from the data that it has.
    #[error("the Consul server has no leader (X-Consul-KnownLeader: false)")]
    NoLeader,
    /// Age of the data, and the limit.
    #[error("the answer is {}ms old, consul_max_stale is {}ms", .0.as_millis(), .1.as_millis())]
    Stale(Duration, Duration),
    /// The token hides instances.
    #[error(
        "the token has no right to read all instances (X-Consul-Results-Filtered-By-ACLs: true)"
    )]
    Filtered,
    /// The body is not a list of instances.
    #[error(transparent)]
    Body(#[from] ParseError),
}

impl Rejected {
    /// Under which reason it is counted.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Rejected::NoIndex | Rejected::Index(_) => Reason::Index,
            Rejected::ContentType(_) => Reason::ContentType,
            Rejected::NoLeader => Reason::NoLeader,
            Rejected::Stale(..) => Reason::Stale,
            Rejected::Filtered => Reason::Filtered,
            Rejected::Body(_) => Reason::Json,
        }
    }
}

/// Sends a request and validates its answer; `None` if the client was stopped.
///
/// A copy that lists nothing at all may have just been made
/// (<https://github.com/hashicorp/consul/issues/21548>): a server is asked instead.
pub(crate) fn fetch(
    client: &mut Client,
    watched: &WatchedQuery,
    fetch: Fetch,
    view: View,
) -> Result<Option<Answer>, Failure> {
    match fetch_from(client, watched, fetch, view)? {
        Some(answer) if answer.is_copy && answer.is_empty() && fetch.index.is_none() => {
            let fetch = Fetch { from: fetch.from.max(ReadFrom::Server), ..fetch };
            fetch_from(client, watched, fetch, view)
        }
        answer => Ok(answer),
    }
}

fn fetch_from(
    client: &mut Client,
    watched: &WatchedQuery,
    fetch: Fetch,
    view: View,
) -> Result<Option<Answer>, Failure> {
    let Some(response) = send(client, watched, fetch, view)? else { return Ok(None) };
    let valid = validate(&response, &watched.query, watched.timing.max_stale);
    let (index, instances) = valid.map_err(|rejected| Failure::of_body(rejected, client))?;
    let is_cached =
        watched.query.consistency == Consistency::Cached && fetch.from == ReadFrom::Anywhere;
    let (bytes, is_copy) = (response.body.len() as u64, response.streamed || is_cached);
    Ok(Some(Answer { index, bytes, instances, is_copy }))
}

/// Sends a request; `None` if the client was stopped.
pub(crate) fn send(
    client: &mut Client,
    watched: &WatchedQuery,
    fetch: Fetch,
    view: View,
) -> Result<Option<Response>, Failure> {
    let WatchedQuery { query, endpoint, .. } = watched;
    let timeout = fetch.probe.then_some(endpoint.connect_timeout);
    match client.get(Request { endpoint, query, view, fetch, timeout }) {
        Ok(response) => Ok(Some(response)),
        Err(Error::Stopped) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sends a small read over a new connection, which replaces the client's, to the first server that
/// can be reached.
pub(crate) fn try_new_connection(
    client: &mut Client,
    watched: &WatchedQuery,
    timeout: Duration,
) -> Result<(), Error> {
    let WatchedQuery { query, endpoint, .. } = watched;
    let view = if has_tags(query.source) { View::Index } else { View::Full };
    let mut read = Err(Error::Stopped);
    for server in 0..endpoint.servers.len() {
        let fetch = Fetch::read(server, Duration::ZERO);
        let request = Request { endpoint, query, view, fetch, timeout: Some(timeout) };
        read = client.get(request).map(drop);
        if !matches!(read, Err(Error::Connect(_))) {
            break;
        }
    }
    read
}

/// Before peers are removed: asks Consul whether the token still has rights, since a token that
/// lost them hides instances. `false` if the client was stopped.
///
/// `is_nothing`: Consul lists no instance at all. Only then is a token without any right suspect:
/// the default policy may allow everybody to read.
pub(crate) fn verify_token(
    client: &mut Client,
    watched: &WatchedQuery,
    server: usize,
    is_nothing: bool,
) -> Result<bool, Failure> {
    if watched.endpoint.token.is_none() {
        return Ok(true);
    }
    let reject = |why: &str| {
        let error =
            format!("Consul lists fewer instances because the token lost its rights ({why})");
        Err(Failure::Failed(Reason::Token, error))
    };
    match client.token_state(&watched.endpoint, server, &watched.query) {
        Ok(TokenState::NoRights) if is_nothing => reject("it has no policy"),
        Ok(_) => Ok(true),
        Err(Error::Stopped) => Ok(false),
        Err(error @ Error::Status { status: 403 | 404, .. }) => reject(&error.to_string()),
        Err(error) => Err(error.into()),
    }
}

/// The index and the instances of a valid answer.
pub(super) fn validate(
    response: &Response,
    query: &Query,
    max_stale: Option<Duration>,
) -> Result<(u64, Instances), Rejected> {
    // A prepared query never blocks, so its index means nothing.
    let index = response.index.or((query.source == Source::Query).then_some(1));
    let index = check_headers(response, index, max_stale)?;
    if response.filtered {
        return Err(Rejected::Filtered);
    }
    Ok((index, parse(&response.body, query)?))
}

/// The index of an answer whose headers are valid.
///
/// A header that is absent says nothing, and neither do those of a streamed answer (see
/// [`Response`]). Data that is older than `max_stale` is rejected, whether a follower
/// (`LastContact`) or the agent's cache (`Age`) says so.
pub(crate) fn check_headers(
    response: &Response,
    index: Option<u64>,
    max_stale: Option<Duration>,
) -> Result<u64, Rejected> {
    let index = index.ok_or(Rejected::NoIndex)?.max(1);
    if index > MAX_INDEX {
        return Err(Rejected::Index(index));
    }
    let content_type = response.content_type.as_deref().unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(Rejected::ContentType(quote(content_type)));
    }
    if response.known_leader == Some(false) {
        return Err(Rejected::NoLeader);
    }
    let age = response.last_contact.max(response.age);
    match (age, max_stale) {
        (Some(age), Some(limit)) if age > limit => Err(Rejected::Stale(age, limit)),
        _ => Ok(index),
    }
}

fn parse(body: &[u8], query: &Query) -> Result<Instances, ParseError> {
    let fields = Fields { address_tag: query.address.as_deref(), meta: Some(&query.meta) };
    match query.source {
        Source::Health => parse_health(body, fields),
        Source::Catalog => parse_catalog(body, fields),
        Source::Kv => kv::parse(body, &query.service),
        Source::Query => parse_executed(body, fields),
    }
}

fn digest(instances: &[Instance]) -> u128 {
    let mut h = SipHasher13::new();
    instances.hash(&mut h);
    h.finish128().as_u128()
}

#[cfg(test)]
mod tests;
