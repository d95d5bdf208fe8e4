//! The words of a directive, in nginx's formats and with nginx's wording of errors.

use std::time::Duration;

use crate::params;

/// A value, or what is wrong with the directive.
pub type Parsed<T = ()> = Result<T, String>;

/// A directive as it stands in the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a> {
    /// The directive's name.
    pub name: &'a str,
    /// The words after the name; nginx has checked how many there are.
    pub words: &'a [&'a [u8]],
}

impl<'a> Words<'a> {
    /// The first word after the name; empty if there is none.
    pub fn first(&self) -> &'a [u8] {
        self.words.first().copied().unwrap_or_default()
    }

    /// Has `set` take each `name=value` from the word of this number on. None but `tag` may stand
    /// twice.
    ///
    /// # Errors
    ///
    /// A word that is no `name=value` or stands twice. `set` fails with what the value has to be,
    /// or with `None` if there is no more to say than that it is invalid.
    pub fn parameters(
        &self,
        from: usize,
        mut set: impl FnMut(&str, &str) -> Result<(), Option<&'static str>>,
    ) -> Parsed {
        let mut seen = Vec::new();
        for word in self.words.get(from..).unwrap_or_default() {
            let (name, value) =
                text(word)?.split_once('=').ok_or_else(|| invalid(self.name, word))?;
            if name != "tag" && seen.contains(&name) {
                return Err(duplicate(&format!("{} {name}", self.name)));
            }
            seen.push(name);
            set(name, value).map_err(|why| match why {
                Some(what) => must_be(self.name, word, what),
                None => invalid(self.name, word),
            })?;
        }
        Ok(())
    }
}

/// A word as text.
///
/// # Errors
///
/// It is not UTF-8.
pub fn text(word: &[u8]) -> Parsed<&str> {
    std::str::from_utf8(word)
        .map_err(|_| format!("invalid UTF-8 in \"{}\"", String::from_utf8_lossy(word)))
}

/// A time as `ngx_parse_time()` reads it.
///
/// # Errors
///
/// It is none.
pub fn time(directive: &str, word: &[u8]) -> Parsed<Duration> {
    params::time(text(word)?).ok_or_else(|| invalid(directive, word))
}

/// A time that is not zero.
///
/// # Errors
///
/// It is none, or zero.
pub fn positive_time(directive: &str, word: &[u8]) -> Parsed<Duration> {
    time(directive, word)
        .and_then(|time| if time.is_zero() { Err(invalid(directive, word)) } else { Ok(time) })
}

/// A size above zero in bytes, as `ngx_parse_size()` reads it: digits, then `k`, `m` or nothing.
///
/// # Errors
///
/// It is none, or does not fit.
pub fn size(directive: &str, word: &[u8]) -> Parsed<usize> {
    let (digits, unit) = match word {
        [digits @ .., b'k' | b'K'] => (digits, 1 << 10),
        [digits @ .., b'm' | b'M'] => (digits, 1 << 20),
        digits => (digits, 1),
    };
    let number = Some(digits).filter(|digits| digits.iter().all(u8::is_ascii_digit));
    let number: Option<usize> = number.and_then(|digits| text(digits).ok()?.parse().ok());
    let size = number.and_then(|number| number.checked_mul(unit));
    // nginx's sizes are signed.
    size.filter(|&size| size > 0 && isize::try_from(size).is_ok())
        .ok_or_else(|| invalid(directive, word))
}

/// A whole number from `min` on.
///
/// # Errors
///
/// It is none, or less.
pub fn number(directive: &str, word: &[u8], min: u32) -> Parsed<u32> {
    let digits = word.iter().all(u8::is_ascii_digit);
    let value = text(word)?.parse().ok().filter(|&n| digits && n >= min);
    value.ok_or_else(|| invalid(directive, word))
}

/// `on` or `off`.
///
/// # Errors
///
/// It is neither.
pub fn flag(directive: &str, word: &[u8]) -> Parsed<bool> {
    match word {
        b"on" => Ok(true),
        b"off" => Ok(false),
        _ => Err(must_be(directive, word, "\"on\" or \"off\"")),
    }
}

/// The error about a value.
pub fn invalid(directive: &str, word: &[u8]) -> String {
    format!("invalid value \"{}\" in \"{directive}\" directive", String::from_utf8_lossy(word))
}

/// The error about a value, with what it has to be.
pub fn must_be(directive: &str, word: &[u8], what: &str) -> String {
    format!("{}, it must be {what}", invalid(directive, word))
}

/// The error about a directive that stands twice, in nginx's words.
pub fn duplicate(directive: &str) -> String {
    format!("\"{directive}\" directive is duplicate")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_nginx_s() {
        for (word, bytes) in [("1", 1), ("8k", 8192), ("2M", 2 << 20), ("010K", 10240)] {
            assert_eq!(size("d", word.as_bytes()), Ok(bytes), "{word}");
        }
        for word in ["", "0", "k", "-1", "+1", "1g", "1.5m", "1kk", "9223372036854775807m"] {
            let error = format!("invalid value \"{word}\" in \"d\" directive");
            assert_eq!(size("d", word.as_bytes()), Err(error));
        }
    }

    #[test]
    fn numbers_have_digits_only_and_a_least() {
        assert_eq!(number("d", b"1", 1), Ok(1));
        for word in ["0", "", "+1", "-1", "1 ", "4294967296"] {
            assert!(number("d", word.as_bytes(), 1).is_err(), "{word}");
        }
    }

    #[test]
    fn a_parameter_stands_once_unless_it_is_a_tag() {
        let read = |words: &[&str]| {
            let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            let mut seen = Vec::new();
            Words { name: "d", words: &words }
                .parameters(1, |name, value| {
                    seen.push(format!("{name}:{value}"));
                    match value {
                        "bad" => Err(None),
                        "short" => Err(Some("longer")),
                        _ => Ok(()),
                    }
                })
                .map(|()| seen.join(" "))
        };
        assert_eq!(read(&["skipped", "a=1", "tag=x", "tag=y=z"]).unwrap(), "a:1 tag:x tag:y=z");
        assert_eq!(read(&["", "a=1", "a=2"]).unwrap_err(), "\"d a\" directive is duplicate");
        assert_eq!(read(&["", "a"]).unwrap_err(), "invalid value \"a\" in \"d\" directive");
        assert_eq!(read(&["", "a=bad"]).unwrap_err(), "invalid value \"a=bad\" in \"d\" directive");
        let short = "invalid value \"a=short\" in \"d\" directive, it must be longer";
        assert_eq!(read(&["", "a=short"]).unwrap_err(), short);
    }

    #[test]
    fn times_are_positive_where_they_have_to_be() {
        assert_eq!(time("d", b"0"), Ok(Duration::ZERO));
        assert_eq!(positive_time("d", b"1m"), Ok(Duration::from_secs(60)));
        assert!(positive_time("d", b"0").is_err() && time("d", b"soon").is_err());
    }
}
