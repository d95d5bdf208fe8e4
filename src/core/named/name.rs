//! Which names are asked for.

use wildmatch::WildMatch;

/// Longest name of a service, in bytes.
pub const MAX_NAME: usize = 128;

/// `consul_allow_service`: which services requests may ask for.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// The name must match one of them; none: any name may be.
    patterns: Vec<WildMatch>,
    /// Its instances must have each of these tags, and only those that do get requests.
    pub tags: Vec<String>,
}

/// Why a name is not asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The variable is empty.
    #[error("is empty")]
    Empty,
    /// Over [`MAX_NAME`].
    #[error("is longer than {MAX_NAME} bytes")]
    Long,
    /// Other characters than letters, digits, `-`, `_` and `.`, or one of the last three first.
    #[error("is no name of a service")]
    Characters,
    /// No pattern matches.
    #[error("is not allowed by \"consul_allow_service\"")]
    NotAllowed,
}

impl Allowed {
    /// `patterns` may have `*` for any characters and `?` for one; matched without regard to case.
    pub fn new(patterns: &[String], tags: Vec<String>) -> Allowed {
        let pattern = |text: &String| WildMatch::new(&text.to_ascii_lowercase());
        Allowed { patterns: patterns.iter().map(pattern).collect(), tags }
    }

    /// The name as Consul's lookups see it, in lower case: they don't regard case, so that each
    /// spelling would be a service of its own here.
    ///
    /// # Errors
    ///
    /// It is none, or not allowed.
    pub fn check(&self, raw: &[u8]) -> Result<String, Refusal> {
        if raw.is_empty() {
            return Err(Refusal::Empty);
        }
        if raw.len() > MAX_NAME {
            return Err(Refusal::Long);
        }
        let is_inner = |b: &u8| b.is_ascii_alphanumeric() || b"-_.".contains(b);
        if !raw[0].is_ascii_alphanumeric() || !raw.iter().all(is_inner) {
            return Err(Refusal::Characters);
        }
        let name = String::from_utf8_lossy(raw).to_ascii_lowercase();
        if !self.patterns.is_empty() && !self.patterns.iter().any(|p| p.matches(&name)) {
            return Err(Refusal::NotAllowed);
        }
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services_pass_in_lower_case() {
        let any = Allowed::default();
        for (raw, name) in [("web", "web"), ("Web-2_a.b", "web-2_a.b"), ("9", "9")] {
            assert_eq!(any.check(raw.as_bytes()), Ok(name.to_owned()));
        }
        let longest = "a".repeat(MAX_NAME);
        assert_eq!(any.check(longest.as_bytes()), Ok(longest.clone()));
        assert_eq!(any.check(format!("{longest}a").as_bytes()), Err(Refusal::Long));
    }

    #[test]
    fn hostile_names_are_none() {
        let any = Allowed::default();
        assert_eq!(any.check(b""), Err(Refusal::Empty));
        let hostile: [&[u8]; 14] = [
            b"a/b",
            b"../x",
            b"a?b",
            b"a#b",
            b"a b",
            b"a\0",
            b"a\r\n",
            b"%61",
            b"\xff\xfe",
            b"-a",
            b".",
            b"_x",
            b"a&dc=x",
            "ünï".as_bytes(),
        ];
        for raw in hostile {
            assert_eq!(any.check(raw), Err(Refusal::Characters), "{raw:?}");
        }
    }

    #[test]
    fn patterns_match_the_whole_name() {
        let some = Allowed::new(&["web-*".to_owned(), "API-?".to_owned()], Vec::new());
        for name in ["web-", "web-1", "WEB-x", "api-1"] {
            assert!(some.check(name.as_bytes()).is_ok(), "{name}");
        }
        for name in ["web", "my-web-1", "api-12", "api-"] {
            assert_eq!(some.check(name.as_bytes()), Err(Refusal::NotAllowed), "{name}");
        }
    }
}
