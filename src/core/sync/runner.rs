//! Carries out what the rules of a watch say.

use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use siphasher::sip128::{Hasher128, SipHasher13};

use super::publisher::Publisher;
use super::{Level, Mode, Plan, Report, Sink, WatchPlan};
use crate::consul::client::{self, Client, Request, TokenState};
use crate::consul::gate::{Reason, believe, reason_of};
use crate::consul::instances::Instances;
use crate::consul::watch::{Answer, Fetch, Outcome, Settings, Step, Watch};
use crate::model::{Admit, Consistency, Instance, Query, Selection, Source};
use crate::resolve::Resolve;

/// Pause before what found no room is asked for again; others may have made room meanwhile.
const REFUSED: Duration = Duration::from_secs(3);

/// One watch and all that it remembers.
pub(super) struct Job {
    plan: Arc<Plan>,
    number: usize,
    sweep: Option<Duration>,
    watch: Watch,
    rng: SmallRng,
    publisher: Publisher,
    /// When it wants to be run again.
    pub(super) due: Instant,
}

impl Job {
    pub(super) fn new(plan: &Arc<Plan>, number: usize, sweep: Option<Duration>) -> Self {
        Job {
            plan: Arc::clone(plan),
            number,
            sweep,
            watch: new_watch(&plan.watches[number], sweep),
            rng: SmallRng::from_rng(&mut rand::rng()),
            publisher: Publisher::default(),
            due: Instant::now(),
        }
    }

    /// Forgets what may be wrong after a panic, and pauses.
    pub(super) fn restart(&mut self) {
        let watch = &self.plan.watches[self.number];
        self.watch = new_watch(watch, self.sweep);
        self.due = Instant::now() + watch.timing.retry_max.min(Duration::from_secs(5));
    }

    /// What the job is about, for a log line.
    pub(super) fn name(&self) -> String {
        query_name(&self.plan.watches[self.number].query)
    }

    /// One step; `false` if the engine ends.
    pub(super) fn run(
        &mut self,
        client: &mut Client,
        resolver: &dyn Resolve,
        sink: &dyn Sink,
    ) -> bool {
        let fetch = match self.watch.next(Instant::now()) {
            Step::Sleep(time) => {
                self.due = Instant::now() + time;
                return true;
            }
            Step::Fetch(fetch) => fetch,
        };
        let plan = Arc::clone(&self.plan);
        let watch = &plan.watches[self.number];
        let asked = ask(client, watch, fetch);
        client.end_probe(asked.is_ok());
        let taken = asked.and_then(|answer| match answer {
            Some(answer) => self.take(client, watch, fetch, answer, resolver, sink),
            None => Ok(false),
        });
        match taken {
            Ok(true) => {}
            Ok(false) => return false,
            // It was only worth a try.
            Err(_) if fetch.probe => {
                self.watch.answer(Answer::Failed, Instant::now(), &mut self.rng);
            }
            Err(Failure::Reconnected) => {
                self.watch.answer(Answer::Reconnected, Instant::now(), &mut self.rng);
            }
            Err(Failure::Refused(reason, error)) => {
                self.fail(watch, fetch, (reason, &error), sink);
            }
        }
        self.due = Instant::now();
        true
    }

    /// Takes a believable answer; `false` if the engine ends.
    fn take(
        &mut self,
        client: &mut Client,
        watch: &WatchPlan,
        fetch: Fetch,
        (index, bytes, instances): (u64, u64, Instances),
        resolver: &dyn Resolve,
        sink: &dyn Sink,
    ) -> Result<bool, Failure> {
        let prepared =
            self.publisher.prepare(&self.plan, watch, (index, &instances), resolver, sink);
        let is_nothing = instances.good.is_empty() && instances.skipped.is_empty();
        if prepared.is_confirmed() && !vouch(client, watch, fetch.server, is_nothing)? {
            return Ok(false);
        }
        let digest = digest(&instances.good);
        let answer = Answer::Good { index, digest, bytes };
        let outcome = self.watch.answer(answer, Instant::now(), &mut self.rng);
        let (name, server) = (query_name(&watch.query), &watch.endpoint.servers[fetch.server]);
        if let Outcome::Publish { outage: Some(outage), .. } = outcome {
            let line = format!("{name}: answers again after {outage:.1?}, server \"{server}\"");
            sink.log(Level::Notice, line);
        }
        if fetch.probe {
            let line = format!("{name}: the first server answers again, server \"{server}\"");
            sink.log(Level::Notice, line);
        }
        let published = self.publisher.publish(&self.plan, &prepared, sink);
        self.watch.limit_wait(prepared.limit());
        if let Some(at) = prepared.again() {
            self.watch.read_again(at);
        } else if !published {
            self.watch.read_again(Instant::now() + REFUSED);
        }
        let mode = self.sweep.or(poll(watch)).map_or(Mode::Blocking, |delay| Mode::Sweep { delay });
        for &target in &watch.targets {
            let pending = prepared.pending(target);
            sink.report(target, &Report::Good { index, server: fetch.server, mode, pending });
        }
        Ok(true)
    }

