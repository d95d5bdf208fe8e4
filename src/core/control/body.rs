//! The body of a request.

use std::num::NonZeroU16;
use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::response::Refusal;
use crate::model::Action;
use crate::params;
use crate::text::quote;

/// Largest body, in bytes.
pub const MAX_BODY: usize = 16 * 1024;
/// Longest time until an override expires.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);
const SHORTEST: Duration = Duration::from_secs(1);

/// The body of a request that changes something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// Time until the override expires; `None`: it doesn't.
    #[serde(default, deserialize_with = "expires")]
    pub expires: Option<Duration>,
    /// The weight.
    pub weight: Option<NonZeroU16>,
}

impl Body {
    /// Reads a body, which may be empty.
    ///
    /// # Errors
    ///
    /// It is too long (413), or not a JSON object with these members only (400).
    pub fn parse(body: &[u8]) -> Result<Body, Refusal> {
        if body.len() > MAX_BODY {
            return Err(Body::too_large());
        }
        if body.trim_ascii().is_empty() {
            return Ok(Body::default());
        }
        // serde would accept an array of the values.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(bad("the body must be a JSON object".to_owned()));
        }
        // The error quotes unknown members, which can be long.
        serde_json::from_slice(body)
            .map_err(|e| bad(format!("the body can't be read: {}", quote(&e.to_string()))))
    }

    /// The refusal of a body that is too long.
    pub fn too_large() -> Refusal {
        let text = format!("the body is larger than {MAX_BODY} bytes");
        Refusal::new(413, "BodyTooLarge", text)
    }

    /// Checks that the body has what this action needs and nothing more. `None` is an action without
    /// an override, which needs nothing.
    ///
    /// # Errors
    ///
    /// A member is missing or unexpected (400).
    pub fn check(&self, action: Option<Action>) -> Result<(), Refusal> {
        let wrong = match (action, self) {
            (Some(Action::Weight), Body { weight: None, .. }) => {
                "\"weight\" is missing, from 1 to 65535"
            }
            (Some(Action::Weight), _) => return Ok(()),
            (_, Body { weight: Some(_), .. }) => "\"weight\" belongs to …/weight",
            (None, Body { expires: Some(_), .. }) => "\"expires\" means nothing here",
            _ => return Ok(()),
        };
        Err(bad(wrong.to_owned()))
    }
}

fn expires<'d, D: Deserializer<'d>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let time = params::time(&text).filter(|time| (SHORTEST..=LONGEST).contains(time));
    time.map(Some).ok_or_else(|| {
        D::Error::custom(format_args!(
            "\"expires\" is a time as \"10m\" or \"1h30m\", from 1s to 1y, not \"{}\"",
            quote(&text)
        ))
    })
}

fn bad(text: String) -> Refusal {
    Refusal::new(400, "BodyFormatError", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> Body {
        Body::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_body_says_for_how_long_and_which_weight() {
        assert_eq!(body(""), Body::default());
        assert_eq!(body(" {}\n"), Body::default());
        assert_eq!(body(r#"{"expires":null}"#), Body::default());
        let both = body(r#"{"expires":"1h30m","weight":65535}"#);
        assert_eq!(both.expires, Some(Duration::from_secs(5400)));
        assert_eq!(both.weight, NonZeroU16::new(65_535));
    }

    #[test]
    fn each_action_takes_what_it_needs_and_nothing_more() {
        let [none, time, weight] = ["", r#"{"expires":"90"}"#, r#"{"weight":5}"#].map(body);
        for (action, taken) in [
            (Some(Action::Drain), [true, true, false]),
            (Some(Action::Down), [true, true, false]),
            (Some(Action::Up), [true, true, false]),
            (Some(Action::Freeze), [true, true, false]),
            (Some(Action::Weight), [false, false, true]),
            (None, [true, false, false]),
        ] {
            let seen = [none, time, weight].map(|body| body.check(action).is_ok());
            assert_eq!(seen, taken, "{action:?}");
        }
        assert!(none.check(Some(Action::Weight)).unwrap_err().text.contains("missing"));
    }

    #[test]
    fn everything_else_is_refused_with_a_reason() {
        for (text, reason) in [
            ("x", "object"),
            ("[\"10m\",5]", "object"),
            ("{", "EOF"),
            ("{} x", "trailing"),
            (r#"{"wieght":5}"#, "unknown field `wieght`"),
            (r#"{"weight":5,"weight":6}"#, "duplicate"),
            (r#"{"weight":0}"#, "nonzero u16"),
            (r#"{"weight":65536}"#, "65536"),
            (r#"{"weight":-1}"#, "invalid value"),
            (r#"{"weight":"5"}"#, "invalid type"),
            (r#"{"expires":600}"#, "invalid type"),
            (r#"{"expires":"0s"}"#, "\"0s\""),
            (r#"{"expires":"2y"}"#, "\"2y\""),
            (r#"{"expires":"soon"}"#, "\"soon\""),
            (r#"{"expires":""}"#, "10m"),
        ] {
            let refusal = Body::parse(text.as_bytes()).unwrap_err();
            let shown = refusal.text.replace("\\\"", "\"");
            assert!(refusal.status == 400 && shown.contains(reason), "{text}: {refusal:?}");
        }
        assert_eq!(Body::parse(&[b' '; MAX_BODY + 1]).unwrap_err().status, 413);
        let long = format!("{{\"{}\":1}}", "x".repeat(10_000));
        assert!(Body::parse(long.as_bytes()).unwrap_err().text.len() < 300);
    }
}
