//! Is this answer believable?

use std::time::Duration;

use crate::consul::client::{Answer, Error};
use crate::consul::instances::{Instances, ParseError, Want};
use crate::consul::{catalog, health, kv};
use crate::model::{Query, Reason, Source};
use crate::text::quote;

/// Consul's indices count writes; one in the upper half of the range is somebody's mistake, and
/// blocking on it would hide every change.
const MAX_INDEX: u64 = i64::MAX as u64;

/// Why an answer with status 200 is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Disbelief {
    /// Consul gives an index with every answer; a proxy or another program may not.
    #[error("no valid X-Consul-Index in the answer")]
    NoIndex,
    /// Above 2^63.
    #[error("senseless X-Consul-Index {0} in the answer")]
    Index(u64),
    /// Not `application/json`.
    #[error("the answer is not JSON (Content-Type \"{0}\")")]
    ContentType(String),
    /// A server without a leader answers a stale query from what it has.
    #[error("the Consul that answered knows no leader (X-Consul-KnownLeader: false)")]
    NoLeader,
    /// Age of the data, and the bound.
    #[error("the answer is {}ms old, consul_max_stale is {}ms", .0.as_millis(), .1.as_millis())]
    Stale(Duration, Duration),
    /// Instances are left out that the token has no right to see.
    #[error("the token may not see all instances (X-Consul-Results-Filtered-By-ACLs: true)")]
    Filtered,
    /// The body is no list of instances.
    #[error(transparent)]
    Body(#[from] ParseError),
}

impl Disbelief {
    /// Under which reason it is counted.
    pub fn reason(&self) -> Reason {
        match self {
            Disbelief::NoIndex | Disbelief::Index(_) => Reason::Index,
            Disbelief::ContentType(_) => Reason::ContentType,
            Disbelief::NoLeader => Reason::NoLeader,
            Disbelief::Stale(..) => Reason::Stale,
            Disbelief::Filtered => Reason::Filtered,
            Disbelief::Body(_) => Reason::Json,
        }
    }
}

/// Under which reason an error is counted; `None` for those that say nothing of Consul.
pub fn reason_of(error: &Error) -> Option<Reason> {
    Some(match error {
        Error::Reconnected | Error::Stopped => return None,
        Error::Connect(_) => Reason::Connect,
        Error::Status { .. } => Reason::Status,
        Error::TooLong(_) => Reason::TooLarge,
        Error::Silent(_) | Error::Slow(_) => Reason::Timeout,
        Error::Closed => Reason::Closed,
        Error::BrokeOff(_) => Reason::Truncated,
        Error::Reset(_) | Error::Other(_) => Reason::Protocol,
    })
}

/// The index and the instances of a believable answer. The index is at least 1, as
/// <https://developer.hashicorp.com/consul/api-docs/features/blocking> demands.
///
/// # Errors
///
/// See [`Disbelief`].
pub fn believe(
    answer: &Answer,
    query: &Query,
    max_stale: Option<Duration>,
) -> Result<(u64, Instances), Disbelief> {
    // A prepared query never blocks, so its index means nothing.
    let index = answer.index.or((query.source == Source::Query).then_some(1));
    let index = vet(answer, index, max_stale)?;
    if answer.filtered {
        return Err(Disbelief::Filtered);
    }
    Ok((index, parse(&answer.body, query)?))
}

/// The index of an answer whose head is believable.
///
/// A header that is absent says nothing, and neither do those of a streamed answer (see
/// [`Answer`]). Data that is older than `max_stale` is refused, whether a follower (`LastContact`)
/// or the agent's cache (`Age`) says so.
///
/// # Errors
///
/// See [`Disbelief`].
pub fn vet(
    answer: &Answer,
    index: Option<u64>,
    max_stale: Option<Duration>,
) -> Result<u64, Disbelief> {
    let index = index.ok_or(Disbelief::NoIndex)?.max(1);
    if index > MAX_INDEX {
        return Err(Disbelief::Index(index));
    }
    let content_type = answer.content_type.as_deref().unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(Disbelief::ContentType(quote(content_type)));
    }
    if answer.known_leader == Some(false) {
        return Err(Disbelief::NoLeader);
    }
    let age = answer.last_contact.max(answer.age);
    if let (Some(age), Some(bound)) = (age, max_stale) {
        if age > bound {
            return Err(Disbelief::Stale(age, bound));
        }
    }
    Ok(index)
}

