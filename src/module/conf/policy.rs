//! Values of the directives that say what may take instances away.

use std::time::Duration;

use nginx_consul_core::address::{self, IpNet};
use nginx_consul_core::watch::{Confirm, OnEmpty};

use super::args::{self, Args, Parsed, invalid, must_be, text};

/// More would only delay; it is a confirmation, not a poll.
const MAX_READS: u32 = 100;
const MAX_OVER: Duration = Duration::from_secs(600);

/// `consul_empty keep | confirm=N [for=time] | drop`.
pub(super) fn on_empty(args: &Args<'_>) -> Parsed<OnEmpty> {
    match (args.words, args.words[0].strip_prefix(b"confirm=")) {
        ([b"keep"], _) => Ok(OnEmpty::Keep),
        ([b"drop"], _) => Ok(OnEmpty::Drop),
        (words, Some(number)) => confirm(args, number, words.get(1).copied()),
        ([b"keep" | b"drop", word, ..], _) => Err(invalid(args.name, word)),
        (words, None) => {
            let what = "\"keep\", \"confirm=number\" or \"drop\"";
            Err(must_be(args.name, words[0], what))
        }
    }
}

fn confirm(args: &Args<'_>, number: &[u8], over: Option<&[u8]>) -> Parsed<OnEmpty> {
    let reads = args::number(args.name, number, 1).ok().filter(|n| *n <= MAX_READS);
    let reads = reads.ok_or_else(|| must_be(args.name, args.words[0], "a number from 1 to 100"))?;
    let over = match over {
        None => Confirm::default().over / Confirm::default().reads * reads,
        Some(word) => {
            let time = word.strip_prefix(b"for=").ok_or_else(|| invalid(args.name, word))?;
            let time = args::time(args.name, time).ok().filter(|t| *t <= MAX_OVER);
            time.ok_or_else(|| must_be(args.name, word, "at most 10m"))?
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
    let wrong = || must_be(directive, word, "from \"0%\" to \"100%\", or \"off\"");
    percent.map(Some).ok_or_else(wrong)
}

/// `consul_max_stale time | off`.
pub(super) fn max_stale(directive: &str, word: &[u8]) -> Parsed<Option<Duration>> {
    if word == b"off" { Ok(None) } else { args::positive_time(directive, word).map(Some) }
}

/// Addresses and networks of `consul_allow` and `consul_deny`.
pub(super) fn networks(args: &Args<'_>) -> Parsed<Vec<IpNet>> {
    let what = "an address or a network in CIDR notation";
    let net =
        |word: &&[u8]| address::network(text(word)?).ok_or_else(|| must_be(args.name, word, what));
    args.words.iter().map(net).collect()
}
