//! One question about a watch, and whether its answer is one.

use std::hash::Hash;
use std::time::Duration;

use siphasher::sip128::{Hasher128, SipHasher13};

use super::plan::Subject;
use crate::consul::blocking::{self, Fetch};
use crate::consul::client::{self, Client, Request, TokenState};
use crate::consul::instances::Instances;
use crate::consul::query::{ReadFrom, View, has_tags};
use crate::consul::validate::{Disbelief, believe, reason_of};
use crate::model::{Consistency, Instance, Reason};

/// Why a request has no believable answer.
pub(super) enum Failure {
    /// Nothing was sent.
    Reconnected,
    /// Why, and what the rules of a watch are told.
    Refused(Reason, String),
}

impl Failure {
    /// What the rules of a watch are told.
    pub(super) fn answer(&self) -> blocking::Answer {
        match self {
            Failure::Reconnected => blocking::Answer::Reconnected,
            Failure::Refused(reason, _) if reason.is_answered() => blocking::Answer::Refused,
            Failure::Refused(..) => blocking::Answer::Failed,
        }
    }
}

/// A believable answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) index: u64,
    /// Length of the body in bytes.
    pub(super) bytes: u64,
    pub(super) instances: Instances,
    /// It comes from a copy of the state ([`ReadFrom`]).
    pub(super) is_copy: bool,
}

impl Reply {
    /// Whether Consul knows no instance.
    pub(super) fn is_empty(&self) -> bool {
        self.instances.good.is_empty() && self.instances.skipped.is_empty()
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Failure {
        reason_of(&error).map_or(Failure::Reconnected, |r| Failure::Refused(r, error.to_string()))
    }
}

impl From<Disbelief> for Failure {
    fn from(disbelief: Disbelief) -> Failure {
        Failure::Refused(disbelief.reason(), disbelief.to_string())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Failure {
        Failure::Refused(Reason::Json, format!("the answer is not what was asked for: {error}"))
    }
}

/// Asks and judges; `None` if the engine ends.
///
/// A copy that has nothing at all may have just been made
/// (<https://github.com/hashicorp/consul/issues/21548>): a server is asked in its place.
pub(super) fn ask(
    client: &mut Client,
    subject: &Subject,
    fetch: Fetch,
    view: View,
) -> Result<Option<Reply>, Failure> {
    match ask_as_told(client, subject, fetch, view)? {
        Some(reply) if reply.is_copy && reply.is_empty() && fetch.index.is_none() => {
            let fetch = Fetch { from: fetch.from.max(ReadFrom::Server), ..fetch };
            ask_as_told(client, subject, fetch, view)
        }
        reply => Ok(reply),
    }
}

fn ask_as_told(
    client: &mut Client,
    subject: &Subject,
    fetch: Fetch,
    view: View,
) -> Result<Option<Reply>, Failure> {
    let Some(answer) = send(client, subject, fetch, view)? else { return Ok(None) };
    let (index, instances) = believe(&answer, &subject.query, subject.timing.max_stale)?;
    let is_cached =
        subject.query.consistency == Consistency::Cached && fetch.from == ReadFrom::Anywhere;
    let (bytes, is_copy) = (answer.body.len() as u64, answer.streamed || is_cached);
    Ok(Some(Reply { index, bytes, instances, is_copy }))
}

/// One request; `None` if the engine ends.
pub(super) fn send(
    client: &mut Client,
    subject: &Subject,
    fetch: Fetch,
    view: View,
) -> Result<Option<client::Answer>, Failure> {
    let Subject { query, endpoint, .. } = subject;
    let patience = fetch.probe.then_some(endpoint.connect_timeout);
    match client.get(Request { endpoint, query, view, fetch, patience }) {
        Ok(answer) => Ok(Some(answer)),
        Err(client::Error::Stopped) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads over a new connection, which is the client's from here on, to the first server that can be
/// reached; `patience` is the longest time to the answer.
pub(super) fn read_anew(
    client: &mut Client,
    subject: &Subject,
    patience: Duration,
) -> Result<(), client::Error> {
    let Subject { query, endpoint, .. } = subject;
    let view = if has_tags(query.source) { View::Index } else { View::Full };
    let mut read = Err(client::Error::Stopped);
    for server in 0..endpoint.servers.len() {
        let fetch = Fetch::read(server, Duration::ZERO);
        let request = Request { endpoint, query, view, fetch, patience: Some(patience) };
        read = client.get(request).map(drop);
        if !matches!(read, Err(client::Error::Connect(_))) {
            break;
        }
    }
    read
}

/// Before peers leave that could be hidden from the token: asks whether it is one that could see
/// them. `false` if the engine ends.
///
/// A token without any right is one to suspect only if Consul shows nothing at all (`is_nothing`):
/// it may be that all may read.
pub(super) fn vouch(
    client: &mut Client,
    subject: &Subject,
    server: usize,
    is_nothing: bool,
) -> Result<bool, Failure> {
    if subject.endpoint.token.is_none() {
        return Ok(true);
    }
    let refuse = |why: &str| {
        Err(Failure::Refused(
            Reason::Token,
            format!("instances are gone, and so is the token: {why}"),
        ))
    };
    match client.token_state(&subject.endpoint, server, &subject.query) {
        Ok(TokenState::Powerless) if is_nothing => refuse("it has no policy"),
        Ok(_) => Ok(true),
        Err(client::Error::Stopped) => Ok(false),
        Err(error @ client::Error::Status { status: 403 | 404, .. }) => refuse(&error.to_string()),
        Err(error) => Err(error.into()),
    }
}

/// Digest of an answer. It is sorted already.
pub(super) fn digest(instances: &[Instance]) -> u128 {
    let mut h = SipHasher13::new();
    instances.hash(&mut h);
    h.finish128().as_u128()
}
