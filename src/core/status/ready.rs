//! `consul_ready`: whether there is fresh enough data to serve requests, for load balancers and
//! probes.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::text::printable;

/// Where the data of a service is from; later variants are better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The state file.
    #[default]
    State,
    /// The shared zone, kept over a reload or a restart of the worker that follows Consul.
    Zone,
    /// An answer of Consul to the watcher that runs now.
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
    /// The worst origin that is accepted.
    pub source: Origin,
    /// Largest age of the last good answer.
    pub max_age: Option<Duration>,
    /// Fewest usable instances.
    pub peers: usize,
}

/// The state of one set (datacenter) of an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetState {
    /// `None` without data.
    pub origin: Option<Origin>,
    /// Age of the last good answer.
    pub age: Duration,
    /// Failures in a row since the last good answer.
    pub failures: u64,
    /// The last error, empty if there is none.
    pub error: String,
}

/// Why an upstream isn't ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// Identifies the cause, for programs; it never changes.
    pub what: &'static str,
    /// Explains the cause, for people.
    pub reason: String,
}

impl Lack {
    fn new(what: &'static str, reason: String, error: &str) -> Lack {
        let error = if error.is_empty() { error.into() } else { printable(error) };
        let colon = if error.is_empty() { "" } else { ": " };
        Lack { what, reason: format!("{reason}{colon}{error}") }
    }

    fn data(error: &str) -> Lack {
        Lack::new("data", "no data yet".to_owned(), error)
    }
}

impl Demand {
    /// Checks an upstream by its sets, in the order of use: one sufficient set is enough. `usable`
    /// counts the usable instances, up to a number; it is only called if necessary.
    ///
    /// # Errors
    ///
    /// What the upstream lacks; with several sets, what the first one lacks.
    pub fn judge(
        &self,
        sets: impl IntoIterator<Item = SetState>,
        usable: impl FnOnce(usize) -> usize,
    ) -> Result<(), Lack> {
        let mut first = None;
        let will_do = |known: SetState| match self.judge_set(known) {
            Ok(()) => true,
            Err(lack) => {
                first.get_or_insert(lack);
                false
            }
        };
        if !sets.into_iter().any(will_do) {
            return Err(first.unwrap_or_else(|| Lack::data("")));
        }
        if self.peers != 0 {
            let usable = usable(self.peers);
            if usable < self.peers {
                let reason = format!("{usable} of its instances can be used, not {}", self.peers);
                return Err(Lack::new("peers", reason, ""));
            }
        }
        Ok(())
    }

    fn judge_set(&self, known: SetState) -> Result<(), Lack> {
        let Some(origin) = known.origin else { return Err(Lack::data(&known.error)) };
        if origin < self.source {
            let reason = format!("its data is {origin}, not {}", self.source);
            return Err(Lack::new("source", reason, ""));
        }
        // While Consul holds a blocking query, nothing has changed: the data is not old.
        let is_followed = origin == Origin::Live && known.failures == 0;
        if self.max_age.is_some_and(|max| !is_followed && known.age > max) {
            let reason = format!("its data is {}s old", known.age.as_secs());
            return Err(Lack::new("max_age", reason, &known.error));
        }
        Ok(())
    }
}

/// All upstreams together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Whether all of them are ready.
    pub ready: bool,
    /// How many upstreams were checked.
    pub upstreams: usize,
    /// Those that aren't ready.
    pub waiting: Vec<Waiting>,
}

/// An upstream that isn't ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waiting {
    upstream: String,
    service: String,
    lacks: &'static str,
    reason: String,
}

impl Readiness {
    /// Of upstreams: name and service, and whether each is ready.
    pub fn of(
        upstreams: impl IntoIterator<Item = (String, String, Result<(), Lack>)>,
    ) -> Readiness {
        let mut readiness = Readiness { ready: true, ..Readiness::default() };
        for (upstream, service, judged) in upstreams {
            readiness.upstreams += 1;
            if let Err(Lack { what, reason }) = judged {
                readiness.ready = false;
                readiness.waiting.push(Waiting { upstream, service, lacks: what, reason });
            }
        }
        readiness
    }

