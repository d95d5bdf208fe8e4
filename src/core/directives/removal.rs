//! Directives that say what may take instances away.

use std::time::Duration;

use super::words::{Parsed, Words, invalid, must_be, number, positive_time, text, time};
use crate::address::{IpNet, Network};
use crate::consul::removal::{Confirm, OnEmpty};

/// More would only delay; it is a confirmation, not a poll.
const MAX_READS: u32 = 100;
const MAX_OVER: Duration = Duration::from_secs(600);

/// `consul_empty keep | confirm=N [for=time] | drop`.
///
/// # Errors
///
/// It is none of these; N is not from 1 to 100, or the time is above 10 minutes.
pub fn on_empty(words: &Words<'_>) -> Parsed<OnEmpty> {
    let first = words.first();
    match (words.words, first.strip_prefix(b"confirm=")) {
        ([b"keep"], _) => Ok(OnEmpty::Keep),
        ([b"drop"], _) => Ok(OnEmpty::Drop),
        (all, Some(number)) => confirm(words, number, all.get(1).copied()),
        ([b"keep" | b"drop", word, ..], _) => Err(invalid(words.name, word)),
        (_, None) => Err(must_be(words.name, first, "\"keep\", \"confirm=number\" or \"drop\"")),
    }
}

fn confirm(words: &Words<'_>, reads: &[u8], over: Option<&[u8]>) -> Parsed<OnEmpty> {
    let reads = number(words.name, reads, 1).ok().filter(|n| *n <= MAX_READS);
    let reads =
        reads.ok_or_else(|| must_be(words.name, words.first(), "a number from 1 to 100"))?;
    let over = match over {
        None => Confirm::default().over / Confirm::default().reads * reads,
        Some(word) => {
            let value = word.strip_prefix(b"for=").ok_or_else(|| invalid(words.name, word))?;
            let over = time(words.name, value).ok().filter(|over| *over <= MAX_OVER);
            over.ok_or_else(|| must_be(words.name, word, "at most 10m"))?
        }
    };
    Ok(OnEmpty::Confirm(Confirm { reads, over }))
}

/// `50% | off`, of `consul_max_removal` and `consul_panic`: percent, or `None`.
///
/// # Errors
///
/// It is neither `off` nor from 0 % to 100 %.
pub fn percent(directive: &str, word: &[u8]) -> Parsed<Option<u8>> {
    if word == b"off" {
        return Ok(None);
    }
    let percent = word.strip_suffix(b"%").and_then(|n| number(directive, n, 0).ok());
    let percent = percent.and_then(|n| u8::try_from(n).ok()).filter(|n| *n <= 100);
    let wrong = || must_be(directive, word, "from \"0%\" to \"100%\", or \"off\"");
    percent.map(Some).ok_or_else(wrong)
}

/// `consul_max_stale time | off`.
///
/// # Errors
///
/// It is neither `off` nor a time above zero.
pub fn max_stale(directive: &str, word: &[u8]) -> Parsed<Option<Duration>> {
    if word == b"off" { Ok(None) } else { positive_time(directive, word).map(Some) }
}

/// Addresses and networks of `consul_allow` and `consul_deny`; `warn` gets what nginx's `allow` warns
/// of.
///
/// # Errors
///
/// A word is neither.
pub fn networks(words: &Words<'_>, mut warn: impl FnMut(String)) -> Parsed<Vec<IpNet>> {
    let what = "an address or a network in CIDR notation";
    let network = |word: &&[u8]| {
        let written = text(word)?;
        let Network { net, has_host_bits } =
            written.parse().map_err(|_| must_be(words.name, word, what))?;
        if has_host_bits {
            warn(format!("low address bits of {written} are meaningless"));
        }
        Ok(net)
    };
    words.words.iter().map(network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directives::testing::read;

    #[test]
    fn a_confirmation_takes_a_time_for_each_read_unless_it_is_told_another() {
        let parse = |text: &str| read(text, on_empty);
        let default = Confirm::default();
        for (text, reads, over) in [
            ("consul_empty confirm=1", 1, default.over / default.reads),
            ("consul_empty confirm=100 for=10m", 100, Duration::from_secs(600)),
        ] {
            assert_eq!(parse(text), Ok(OnEmpty::Confirm(Confirm { reads, over })), "{text}");
        }
        assert_eq!(parse("consul_empty keep"), Ok(OnEmpty::Keep));
        assert_eq!(parse("consul_empty drop"), Ok(OnEmpty::Drop));
        for text in [
            "consul_empty confirm=0",
            "consul_empty confirm=101",
            "consul_empty confirm=2 for=11m",
            "consul_empty confirm=2 10s",
            "consul_empty keep for=1s",
            "consul_empty never",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_share_is_a_percentage_or_off() {
        let parse = |word: &str| percent("d", word.as_bytes());
        assert_eq!(
            (parse("off"), parse("0%"), parse("100%")),
            (Ok(None), Ok(Some(0)), Ok(Some(100)))
        );
        for word in ["101%", "50", "-1%", "%", "on"] {
            assert!(parse(word).is_err(), "{word}");
        }
    }

    #[test]
    fn networks_are_addresses_or_cidr() {
        let mut warnings = Vec::new();
        let mut parse = |text: &str| {
            read(text, |words| networks(words, |text| warnings.push(text))).map(|nets| nets.len())
        };
        assert_eq!(parse("consul_allow 10.0.0.0/8 ::1 192.168.0.1"), Ok(3));
        assert!(parse("consul_allow localhost").unwrap_err().contains("it must be an address"));
        assert_eq!(parse("consul_deny 10.0.0.1/8 fd00::/8 10.0.0.0/8"), Ok(3));
        assert_eq!(warnings, ["low address bits of 10.0.0.1/8 are meaningless"]);
    }

    #[test]
    fn staleness_is_a_time_or_off() {
        assert_eq!(max_stale("d", b"off"), Ok(None));
        assert_eq!(max_stale("d", b"5s"), Ok(Some(Duration::from_secs(5))));
        assert!(max_stale("d", b"0").is_err());
    }
}
