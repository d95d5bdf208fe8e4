//! Whether there is data to serve from: for load balancers and probes.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::text::printable;

/// Where the data of a service is from; the later the better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The state file.
    #[default]
    State,
    /// The shared zone, from before a reload or a restart of the worker that follows Consul.
    Zone,
    /// Consul has confirmed it since.
    Live,
}

impl Origin {
    /// The origin of that name in the configuration.
    pub fn from_name(name: &str) -> Option<Origin> {
        match name {
            "state" => Some(Origin::State),
            "zone" => Some(Origin::Zone),
            "live" => Some(Origin::Live),
            _ => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::State => "from the state file",
            Origin::Zone => "kept in the zone",
            Origin::Live => "live",
        })
    }
}

/// What an upstream needs to be ready; the default is data of any kind and age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// The worst origin that counts.
    pub source: Origin,
    /// How long ago the last good answer may be.
    pub max_age: Option<Duration>,
    /// How many usable instances there have to be.
    pub peers: usize,
}

/// What is known of one set (datacenter) of an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// `None` without data.
    pub origin: Option<Origin>,
    /// How long ago the last good answer came.
    pub age: Duration,
    /// Failures in a row since then.
    pub failures: u64,
    /// The last error, empty if there is none.
    pub error: String,
}

/// Why an upstream isn't ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// There is no data, and why if that is known.
    #[error("no data yet{}", explained(.0))]
    Data(String),
    /// Where the data is from, and what is asked for.
    #[error("its data is {0}, not {1}")]
    Source(Origin, Origin),
    /// The data's age.
    #[error("its data is {}s old{}", .0.as_secs(), explained(.1))]
    Age(Duration, String),
    /// Usable instances: how many there are, and have to be.
    #[error("{0} of its instances can be used, not {1}")]
    Peers(usize, usize),
}

fn explained(error: &str) -> String {
    if error.is_empty() { String::new() } else { format!(": {}", printable(error)) }
}

impl Lack {
    /// The word for it; never changes.
    fn word(&self) -> &'static str {
        match self {
            Lack::Data(_) => "data",
            Lack::Source(..) => "source",
            Lack::Age(..) => "max_age",
            Lack::Peers(..) => "peers",
        }
    }
}

impl Demand {
    /// Judges an upstream by its sets, the first to be used first: one that will do is enough.
    /// `usable` counts the instances that can be used, up to a number; it is only asked if that
    /// matters.
    ///
    /// # Errors
    ///
    /// What it lacks; of several sets, what the first one does.
    pub fn judge(
        &self,
        sets: impl IntoIterator<Item = Known>,
        usable: impl FnOnce(usize) -> usize,
    ) -> Result<(), Lack> {
        let mut first = None;
        let will_do = |known: Known| match self.judge_set(known) {
            Ok(()) => true,
            Err(lack) => {
                first.get_or_insert(lack);
                false
            }
        };
        if !sets.into_iter().any(will_do) {
            return Err(first.unwrap_or(Lack::Data(String::new())));
        }
        if self.peers != 0 {
            let usable = usable(self.peers);
            if usable < self.peers {
                return Err(Lack::Peers(usable, self.peers));
            }
        }
        Ok(())
    }

    fn judge_set(&self, known: Known) -> Result<(), Lack> {
        let Some(origin) = known.origin else { return Err(Lack::Data(known.error)) };
        if origin < self.source {
            return Err(Lack::Source(origin, self.source));
        }
        // While Consul holds a query, nothing has changed: the data is not old.
        let is_followed = origin == Origin::Live && known.failures == 0;
        match self.max_age.filter(|max| !is_followed && known.age > *max) {
            Some(_) => Err(Lack::Age(known.age, known.error)),
            None => Ok(()),
        }
    }
}

/// All upstreams together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// How many upstreams were judged.
    pub upstreams: usize,
    /// Those that aren't ready: name, service and why.
    pub waiting: Vec<(String, String, Lack)>,
}

#[derive(Serialize)]
struct Json<'a> {
    ready: bool,
    upstreams: usize,
    waiting: Vec<Waiting<'a>>,
}

#[derive(Serialize)]
struct Waiting<'a> {
    upstream: &'a str,
    service: &'a str,
    lacks: &'static str,
    reason: String,
}

