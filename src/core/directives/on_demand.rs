//! Directives of services that requests name.

use std::time::Duration;

use super::words::{Parsed, Words, invalid, number, positive_time, text};

/// `consul_allow_service pattern … [tag=value]…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowService {
    /// A name has to match one of them; `*` and `?` stand for any text and any character.
    pub patterns: Vec<String>,
    /// Tags that the service has to have.
    pub tags: Vec<String>,
}

impl AllowService {
    /// Reads the directive.
    ///
    /// # Errors
    ///
    /// A word is empty, or a parameter other than `tag`.
    pub fn parse(words: &Words<'_>) -> Parsed<AllowService> {
        let mut allow = AllowService::default();
        for word in words.words {
            let parameter = text(word)?;
            match parameter.split_once('=') {
                None if !parameter.is_empty() => allow.patterns.push(parameter.to_owned()),
                Some(("tag", tag)) if !tag.is_empty() => allow.tags.push(tag.to_owned()),
                _ => return Err(invalid(words.name, word)),
            }
        }
        Ok(allow)
    }
}

/// `consul_unknown_service [status=code] [valid=time]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownService {
    /// Status of the response, 400 to 599 but 499.
    pub status: i16,
    /// How long nginx remembers that there is no such service.
    pub valid: Duration,
}

impl Default for UnknownService {
    fn default() -> Self {
        UnknownService { status: 502, valid: Duration::from_secs(1) }
    }
}

impl UnknownService {
    /// Reads the directive.
    ///
    /// # Errors
    ///
    /// A parameter is unknown, or its value out of range.
    pub fn parse(words: &Words<'_>) -> Parsed<UnknownService> {
        let mut unknown = UnknownService::default();
        words.parameters(0, |name, value| {
            let value = value.as_bytes();
            match name {
                "status" => {
                    let code = number(name, value, 400).ok().filter(|n| *n <= 599);
                    // nginx's own, for a client that closed its connection.
                    let code = code.filter(|n| *n != 499).and_then(|n| i16::try_from(n).ok());
                    unknown.status = code.ok_or(Some("a status from 400 to 599"))?;
                }
                "valid" => unknown.valid = positive_time(name, value).map_err(|_| None)?,
                _ => return Err(None),
            }
            Ok(())
        })?;
        Ok(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directives::testing::read;

    #[test]
    fn services_are_allowed_by_patterns_and_tags() {
        let allow = read("consul_allow_service web-* tag=public api", AllowService::parse).unwrap();
        assert_eq!(
            (allow.patterns.join(" "), allow.tags.join(" ")),
            ("web-* api".into(), "public".into())
        );
        for text in ["consul_allow_service tag=", "consul_allow_service name=x"] {
            assert!(read(text, AllowService::parse).is_err(), "{text}");
        }
    }

    #[test]
    fn an_unknown_service_has_an_error_status() {
        let parse = |text: &str| read(text, UnknownService::parse);
        let parsed = parse("consul_unknown_service status=404 valid=5s").unwrap();
        assert_eq!(parsed, UnknownService { status: 404, valid: Duration::from_secs(5) });
        for text in ["status=200", "status=600", "status=499", "valid=0", "colour=red"] {
            assert!(parse(&format!("consul_unknown_service {text}")).is_err(), "{text}");
        }
    }
}