    fn fail(
        &mut self,
        watch: &WatchPlan,
        fetch: Fetch,
        (reason, error): (Reason, &str),
        sink: &dyn Sink,
    ) {
        let outcome = self.watch.answer(Answer::Failed, Instant::now(), &mut self.rng);
        let Outcome::Failed { failures, retry_in, round } = outcome else { return };
        if failures == 1 || round {
            let level = if failures == 1 { Level::Error } else { Level::Info };
            let server = &watch.endpoint.servers[fetch.server];
            let name = query_name(&watch.query);
            let retry = match retry_in.as_millis() {
                0 => "trying the next server".to_owned(),
                millis => format!("retrying in {millis}ms"),
            };
            let first = if watch.targets.iter().any(|&target| sink.has_data(target)) {
                ""
            } else {
                ", it has never answered"
            };
            sink.log(level, format!("{name}: {error}, {retry}, server \"{server}\"{first}"));
        }
        for &target in &watch.targets {
            let server = fetch.server;
            sink.report(target, &Report::Failed { server, reason, error, failures, retry_in });
        }
    }
}

fn new_watch(watch: &WatchPlan, sweep: Option<Duration>) -> Watch {
    Watch::new(Settings {
        servers: watch.endpoint.servers.len(),
        wait: watch.timing.wait,
        retry_min: watch.timing.retry_min,
        retry_max: watch.timing.retry_max,
        sweep: sweep.or(poll(watch)),
    })
}

/// How often to ask what can't be blocked on.
fn poll(watch: &WatchPlan) -> Option<Duration> {
    (watch.query.source == Source::Query).then_some(watch.timing.poll)
}

/// Why a request has no believable answer.
pub(super) enum Failure {
    Reconnected,
    Refused(Reason, String),
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Failure {
        reason_of(&error).map_or(Failure::Reconnected, |r| Failure::Refused(r, error.to_string()))
    }
}

/// Asks and judges; `None` if the engine ends. Gives index, length of the body and instances.
pub(super) fn ask(
    client: &mut Client,
    watch: &WatchPlan,
    fetch: Fetch,
) -> Result<Option<(u64, u64, Instances)>, Failure> {
    let request = Request {
        endpoint: &watch.endpoint,
        server: fetch.server,
        query: &watch.query,
        index: fetch.index,
        wait: fetch.wait,
        patience: fetch.probe.then_some(watch.endpoint.connect_timeout),
    };
    let answer = if fetch.probe { client.probe(request) } else { client.get(request) };
    match answer {
        Ok(answer) => match believe(&answer, &watch.query, watch.timing.max_stale) {
            Ok((index, instances)) => Ok(Some((index, answer.body.len() as u64, instances))),
            Err(disbelief) => Err(Failure::Refused(disbelief.reason(), disbelief.to_string())),
        },
        Err(client::Error::Stopped) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Before peers leave that could be hidden from the token: asks whether it is one that could see
/// them. `false` if the engine ends.
///
/// A token without any right is one to suspect only if Consul shows nothing at all (`is_nothing`):
/// it may be that all may read.
fn vouch(
    client: &mut Client,
    watch: &WatchPlan,
    server: usize,
    is_nothing: bool,
) -> Result<bool, Failure> {
    if watch.endpoint.token.is_none() {
        return Ok(true);
    }
    let refuse = |why: &str| {
        Err(Failure::Refused(
            Reason::Token,
            format!("instances are gone, and so is the token: {why}"),
        ))
    };
    match client.token_state(&watch.endpoint, server, &watch.query) {
        Ok(TokenState::Powerless) if is_nothing => refuse("it has no policy"),
        Ok(_) => Ok(true),
        Err(client::Error::Stopped) => Ok(false),
        Err(error @ client::Error::Status { status: 403 | 404, .. }) => refuse(&error.to_string()),
        Err(error) => Err(error.into()),
    }
}

/// Digest of an answer. It is sorted already.
fn digest(instances: &[Instance]) -> u128 {
    let mut h = SipHasher13::new();
    instances.hash(&mut h);
    h.finish128().as_u128()
}

/// `service "web"` and whatever makes the query special.
pub(super) fn query_name(query: &Query) -> String {
    let what = match query.source {
        Source::Health | Source::Catalog => "service",
        Source::Kv => "kv",
        Source::Query => "query",
    };
    let mut name = format!("{what} \"{}\"", query.service.escape_debug());
    if query.source == Source::Catalog {
        name += " source=catalog";
    }
    for (key, value) in query.parameters() {
        name += &format!(" {key}={}", value.escape_debug());
    }
    if let Some(tag) = &query.address {
        name += &format!(" address={}", tag.escape_debug());
    }
    name += match query.consistency {
        Consistency::Default => "",
        Consistency::Stale => " consistency=stale",
        Consistency::Consistent => " consistency=consistent",
        Consistency::Cached => " consistency=cached",
    };
    name
}

pub(super) fn target_name(query: &Query, selection: &Selection) -> String {
    let mut name = query_name(query);
    for tag in &selection.tags {
        name += &format!(" tag={}", tag.escape_debug());
    }
    name += match selection.admit {
        Admit::Passing => "",
        Admit::Warning => " status=warning",
        Admit::Any => " status=any",
    };
    name
}
