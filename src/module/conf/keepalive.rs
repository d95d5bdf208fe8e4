//! `consul_keepalive connections [requests=number] [timeout=time] [time=time]`.

use std::time::Duration;

use super::args::{self, Args, Parsed};

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
    /// The defaults are nginx's of `keepalive_requests`, `keepalive_timeout` and `keepalive_time`.
    pub(super) fn parse(args: &Args<'_>) -> Parsed<KeepaliveConf> {
        let mut conf = KeepaliveConf {
            connections: args::number(args.name, args.words[0], 1)? as usize,
            requests: 1000,
            timeout: Duration::from_secs(60),
            time: Duration::from_secs(3600),
            place: args::place(args.cf),
        };
        args.parameters(1, |name, value| {
            let value = value.as_bytes();
            let time = || args::positive_time(name, value).map_err(|_| None);
            match name {
                "requests" => {
                    conf.requests = args::number(name, value, 1).map_err(|_| None)? as usize;
                }
                "timeout" => conf.timeout = time()?,
                "time" => conf.time = time()?,
                _ => return Err(None),
            }
            Ok(())
        })?;
        Ok(conf)
    }
}
