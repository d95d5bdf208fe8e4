//! Carries out what the rules of a watch say.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use siphasher::sip128::{Hasher128, SipHasher13};

use super::{Level, Mode, Plan, Published, Report, Sink, WatchPlan};
use crate::consul::client::{self, Client, Request};
use crate::consul::gate::believe;
use crate::consul::health::{Instances, Skipped};
use crate::consul::watch::{Answer, Fetch, Outcome, Settings, Step, Watch};
use crate::model::{Admit, Consistency, Instance, Query, Selection};
use crate::resolve::{Names, Resolve};
use crate::snapshot;

/// Longest `wait` while a service has host names: their addresses change without Consul.
const WAIT_WITH_NAMES: Duration = Duration::from_secs(30);
/// Longest `wait` while a host name has no address.
const WAIT_UNRESOLVED: Duration = Duration::from_secs(5);
/// How many warnings about skipped instances one watch ever logs, and at most per answer.
const MAX_WARNINGS: usize = 1000;
const MAX_WARNINGS_PER_ANSWER: usize = 10;

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
        match ask(client, watch, fetch) {
            Ok(Some((index, bytes, instances))) => {
                self.take(watch, fetch, (index, bytes, instances), resolver, sink);
            }
            Ok(None) => return false,
            Err(Failure::Reconnected) => {
                self.watch.answer(Answer::Reconnected, Instant::now(), &mut self.rng);
            }
            Err(Failure::Error(error)) => self.fail(watch, fetch, &error, sink),
        }
        self.due = Instant::now();
        true
    }

    fn take(
        &mut self,
        watch: &WatchPlan,
        fetch: Fetch,
        (index, bytes, instances): (u64, u64, Instances),
        resolver: &dyn Resolve,
        sink: &dyn Sink,
    ) {
        let digest = digest(&instances.good);
        let answer = Answer::Good { index, digest, bytes };
        let outcome = self.watch.answer(answer, Instant::now(), &mut self.rng);
        if let Outcome::Publish { outage: Some(outage), .. } = outcome {
            let server = &watch.endpoint.servers[fetch.server];
            let name = query_name(&watch.query);
            let line = format!("{name}: answers again after {outage:.1?}, server \"{server}\"");
            sink.log(Level::Notice, line);
        }
        let limit = self.publisher.publish(&self.plan, watch, (index, &instances), resolver, sink);
        self.watch.limit_wait(limit);
        let mode = self.sweep.map_or(Mode::Blocking, |delay| Mode::Sweep { delay });
        for &target in &watch.targets {
            sink.report(target, &Report::Good { index, server: fetch.server, mode });
        }
    }

    fn fail(&mut self, watch: &WatchPlan, fetch: Fetch, error: &str, sink: &dyn Sink) {
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
            sink.report(target, &Report::Failed { server, error, failures, retry_in });
        }
    }
}

fn new_watch(watch: &WatchPlan, sweep: Option<Duration>) -> Watch {
    Watch::new(Settings {
        servers: watch.endpoint.servers.len(),
        wait: watch.timing.wait,
        retry_min: watch.timing.retry_min,
        retry_max: watch.timing.retry_max,
        sweep,
    })
}

/// Why a request has no believable answer.
pub(super) enum Failure {
    Reconnected,
    Error(String),
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
    };
    match client.get(request) {
        Ok(answer) => match believe(&answer) {
            Ok((index, instances)) => Ok(Some((index, answer.body.len() as u64, instances))),
            Err(disbelief) => Err(Failure::Error(disbelief.to_string())),
        },
        Err(client::Error::Stopped) => Ok(None),
        Err(client::Error::Reconnected) => Err(Failure::Reconnected),
        Err(error) => Err(Failure::Error(error.to_string())),
    }
}

/// Hands answers to the sink, and remembers what it has warned of.
#[derive(Default)]
pub(super) struct Publisher {
    quiet: bool,
    names: Names,
    warned: HashSet<u64>,
    refused: HashSet<u64>,
}

impl Publisher {
    /// One that does not warn of skipped instances: somebody else will.
    pub(super) fn quiet() -> Self {
        Publisher { quiet: true, ..Publisher::default() }
    }

