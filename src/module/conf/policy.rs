//! Values of the directives that say what may take instances away.

use std::time::Duration;

use nginx_consul_core::address::{self, IpNet};
use nginx_consul_core::sync::{Confirm, OnEmpty};

use super::args::{self, Parsed, invalid, text};

/// More would only delay; it is a confirmation, not a poll.
const MAX_READS: u32 = 100;
const MAX_OVER: Duration = Duration::from_secs(600);

/// `consul_empty keep | confirm=N [for=time] | drop`.
pub(super) fn on_empty(directive: &str, words: &[&[u8]]) -> Parsed<OnEmpty> {
    let first = text(words[1])?;
    let over = words.get(2);
    match (first, first.strip_prefix("confirm="), over) {
        ("keep", _, None) => Ok(OnEmpty::Keep),
        ("drop", _, None) => Ok(OnEmpty::Drop),
        (_, Some(number), over) => confirm(directive, (words[1], number), over.copied()),
        ("keep" | "drop", None, Some(word)) => Err(invalid(directive, word)),
        _ => Err(format!(
            "{}, it must be \"keep\", \"confirm=number\" or \"drop\"",
            invalid(directive, words[1])
        )),
    }
}

fn confirm(directive: &str, (word, number): (&[u8], &str), over: Option<&[u8]>) -> Parsed<OnEmpty> {
    let reads = args::number(directive, number.as_bytes(), 1).ok().filter(|n| *n <= MAX_READS);
    let reads = reads
        .ok_or_else(|| format!("{}, the number must be from 1 to 100", invalid(directive, word)))?;
    let over = match over {
        None => Confirm::default().over / Confirm::default().reads * reads,
        Some(word) => {
            let time = word.strip_prefix(b"for=").ok_or_else(|| invalid(directive, word))?;
            let time = args::time(directive, time).ok().filter(|t| *t <= MAX_OVER);
            time.ok_or_else(|| format!("{}, it must be at most 10m", invalid(directive, word)))?
        }
    };
    Ok(OnEmpty::Confirm(Confirm { reads, over }))
}

/// `50% | off`, of `consul_max_removal` and `consul_panic`.
pub(super) fn percent(directive: &str, word: &[u8]) -> Parsed<Option<u8>> {
    if word == b"off" {
        return Ok(None);
    }
    let percent = word.strip_suffix(b"%").and_then(|n| args::number(directive, n, 0).ok());
    let percent = percent.and_then(|n| u8::try_from(n).ok()).filter(|n| *n <= 100);
    percent.map(Some).ok_or_else(|| {
        format!("{}, it must be from \"0%\" to \"100%\", or \"off\"", invalid(directive, word))
    })
}

/// `consul_max_stale time | off`.
pub(super) fn max_stale(directive: &str, word: &[u8]) -> Parsed<Option<Duration>> {
    if word == b"off" { Ok(None) } else { args::positive_time(directive, word).map(Some) }
}

/// Addresses and networks of `consul_allow` and `consul_deny`.
pub(super) fn networks(directive: &str, words: &[&[u8]]) -> Parsed<Vec<IpNet>> {
    let net = |word: &&[u8]| {
        address::network(text(word)?).ok_or_else(|| {
            format!(
                "{}, it must be an address or a network in CIDR notation",
                invalid(directive, word)
            )
        })
    };
    words.iter().map(net).collect()
}
