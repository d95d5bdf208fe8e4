//! Is this answer believable?

use crate::consul::client::Answer;
use crate::consul::health::{Instances, ParseError, parse};

/// Why an answer with status 200 is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Disbelief {
    /// Consul gives an index with every answer; a proxy or another program may not.
    #[error("no valid X-Consul-Index in the answer")]
    NoIndex,
    /// Not `application/json`.
    #[error("the answer is not JSON (Content-Type \"{0}\")")]
    ContentType(String),
    /// The body is no list of instances.
    #[error(transparent)]
    Body(#[from] ParseError),
}

/// The index and the instances of a believable answer. The index is at least 1, as
/// <https://developer.hashicorp.com/consul/api-docs/features/blocking> demands.
///
/// # Errors
///
/// See [`Disbelief`].
pub fn believe(answer: &Answer) -> Result<(u64, Instances), Disbelief> {
    let index = answer.index.ok_or(Disbelief::NoIndex)?.max(1);
    let content_type = answer.content_type.as_deref().unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        let quoted = content_type.chars().take(80).flat_map(char::escape_debug).collect();
        return Err(Disbelief::ContentType(quoted));
    }
    Ok((index, parse(&answer.body)?))
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

    #[test]
    fn believes_json_with_an_index() {
        for content_type in ["application/json", "Application/JSON; charset=utf-8"] {
            assert_eq!(believe(&answer(Some(7), content_type, "[]")).unwrap().0, 7);
        }
    }

    #[test]
    fn the_index_is_at_least_1() {
        assert_eq!(believe(&answer(Some(0), "application/json", "[]")).unwrap().0, 1);
    }

    #[test]
    fn says_what_it_does_not_believe() {
        let error = |answer: Answer| believe(&answer).unwrap_err().to_string();
        let no_index = error(answer(None, "application/json", "[]"));
        assert_eq!(no_index, "no valid X-Consul-Index in the answer");
        let html = error(answer(Some(1), "text/html", "[]"));
        assert_eq!(html, "the answer is not JSON (Content-Type \"text/html\")");
        let none = Answer { content_type: None, ..answer(Some(1), "", "[]") };
        assert_eq!(error(none), "the answer is not JSON (Content-Type \"\")");
        let object = error(answer(Some(1), "application/json", "{}"));
        assert!(object.starts_with("the answer is not a list of instances"), "{object}");
    }
}