    /// A line for each upstream that isn't ready, or `ready`.
    pub fn to_text(&self) -> String {
        if self.ready {
            return "ready\n".to_owned();
        }
        let line = |Waiting { upstream, service, reason, .. }: &Waiting| {
            let (upstream, service) = (upstream.escape_debug(), service.escape_debug());
            format!("upstream \"{upstream}\": service \"{service}\": {reason}\n")
        };
        let lines: String = self.waiting.iter().map(line).collect();
        format!("{} of {} upstreams not ready\n{lines}", self.waiting.len(), self.upstreams)
    }

    /// The same as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn known(origin: Origin, age: u64, failures: u64) -> SetState {
        SetState {
            origin: Some(origin),
            age: Duration::from_secs(age),
            failures,
            ..SetState::default()
        }
    }

    #[test]
    fn an_upstream_is_ready_if_one_of_its_sets_is_what_was_asked_for() {
        use Origin::{Live, State, Zone};
        let none = SetState::default;
        for (demand, sets, usable, expected) in [
            // Any data will do unless told otherwise.
            ("", vec![known(State, 9, 0)], 0, "ready"),
            ("source=state", vec![known(State, 9, 0)], 0, "ready"),
            ("source=zone", vec![known(State, 9, 0)], 0, "source"),
            ("source=zone", vec![known(Zone, 9, 0)], 0, "ready"),
            ("source=zone", vec![known(Live, 9, 0)], 0, "ready"),
            ("source=live", vec![known(Zone, 9, 0)], 0, "source"),
            ("source=live", vec![known(Live, 9, 0)], 0, "ready"),
            ("", vec![none()], 9, "data"),
            ("", vec![], 9, "data"),
            // It gets old once nobody follows it.
            ("max_age=30", vec![known(Live, 60, 0)], 0, "ready"),
            ("max_age=30", vec![known(Live, 60, 1)], 0, "max_age"),
            ("max_age=30", vec![known(Live, 30, 5)], 0, "ready"),
            ("max_age=30", vec![known(Zone, 31, 0)], 0, "max_age"),
            ("max_age=30", vec![known(Zone, 30, 0)], 0, "ready"),
            // One datacenter is enough, and the first one says why.
            ("", vec![none(), known(Live, 0, 0)], 0, "ready"),
            ("source=live", vec![known(Zone, 0, 0), none()], 0, "source"),
            ("peers=2", vec![known(Live, 0, 0)], 1, "peers"),
            ("peers=2", vec![known(Live, 0, 0)], 2, "ready"),
            ("peers=2", vec![none()], 2, "data"),
        ] {
            let mut parsed = Demand::default();
            match demand.split_once('=') {
                Some(("source", name)) => parsed.source = Origin::from_name(name).unwrap(),
                Some(("max_age", s)) => {
                    parsed.max_age = Some(Duration::from_secs(s.parse().unwrap()));
                }
                Some((_, n)) => parsed.peers = n.parse().unwrap(),
                None => {}
            }
            let count = |enough| match parsed.peers {
                0 => panic!("{demand}: nobody asked"),
                peers => usable.min(peers.min(enough)),
            };
            let judged = parsed.judge(sets.clone(), count);
            let word = judged.map_or_else(|lack| lack.what, |()| "ready");
            assert_eq!(word, expected, "{demand} {sets:?}");
        }
    }

    #[test]
    fn the_list_is_text_or_json() {
        let lack = Lack::data("connection refused\n");
        let of = |name: &str, judged| (name.to_owned(), "we\"b".to_owned(), judged);
        let readiness = Readiness::of([of("a", Ok(())), of("api", Err(lack)), of("b", Ok(()))]);
        assert_eq!(
            readiness.to_text(),
            "1 of 3 upstreams not ready\n\
             upstream \"api\": service \"we\\\"b\": no data yet: connection refused\\n\n"
        );
        let json: serde_json::Value = serde_json::from_str(&readiness.to_json()).unwrap();
        assert_eq!(json["ready"], false);
        assert_eq!(json["waiting"][0]["service"], "we\"b");
        assert_eq!(json["waiting"][0]["lacks"], "data");
        let ready = Readiness::of([of("a", Ok(()))]);
        assert_eq!(ready.to_text(), "ready\n");
        assert_eq!(ready.to_json(), "{\"ready\":true,\"upstreams\":1,\"waiting\":[]}\n");
    }
}