fn parse(body: &[u8], query: &Query) -> Result<Instances, ParseError> {
    let want = Want { tag: query.address.as_deref(), meta: Some(&query.meta) };
    match query.source {
        Source::Health => health::parse(body, want),
        Source::Catalog => catalog::parse(body, want),
        Source::Kv => kv::parse(body, &query.service),
        Source::Query => health::parse_executed(body, want),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(index: Option<u64>, content_type: &str, body: &str) -> Answer {
        Answer {
            index,
            content_type: Some(content_type.to_owned()),
            body: body.as_bytes().to_vec(),
            ..Answer::default()
        }
    }

    fn good() -> Answer {
        answer(Some(7), "application/json", "[]")
    }

    fn refused(answer: &Answer) -> (Reason, String) {
        let bound = Some(Duration::from_secs(5));
        let disbelief = believe(answer, &Query::default(), bound).unwrap_err();
        (disbelief.reason(), disbelief.to_string())
    }

    #[test]
    fn believes_json_with_an_index() {
        for content_type in ["application/json", "Application/JSON; charset=utf-8"] {
            assert_eq!(
                believe(&answer(Some(7), content_type, "[]"), &Query::default(), None).unwrap().0,
                7
            );
        }
    }

    #[test]
    fn the_index_is_at_least_1_and_within_reason() {
        assert_eq!(
            believe(&Answer { index: Some(0), ..good() }, &Query::default(), None).unwrap().0,
            1
        );
        let most = i64::MAX as u64;
        assert_eq!(
            believe(&Answer { index: Some(most), ..good() }, &Query::default(), None).unwrap().0,
            most
        );
        assert_eq!(refused(&Answer { index: Some(most + 1), ..good() }).0, Reason::Index);
    }

    #[test]
    fn says_what_it_does_not_believe() {
        let (reason, text) = refused(&Answer { index: None, ..good() });
        assert_eq!((reason, &*text), (Reason::Index, "no valid X-Consul-Index in the answer"));
        let (reason, text) = refused(&answer(Some(1), "text/html", "[]"));
        assert_eq!(text, "the answer is not JSON (Content-Type \"text/html\")");
        assert_eq!(reason, Reason::ContentType);
        let none = Answer { content_type: None, ..good() };
        assert_eq!(refused(&none).1, "the answer is not JSON (Content-Type \"\")");
        for body in ["{}", "[", "", "[{}", "null"] {
            let (reason, text) = refused(&answer(Some(1), "application/json", body));
            assert!(text.starts_with("the answer is not a list of instances"), "{text}");
            assert_eq!(reason, Reason::Json);
        }
    }

    #[test]
    fn an_answer_without_a_leader_or_with_instances_left_out_is_refused() {
        let led = Answer { known_leader: Some(true), ..good() };
        assert!(believe(&led, &Query::default(), None).is_ok());
        assert_eq!(refused(&Answer { known_leader: Some(false), ..good() }).0, Reason::NoLeader);
        assert_eq!(refused(&Answer { filtered: true, ..good() }).0, Reason::Filtered);
    }

    #[test]
    fn the_age_of_a_followers_or_a_caches_data_is_bounded() {
        let of = |contact: Option<u64>, age: Option<u64>| Answer {
            last_contact: contact.map(Duration::from_millis),
            age: age.map(Duration::from_secs),
            ..good()
        };
        let bound = Some(Duration::from_secs(5));
        for fresh in [of(None, None), of(Some(5000), None), of(Some(0), Some(5))] {
            assert!(believe(&fresh, &Query::default(), bound).is_ok(), "{fresh:?}");
        }
        for stale in [of(Some(5001), None), of(Some(0), Some(6)), of(None, Some(6))] {
            assert_eq!(refused(&stale).0, Reason::Stale, "{stale:?}");
            assert!(believe(&stale, &Query::default(), None).is_ok(), "off");
        }
        let text = refused(&of(Some(5001), None)).1;
        assert_eq!(text, "the answer is 5001ms old, consul_max_stale is 5000ms");
    }

    #[test]
    fn every_reason_has_a_word_of_its_own_and_a_counter() {
        let words: std::collections::HashSet<_> = Reason::ALL.iter().map(|r| r.word()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        for (place, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, place);
        }
    }
}
