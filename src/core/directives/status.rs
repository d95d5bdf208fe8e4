//! `consul_status [metrics=service|peer]` and `consul_status ready [parameter=value]…`.

use super::words::{Parsed, number, positive_time, text};
use crate::status::ready::{Demand, Origin};

/// `metrics=`: what Prometheus gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Metrics {
    /// No series for peers: as many series as the configuration has services.
    Service,
    /// Series for each peer, too.
    #[default]
    Peer,
}

/// What the content of the location is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StatusPage {
    /// The status.
    Status(Metrics),
    /// Whether nginx has what it needs to serve.
    Ready(Demand),
}

/// Reads the words after the directive's name.
///
/// # Errors
///
/// A parameter is unknown, invalid or duplicate.
pub fn status(words: &[&[u8]]) -> Parsed<StatusPage> {
    match words {
        [b"ready", parameters @ ..] => ready(parameters).map(StatusPage::Ready),
        parameters => metrics(parameters).map(StatusPage::Status),
    }
}

fn wrong(what: &str, word: &[u8]) -> String {
    let parameter = String::from_utf8_lossy(word);
    format!("{what} parameter \"{parameter}\" in \"consul_status\" directive")
}

fn metrics(words: &[&[u8]]) -> Parsed<Metrics> {
    let mut metrics = None;
    for word in words {
        let found = match *word {
            b"metrics=service" => Metrics::Service,
            b"metrics=peer" => Metrics::Peer,
            _ => return Err(wrong("invalid", word)),
        };
        if metrics.replace(found).is_some() {
            return Err(wrong("duplicate", word));
        }
    }
    Ok(metrics.unwrap_or_default())
}

fn ready(words: &[&[u8]]) -> Parsed<Demand> {
    let (mut source, mut max_age, mut peers) = (None, None, None);
    for word in words {
        let parameter = text(word)?;
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let bytes = value.as_bytes();
        let is_duplicate = match name {
            "source" => Origin::from_name(value).map(|origin| source.replace(origin).is_some()),
            "max_age" => positive_time(name, bytes).ok().map(|age| max_age.replace(age).is_some()),
            "peers" => number(name, bytes, 0).ok().map(|n| peers.replace(n as usize).is_some()),
            _ => None,
        };
        match is_duplicate {
            Some(false) => {}
            Some(true) => return Err(wrong("duplicate", word)),
            None => return Err(wrong("invalid", word)),
        }
    }
    Ok(Demand { source: source.unwrap_or_default(), max_age, peers: peers.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parse(words: &str) -> Parsed<StatusPage> {
        let words: Vec<&[u8]> = words.split_whitespace().map(str::as_bytes).collect();
        status(&words)
    }

    #[test]
    fn metrics_are_of_peers_unless_it_is_said_otherwise() {
        assert_eq!(parse(""), Ok(StatusPage::Status(Metrics::Peer)));
        assert_eq!(parse("metrics=service"), Ok(StatusPage::Status(Metrics::Service)));
        for words in ["metrics=all", "metrics=peer metrics=peer", "source=live"] {
            assert!(parse(words).is_err(), "{words}");
        }
    }

    #[test]
    fn readiness_has_demands() {
        let Ok(StatusPage::Ready(demand)) = parse("ready max_age=1m peers=2") else { panic!() };
        assert_eq!((demand.max_age, demand.peers), (Some(Duration::from_secs(60)), 2));
        let error = parse("ready peers=1 peers=2").unwrap_err();
        assert_eq!(error, "duplicate parameter \"peers=2\" in \"consul_status\" directive");
        for words in
            ["ready source=nowhere", "ready max_age=0", "ready peers=-1", "ready metrics=peer"]
        {
            assert!(parse(words).is_err(), "{words}");
        }
    }
}
