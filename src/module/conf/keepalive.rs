//! `consul_keepalive connections [requests=number] [timeout=time] [time=time]`.

use std::time::Duration;

use nginx_consul_core::directives::words::{number, positive_time};

use super::args::{Args, Parsed};
use crate::peer::keepalive;

/// `consul_keepalive` of an `upstream`.
#[derive(Clone, Debug)]
pub(crate) struct KeepaliveConf {
    pub(crate) options: keepalive::Options,
    /// Where the directive stands, as `file:line`.
    pub(crate) place: String,
}

impl KeepaliveConf {
    /// The defaults are nginx's of `keepalive_requests`, `keepalive_timeout` and `keepalive_time`.
    pub(super) fn parse(args: &Args<'_>) -> Parsed<KeepaliveConf> {
        let words = &args.words;
        let mut options = keepalive::Options {
            connections: number(words.name, words.first(), 1)? as usize,
            requests: 1000,
            timeout: Duration::from_secs(60),
            time: Duration::from_secs(3600),
        };
        words.parameters(1, |name, value| {
            let value = value.as_bytes();
            let time = || positive_time(name, value).map_err(|_| None);
            match name {
                "requests" => {
                    options.requests = number(name, value, 1).map_err(|_| None)? as usize;
                }
                "timeout" => options.timeout = time()?,
                "time" => options.time = time()?,
                _ => return Err(None),
            }
            Ok(())
        })?;
        Ok(KeepaliveConf { options, place: args.cf.place() })
    }
}
