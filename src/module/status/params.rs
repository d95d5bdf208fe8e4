//! The parameters of `consul_status`.

use crate::conf::args::{Parsed, duplicate, text};

/// What a location with `consul_status` answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Params {
    /// `metrics=`: what Prometheus gets.
    pub(crate) metrics: Metrics,
}

/// How much of the metrics there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Metrics {
    /// Nothing for each peer: as many series as the configuration has services.
    Service,
    /// Also some for each peer.
    #[default]
    Peer,
}

impl Params {
    /// Reads the words of the directive.
    pub(super) fn parse(words: &[&[u8]]) -> Parsed<Params> {
        let directive = text(words[0])?;
        let mut metrics = None;
        for word in &words[1..] {
            let parameter = text(word)?;
            let invalid =
                || format!("invalid parameter \"{parameter}\" in \"{directive}\" directive");
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match name {
                "metrics" => set(&mut metrics, Metrics::parse(value).ok_or_else(invalid)?),
                _ => return Err(invalid()),
            }
            .map_err(|()| {
                format!("duplicate parameter \"{parameter}\" in \"{directive}\" directive")
            })?;
        }
        Ok(Params { metrics: metrics.unwrap_or_default() })
    }

    /// Sets the parameters of a location that has none yet.
    pub(super) fn set(place: &mut Option<Params>, words: &[&[u8]]) -> Parsed {
        let params = Params::parse(words)?;
        set(place, params).map_err(|()| duplicate("consul_status"))
    }
}

impl Metrics {
    fn parse(word: &str) -> Option<Metrics> {
        match word {
            "service" => Some(Metrics::Service),
            "peer" => Some(Metrics::Peer),
            _ => None,
        }
    }
}

fn set<T>(place: &mut Option<T>, value: T) -> Result<(), ()> {
    if place.is_some() {
        return Err(());
    }
    *place = Some(value);
    Ok(())
}
