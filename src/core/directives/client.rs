//! Directives about requests to Consul.

use std::fmt::Display;
use std::time::Duration;

use super::words::{Parsed, Words, invalid, must_be, positive_time};
use crate::consul::server::{Server, ServerError, without_credentials};

/// `consul_server url …`.
///
/// # Errors
///
/// A word is no URL with one of the schemes, or a URL that can't be used.
pub fn servers(words: &Words<'_>) -> Parsed<Vec<Server>> {
    const SCHEMES: [&str; 3] = ["http://", "https://", "unix:"];
    let server = |word: &&[u8]| {
        let shown = without_credentials(&String::from_utf8_lossy(word));
        let name = words.name;
        let bad =
            |why: &dyn Display| format!("invalid URL \"{shown}\" in \"{name}\" directive: {why}");
        let url = std::str::from_utf8(word).map_err(|_| bad(&"it is not UTF-8"))?;
        if !SCHEMES.iter().any(|scheme| url.starts_with(scheme)) {
            return Err(bad(&"it must begin with \"http://\", \"https://\" or \"unix:\""));
        }
        url.parse().map_err(|e: ServerError| bad(&e))
    };
    words.words.iter().map(server).collect()
}

/// A time for which a query blocks. Consul caps `wait` at ten minutes
/// (<https://developer.hashicorp.com/consul/api-docs/features/blocking>).
///
/// # Errors
///
/// It is not from 1 second to 10 minutes.
pub fn wait(directive: &str, word: &[u8]) -> Parsed<Duration> {
    let wait = positive_time(directive, word)?;
    let fits = (1..=600).contains(&wait.as_secs());
    if fits { Ok(wait) } else { Err(must_be(directive, word, "from 1s to 10m")) }
}

/// A time between two reads; not more often than a watch may ask in vain.
///
/// # Errors
///
/// It is below 500 milliseconds.
pub fn poll(directive: &str, word: &[u8]) -> Parsed<Duration> {
    let poll = positive_time(directive, word)?;
    let fits = poll >= Duration::from_millis(500);
    if fits { Ok(poll) } else { Err(must_be(directive, word, "at least 500ms")) }
}

/// `consul_retry min max`.
///
/// # Errors
///
/// A word is no time above zero, or the second is less than the first.
pub fn retry(words: &Words<'_>) -> Parsed<(Duration, Duration)> {
    let [min_word, max_word] = *words.words else { return Err(invalid(words.name, words.first())) };
    let (min, max) = (positive_time(words.name, min_word)?, positive_time(words.name, max_word)?);
    if min > max {
        let shown = invalid(words.name, max_word);
        return Err(format!("{shown}, the longest pause is shorter than the shortest"));
    }
    Ok((min, max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directives::testing::read;

    #[test]
    fn a_server_has_a_scheme() {
        assert_eq!(read("consul_server http://a:8500 unix:/s", servers).map(|s| s.len()), Ok(2));
        let error = read("consul_server a:8500", servers).unwrap_err();
        assert!(
            error.starts_with("invalid URL \"a:8500\" in \"consul_server\" directive: it must"),
            "{error}"
        );
    }

    #[test]
    fn times_have_consul_s_limits() {
        let seconds = Duration::from_secs;
        assert_eq!((wait("d", b"1s"), wait("d", b"10m")), (Ok(seconds(1)), Ok(seconds(600))));
        assert!(wait("d", b"900ms").is_err() && wait("d", b"601s").is_err());
        assert_eq!(poll("d", b"500ms"), Ok(Duration::from_millis(500)));
        assert!(poll("d", b"499ms").is_err());
    }

    #[test]
    fn the_longest_pause_is_not_below_the_shortest() {
        let seconds = Duration::from_secs;
        assert_eq!(read("consul_retry 1s 1s", retry), Ok((seconds(1), seconds(1))));
        assert!(read("consul_retry 2s 1s", retry).unwrap_err().ends_with("than the shortest"));
        assert!(read("consul_retry 0 1s", retry).is_err());
    }
}
