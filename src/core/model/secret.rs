//! Text that must not be shown.

use std::borrow::Cow;
use std::fmt;

/// A secret that never shows in a log or a debug print.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Wraps a token.
    pub fn new(value: impl Into<String>) -> Self {
        Secret(value.into())
    }

    /// A text of somebody who knows the token, with `[token]` wherever it stands in it, in upper or
    /// lower case.
    pub fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let (token, folded) = (self.0.to_ascii_lowercase(), text.to_ascii_lowercase());
        if token.is_empty() || !folded.contains(&token) {
            return Cow::Borrowed(text);
        }
        let (mut redacted, mut end) = (String::new(), 0);
        for (start, _) in folded.match_indices(&token) {
            // Folding ASCII letters moves nothing.
            redacted.push_str(&text[end..start]);
            redacted.push_str("[token]");
            end = start + token.len();
        }
        redacted.push_str(&text[end..]);
        Cow::Owned(redacted)
    }

    /// The token itself, for the request header only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_redacted_in_either_case_and_nothing_else_is() {
        let secret = Secret::new("B1a-2");
        for (text, redacted) in [
            ("", ""),
            ("no token ä", "no token ä"),
            ("b1a-2", "[token]"),
            ("äB1A-2b1a-2€B1a-", "ä[token][token]€B1a-"),
        ] {
            assert_eq!(secret.redact(text), redacted, "{text}");
        }
    }
}
