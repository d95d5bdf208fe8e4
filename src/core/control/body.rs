//! The body of a request.

use std::time::Duration;

use serde::Deserialize;

use super::Refusal;
use crate::params;
use crate::table::Action;

/// Largest body, in bytes.
pub const MAX_BODY: usize = 16 * 1024;
/// Longest time that something is ordered for.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);
const SHORTEST: Duration = Duration::from_secs(1);

/// What a request to change something says besides its path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// For how long; `None`: until it is lifted.
    pub expires: Option<Duration>,
    weight: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    expires: Option<String>,
    weight: Option<u64>,
}

impl Body {
    /// Reads a body; an empty one says nothing.
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
        // An array would be taken for the members in their order.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(bad("the body must be a JSON object".to_owned()));
        }
        let raw: Raw = serde_json::from_slice(body).map_err(|e| {
            // The text quotes what is unknown, which can be long.
            bad(format!("the body can't be read: {}", crate::text::quote(&e.to_string())))
        })?;
        let expires = raw.expires.map(|text| expires(&text)).transpose()?;
        let weight = raw.weight.map(weight).transpose()?;
        Ok(Body { expires, weight })
    }

    /// That it is too long.
    pub fn too_large() -> Refusal {
        let text = format!("the body is larger than {MAX_BODY} bytes");
        Refusal::new(413, "BodyTooLarge", text)
    }

    /// What is ordered of an instance, by the last part of the path.
    ///
    /// # Errors
    ///
    /// A weight is missing, or given where it says nothing (400).
    pub fn action(&self, name: &str) -> Result<Action, Refusal> {
        let action = match (name, self.weight) {
            ("weight", Some(weight)) => return Ok(Action::Weight(weight)),
            ("weight", None) => {
                return Err(bad("\"weight\" is missing, from 1 to 65535".to_owned()));
            }
            ("drain", _) => Action::Drain,
            ("down", _) => Action::Down,
            _ => Action::Up,
        };
        self.without_weight().map(|()| action)
    }

    /// Sees to it that there is no weight.
    ///
    /// # Errors
    ///
    /// There is one (400).
    pub fn without_weight(&self) -> Result<(), Refusal> {
        match self.weight {
            Some(_) => Err(bad("\"weight\" belongs to …/weight".to_owned())),
            None => Ok(()),
        }
    }

    /// Sees to it that it says nothing.
    ///
    /// # Errors
    ///
    /// It does (400).
    pub fn is_nothing(&self) -> Result<(), Refusal> {
        self.without_weight()?;
        match self.expires {
            Some(_) => Err(bad("\"expires\" means nothing here".to_owned())),
            None => Ok(()),
        }
    }
}

fn expires(text: &str) -> Result<Duration, Refusal> {
    let time = params::time(text).filter(|time| (SHORTEST..=LONGEST).contains(time));
    time.ok_or_else(|| {
        let shown = crate::text::quote(text);
        bad(format!(
            "\"expires\" is a time as \"10m\" or \"1h30m\", from 1s to 1y, not \"{shown}\""
        ))
    })
}

fn weight(number: u64) -> Result<u16, Refusal> {
    let weight = u16::try_from(number).ok().filter(|weight| *weight > 0);
    weight.ok_or_else(|| bad(format!("\"weight\" is from 1 to 65535, not {number}")))
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
        assert_eq!(both.action("weight"), Ok(Action::Weight(65_535)));
        for (name, action) in [("drain", Action::Drain), ("down", Action::Down), ("up", Action::Up)]
        {
            assert_eq!(body(r#"{"expires":"90"}"#).action(name), Ok(action));
            assert_eq!(both.action(name).unwrap_err().status, 400);
        }
        assert!(body("{}").action("weight").unwrap_err().text.contains("missing"));
        assert!(body("{}").is_nothing().is_ok() && both.is_nothing().is_err());
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
            (r#"{"weight":0}"#, "not 0"),
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