impl Readiness {
    /// Whether all of them are ready.
    pub fn is_ready(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A line for each upstream that isn't ready, or `ready`.
    pub fn to_text(&self) -> String {
        if self.is_ready() {
            return "ready\n".to_owned();
        }
        let line = |(upstream, service, lack): &(String, String, Lack)| {
            let (upstream, service) = (upstream.escape_debug(), service.escape_debug());
            format!("upstream \"{upstream}\": service \"{service}\": {lack}\n")
        };
        let lines: String = self.waiting.iter().map(line).collect();
        format!("{} of {} upstreams not ready\n{lines}", self.waiting.len(), self.upstreams)
    }

    /// The same as JSON.
    pub fn to_json(&self) -> String {
        let waiting = self.waiting.iter().map(|(upstream, service, lack)| Waiting {
            upstream,
            service,
            lacks: lack.word(),
            reason: lack.to_string(),
        });
        let (ready, upstreams) = (self.is_ready(), self.upstreams);
        let json = Json { ready, upstreams, waiting: waiting.collect() };
        serde_json::to_string(&json).unwrap_or_default() + "\n"
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn known(origin: Origin, age: u64, failures: u64) -> Known {
        Known { origin: Some(origin), age: Duration::from_secs(age), failures, ..Known::default() }
    }

    fn judge(demand: &str, sets: &[Known], usable: usize) -> String {
        let mut parsed = Demand::default();
        for word in demand.split_whitespace() {
            match word.split_once('=') {
                Some(("source", name)) => parsed.source = Origin::from_name(name).unwrap(),
                Some(("max_age", s)) => {
                    parsed.max_age = Some(Duration::from_secs(s.parse().unwrap()));
                }
                Some(("peers", n)) => parsed.peers = n.parse().unwrap(),
                _ => panic!("{word}"),
            }
        }
        match parsed.judge(sets.to_vec(), |_| usable) {
            Ok(()) => "ready".to_owned(),
            Err(lack) => lack.word().to_owned(),
        }
    }

    #[test]
    fn any_data_will_do_unless_told_otherwise() {
        use Origin::{Live, State, Zone};
        for (demand, origin, verdict) in [
            ("", State, "ready"),
            ("source=state", State, "ready"),
            ("source=zone", State, "source"),
            ("source=zone", Zone, "ready"),
            ("source=zone", Live, "ready"),
            ("source=live", Zone, "source"),
            ("source=live", Live, "ready"),
        ] {
            assert_eq!(judge(demand, &[known(origin, 9, 0)], 0), verdict, "{demand} {origin:?}");
        }
        assert_eq!(judge("", &[Known::default()], 9), "data");
        assert_eq!(judge("", &[], 9), "data");
    }

    #[test]
    fn data_gets_old_once_nobody_follows_it() {
        use Origin::{Live, Zone};
        for (origin, age, failures, verdict) in [
            (Live, 60, 0, "ready"),
            (Live, 60, 1, "max_age"),
            (Live, 30, 5, "ready"),
            (Zone, 31, 0, "max_age"),
            (Zone, 30, 0, "ready"),
        ] {
            let sets = [known(origin, age, failures)];
            assert_eq!(judge("max_age=30", &sets, 0), verdict, "{origin:?} {age} {failures}");
        }
    }

    #[test]
    fn one_datacenter_is_enough_and_the_first_one_says_why() {
        let good = known(Origin::Live, 0, 0);
        assert_eq!(judge("", &[Known::default(), good], 0), "ready");
        let sets = [known(Origin::Zone, 0, 0), Known::default()];
        assert_eq!(judge("source=live", &sets, 0), "source");
    }

    #[test]
    fn instances_are_counted_only_if_that_matters() {
        let sets = || [known(Origin::Live, 0, 0)];
        assert_eq!(judge("peers=2", &sets(), 1), "peers");
        assert_eq!(judge("peers=2", &sets(), 2), "ready");
        let never = |_| panic!("nobody asked");
        assert_eq!(Demand::default().judge(sets(), never), Ok(()));
        let demand = Demand { peers: 1, ..Demand::default() };
        assert!(demand.judge([Known::default()], never).is_err());
    }

    #[test]
    fn the_list_is_text_or_json() {
        let error = "connection refused\n".to_owned();
        let waiting = vec![("api".to_owned(), "we\"b".to_owned(), Lack::Data(error))];
        let readiness = Readiness { upstreams: 3, waiting };
        assert_eq!(
            readiness.to_text(),
            "1 of 3 upstreams not ready\n\
             upstream \"api\": service \"we\\\"b\": no data yet: connection refused\\n\n"
        );
        let json: serde_json::Value = serde_json::from_str(&readiness.to_json()).unwrap();
        assert_eq!(json["ready"], false);
        assert_eq!(json["waiting"][0]["service"], "we\"b");
        assert_eq!(json["waiting"][0]["lacks"], "data");
        let ready = Readiness { upstreams: 3, waiting: Vec::new() };
        assert_eq!(ready.to_text(), "ready\n");
        assert_eq!(ready.to_json(), "{\"ready\":true,\"upstreams\":3,\"waiting\":[]}\n");
    }
}