    /// Publishes an answer to every target of its watch; gives the longest `wait` that the host
    /// names in it allow.
    pub(super) fn publish(
        &mut self,
        plan: &Plan,
        watch: &WatchPlan,
        (index, instances): (u64, &Instances),
        resolver: &dyn Resolve,
        sink: &dyn Sink,
    ) -> Option<Duration> {
        self.warn(watch, &instances.skipped, sink);
        let budget = watch.endpoint.connect_timeout;
        let unresolved = self.names.refresh(&instances.good, resolver, budget);
        for name in &unresolved {
            let of = instances.good.iter().filter(|instance| instance.host == name.host);
            let skipped: Vec<_> = of
                .map(|instance| Skipped {
                    node: instance.node.clone(),
                    id: instance.id.clone(),
                    reason: format!("cannot resolve \"{}\" ({})", name.host, name.error),
                })
                .collect();
            self.warn(watch, &skipped, sink);
        }
        for &number in &watch.targets {
            let target = &plan.targets[number];
            let set = snapshot::peers(&instances.good, &target.selection, &self.names);
            match sink.publish(number, &set, index) {
                Published::Unchanged => {}
                Published::Changed { peers, added, removed, changed } => {
                    let name = target_name(&target.query, &target.selection);
                    let s = if peers == 1 { "" } else { "s" };
                    let others = if changed == 0 { String::new() } else { format!(" ~{changed}") };
                    let line = format!(
                        "{name}: {peers} peer{s} (+{added} -{removed}{others}), index {index}"
                    );
                    sink.log(Level::Notice, line);
                    self.refused.clear();
                }
                Published::Refused(reason) => {
                    let name = target_name(&target.query, &target.selection);
                    if self.refused.len() < MAX_WARNINGS
                        && self.refused.insert(hash(&(number, &reason)))
                    {
                        sink.log(Level::Error, format!("{name}: {reason}, the old peers stay"));
                    }
                }
            }
        }
        match (unresolved.is_empty(), self.names.is_empty()) {
            (false, _) => Some(WAIT_UNRESOLVED),
            (true, false) => Some(WAIT_WITH_NAMES),
            (true, true) => None,
        }
    }

    fn warn(&mut self, watch: &WatchPlan, skipped: &[Skipped], sink: &dyn Sink) {
        if self.quiet {
            return;
        }
        let name = query_name(&watch.query);
        let mut lines = 0;
        let mut more = 0;
        for skipped in skipped {
            if self.warned.len() >= MAX_WARNINGS || !self.warned.insert(hash(skipped)) {
                continue;
            }
            lines += 1;
            if lines > MAX_WARNINGS_PER_ANSWER {
                more += 1;
                continue;
            }
            let (id, node) = (skipped.id.escape_debug(), skipped.node.escape_debug());
            let reason = &skipped.reason;
            let line = format!("{name}: instance \"{id}\" on node \"{node}\" skipped: {reason}");
            sink.log(Level::Warn, line);
        }
        if more > 0 {
            sink.log(Level::Warn, format!("{name}: {more} more instances skipped"));
        }
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut h = DefaultHasher::new();
    value.hash(&mut h);
    h.finish()
}

/// Digest of an answer. It is sorted already.
fn digest(instances: &[Instance]) -> u128 {
    let mut h = SipHasher13::new();
    instances.hash(&mut h);
    h.finish128().as_u128()
}

/// `service "web"` and whatever makes the query special.
pub(super) fn query_name(query: &Query) -> String {
    let mut name = format!("service \"{}\"", query.service.escape_debug());
    for (key, value) in [
        ("dc", &query.datacenter),
        ("ns", &query.namespace),
        ("partition", &query.partition),
        ("near", &query.near),
        ("filter", &query.filter),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            name += &format!(" {key}={}", value.escape_debug());
        }
    }
    name += match query.consistency {
        Consistency::Default => "",
        Consistency::Stale => " consistency=stale",
        Consistency::Consistent => " consistency=consistent",
        Consistency::Cached => " consistency=cached",
    };
    name
}

fn target_name(query: &Query, selection: &Selection) -> String {
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
