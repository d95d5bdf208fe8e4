//! `consul_keepalive connections [requests=number] [timeout=time] [time=time]`.

use std::time::Duration;

use super::args::{self, Parsed, invalid, text};
use super::settings::once;

/// How idle connections are kept.
#[derive(Clone, Debug)]
pub(crate) struct KeepaliveConf {
    /// Most of them in a worker.
    pub(crate) connections: usize,
    /// Requests that a connection serves at most.
    pub(crate) requests: usize,
    /// How long one may be idle.
    pub(crate) timeout: Duration,
    /// How long one is used for requests.
    pub(crate) time: Duration,
    /// Where the directive stands, as `file:line`.
    pub(crate) place: String,
}

impl KeepaliveConf {
    /// Of the words of the directive. The defaults are nginx's of `keepalive_requests`,
    /// `keepalive_timeout` and `keepalive_time`.
    pub(super) fn parse(words: &[&[u8]], place: String) -> Parsed<KeepaliveConf> {
        let directive = "consul_keepalive";
        let connections = args::number(directive, words[1], 1)? as usize;
        let (mut requests, mut timeout, mut time) = (None, None, None);
        for word in &words[2..] {
            let value = |value: &str| args::positive_time(directive, value.as_bytes());
            let bad = |_| invalid(directive, word);
            match text(word)?.split_once('=') {
                Some(("requests", number)) => {
                    let number = args::number(directive, number.as_bytes(), 1).map_err(bad)?;
                    once(&format!("{directive} requests"), &mut requests, number as usize)?;
                }
                Some(("timeout", limit)) => {
                    let limit = value(limit).map_err(bad)?;
                    once(&format!("{directive} timeout"), &mut timeout, limit)?;
                }
                Some(("time", limit)) => {
                    once(&format!("{directive} time"), &mut time, value(limit).map_err(bad)?)?;
                }
                _ => return Err(invalid(directive, word)),
            }
        }
        Ok(KeepaliveConf {
            connections,
            requests: requests.unwrap_or(1000),
            timeout: timeout.unwrap_or(Duration::from_secs(60)),
            time: time.unwrap_or(Duration::from_secs(3600)),
            place,
        })
    }
}
