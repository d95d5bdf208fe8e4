//! Makes untrusted text safe to show: whoever may register a service chooses its names and tags.

use std::borrow::Cow;
use std::fmt::Write;
use std::hash::Hash;

use siphasher::sip128::{Hasher128, SipHasher13};

/// The text in one line, printable: control and format characters (line breaks, ANSI escapes,
/// U+2028, changes of direction, …) stand as Rust writes them in a string, `\n` or `\u{202e}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_printable(c) {
            line.push(c);
        } else {
            line.extend(c.escape_debug());
        }
    }
    Cow::Owned(line)
}

/// The standard library exposes this Unicode property only by how it escapes a character.
fn is_printable(c: char) -> bool {
    matches!(c, ' '..='~') || (!c.is_ascii() && c.escape_debug().len() == 1)
}

/// The beginning of a text, not over `max` bytes and never half a character.
pub fn beginning(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Longest quotation, in bytes.
const MAX_QUOTE: usize = 120;

/// The beginning of a text, for a log line that puts it in double quotes: quotes and backslashes
/// are escaped too.
pub fn quote(text: &str) -> String {
    let mut quoted = String::new();
    for c in text.chars() {
        if quoted.len() >= MAX_QUOTE {
            quoted.push('…');
            break;
        }
        quoted.extend(c.escape_debug());
    }
    quoted
}

/// A name that is at most `max` bytes long (at least 64): a longer one is cut, and ends with a
/// digest of the whole, so that different names stay different.
pub fn shortened(mut name: String, max: usize) -> String {
    if name.len() > max {
        let mut h = SipHasher13::new();
        name.hash(&mut h);
        let digest = h.finish128().as_u128();
        // An ellipsis of three bytes, and 32 digits.
        name.truncate(beginning(&name, max - 35).len());
        let _ = write!(name, "…{digest:032x}");
    }
    name
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_not_printable_is_written_out() {
        for (text, shown) in [
            ("a \"b\" 'c' \\ ü 日本 <i>", "a \"b\" 'c' \\ ü 日本 <i>"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{1b}[31mred", "\\u{1b}[31mred"),
            ("\0\u{7f}\u{9b}31m", "\\0\\u{7f}\\u{9b}31m"),
            ("a\u{2028}b\u{2029}", "a\\u{2028}b\\u{2029}"),
            ("\u{202e}cba\u{200f}\u{feff}", "\\u{202e}cba\\u{200f}\\u{feff}"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }

    #[test]
    fn a_quotation_is_short_and_stays_within_its_quotes() {
        assert_eq!(quote("a\" b\\\n"), "a\\\" b\\\\\\n");
        assert_eq!(quote(&"\u{1b}".repeat(9999)), "\\u{1b}".repeat(20) + "…");
        assert_eq!(quote(&"é".repeat(60)), "é".repeat(60));
    }

    #[test]
    fn long_names_are_cut_and_stay_different() {
        assert_eq!(shortened("a".repeat(64), 64), "a".repeat(64));
        let cut = |end: &str| shortened("é".repeat(50_000) + end, 512);
        assert!(cut("1").len() <= 512 && cut("1").starts_with(&"é".repeat(238)), "{}", cut("1"));
        assert_ne!(cut("1"), cut("2"));
        assert_eq!(cut("1"), cut("1"));
        assert_eq!(beginning("aé", 2), "a");
        assert_eq!(beginning("aé", 3), "aé");
    }

    proptest! {
        #[test]
        fn any_text_is_one_line_without_control_characters(text in any::<String>()) {
            let shown = printable(&text);
            prop_assert!(!shown.chars().any(char::is_control));
            prop_assert!(shown.lines().count() <= 1);
        }
    }
}
