//! Which names of services requests may use.

use wildmatch::WildMatch;

use crate::model::MAX_NAME;

/// `consul_allow_service`: which services requests may ask for.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// The name must match one of them; if there is none, any name is allowed.
    patterns: Vec<WildMatch>,
    /// Only instances with each of these tags get requests; a service without any does not exist.
    pub tags: Vec<String>,
}

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The variable is empty.
    #[error("is empty")]
    Empty,
    /// Over [`MAX_NAME`].
    #[error("is longer than {MAX_NAME} bytes")]
    Long,
    /// Other characters than letters, digits, `-`, `_` and `.`, or one of the last three first.
    #[error("is not a valid service name")]
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

    /// The name in lower case: Consul ignores the case of names, so each spelling would be another
    /// service here.
    ///
    /// # Errors
    ///
    /// It is not a name of a service, or not allowed.
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
    fn names_of_services_that_a_pattern_allows_pass_in_lower_case() {
        use Refusal::{Characters, Empty, Long, NotAllowed};
        let any = Allowed::default();
        let some = Allowed::new(&["web-*".to_owned(), "API-?".to_owned()], Vec::new());
        let (longest, longer) = ("a".repeat(MAX_NAME), "a".repeat(MAX_NAME + 1));
        let rows: [(&Allowed, &[u8], Result<&str, Refusal>); 29] = [
            (&any, b"web", Ok("web")),
            (&any, b"Web-2_a.b", Ok("web-2_a.b")),
            (&any, b"9", Ok("9")),
            (&any, longest.as_bytes(), Ok(&longest)),
            (&any, longer.as_bytes(), Err(Long)),
            (&any, b"", Err(Empty)),
            (&any, b"a/b", Err(Characters)),
            (&any, b"../x", Err(Characters)),
            (&any, b"a?b", Err(Characters)),
            (&any, b"a#b", Err(Characters)),
            (&any, b"a b", Err(Characters)),
            (&any, b"a\0", Err(Characters)),
            (&any, b"a\r\n", Err(Characters)),
            (&any, b"%61", Err(Characters)),
            (&any, b"\xff\xfe", Err(Characters)),
            (&any, b"-a", Err(Characters)),
            (&any, b".", Err(Characters)),
            (&any, b"_x", Err(Characters)),
            (&any, b"a&dc=x", Err(Characters)),
            (&any, "ünï".as_bytes(), Err(Characters)),
            // A pattern is for the whole name.
            (&some, b"web-", Ok("web-")),
            (&some, b"web-1", Ok("web-1")),
            (&some, b"WEB-x", Ok("web-x")),
            (&some, b"api-1", Ok("api-1")),
            (&some, b"web", Err(NotAllowed)),
            (&some, b"my-web-1", Err(NotAllowed)),
            (&some, b"api-12", Err(NotAllowed)),
            (&some, b"api-", Err(NotAllowed)),
            (&some, b"web-/", Err(Characters)),
        ];
        for (allowed, raw, expected) in rows {
            let name = String::from_utf8_lossy(raw);
            assert_eq!(allowed.check(raw), expected.map(str::to_owned), "{name}");
        }
    }
}
