//! Carries out what the rules of a watch say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::asking::{Failure, ask, digest, vouch};
use super::names::query_name;
use super::plan::{Followed, Subject};
use super::publisher::{Prepared, Publisher};
use super::{Level, Mode, Report, Sink};
use crate::consul::client::Client;
use crate::consul::gate::Reason;
use crate::consul::instances::Instances;
use crate::consul::overview;
use crate::consul::query::{View, has_tags};
use crate::consul::watch::{Answer, Fetch, Outcome, Settings, Step, Watch};
use crate::model::{Consistency, Instance, Source};
use crate::resolve::Resolve;

/// Pause before what found no room is asked for again; others may have made room meanwhile.
const REFUSED: Duration = Duration::from_secs(3);
/// How long an unmoved index is taken for unmoved instances. Indices of different servers, or of a
/// state that was restored, can be the same by chance.
const TRUST: Duration = Duration::from_secs(50);

/// What a thread works with.
pub(super) struct Tools<'a> {
    pub(super) client: &'a mut Client,
    pub(super) resolver: &'a dyn Resolve,
    pub(super) sink: &'a dyn Sink,
}

/// What all who work on a watch share.
pub(super) struct Common {
    pub(super) subject: Arc<Subject>,
    targets: Mutex<Arc<[Followed]>>,
    /// Locked from the judging of an answer to its publication.
    publisher: Mutex<Publisher>,
    /// Counts publications.
    published: AtomicU64,
    /// The one that answered last.
    server: AtomicUsize,
}

impl Common {
    pub(super) fn new(subject: Arc<Subject>, targets: Vec<Followed>) -> Arc<Self> {
        Arc::new(Common {
            subject,
            targets: Mutex::new(targets.into()),
            publisher: Mutex::default(),
            published: AtomicU64::new(0),
            server: AtomicUsize::new(0),
        })
    }

    pub(super) fn targets(&self) -> Arc<[Followed]> {
        Arc::clone(&self.targets.lock())
    }

    pub(super) fn set_targets(&self, targets: Vec<Followed>) {
        *self.targets.lock() = targets.into();
    }

    /// Reads once, beside a blocking query that is under way. `Ok(Some)`: once more then. `Err`:
    /// no believable answer.
    pub(super) fn read_beside(&self, tools: &mut Tools<'_>) -> Result<Option<Instant>, Failure> {
        let subject = &*self.subject;
        let before = self.published.load(Ordering::SeqCst);
        let server = self.server.load(Ordering::Relaxed);
        let fetch = Fetch { server, index: None, wait: subject.timing.wait, probe: false };
        let Some((index, _, instances)) = ask(tools.client, subject, fetch, View::Full)? else {
            return Ok(None);
        };
        let targets = self.targets();
        let mut publisher = self.publisher.lock();
        if self.published.load(Ordering::SeqCst) != before {
            // What the watch itself has published, to all targets, may be newer.
            return Ok(None);
        }
        let prepared =
            publisher.prepare(subject, &targets, (index, &instances), tools.resolver, tools.sink);
        let is_nothing = instances.good.is_empty() && instances.skipped.is_empty();
        if prepared.is_confirmed() && !vouch(tools.client, subject, server, is_nothing)? {
            return Ok(None);
        }
        publisher.publish(&prepared, tools.sink);
        let good = Good { index, server, mode: Mode::Blocking };
        good.report(&targets, Some(&prepared), tools.sink);
        Ok(prepared.again())
    }
}

/// What is reported of a good answer.
#[derive(Clone, Copy)]
struct Good {
    index: u64,
    server: usize,
    mode: Mode,
}

impl Good {
    fn report(self, targets: &[Followed], prepared: Option<&Prepared>, sink: &dyn Sink) {
        let Good { index, server, mode } = self;
        for target in targets.iter().filter(|target| !target.is_gone()) {
            let pending = prepared.and_then(|prepared| prepared.pending(target.number));
            sink.report(target.number, &Report::Good { index, server, mode, pending });
        }
    }
}

/// One watch and all that it remembers.
pub(super) struct Job {
    common: Arc<Common>,
    pub(super) watch: Watch,
    rng: SmallRng,
    /// The last full answer that says all there is to say: server, index and when it was asked for.
    seen: Option<(usize, u64, Instant)>,
    /// By [`overview::key`].
    nodes: Vec<u64>,
    /// The next read has to be a full one.
    pub(super) must_read: bool,
    /// How the service is followed now.
    pub(super) mode: Mode,
    /// Longest `wait` now.
    pub(super) patience: Option<Duration>,
    /// The same because of the last answer: host names have to be looked up again.
    limit: Option<Duration>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    /// The engine ends.
    Stopped,
    /// Perhaps with an answer; `changed` if it says something else than the one before.
    Done { changed: bool },
}

impl Job {
    pub(super) fn new(common: &Arc<Common>) -> Self {
        Job {
            common: Arc::clone(common),
            watch: new_watch(&common.subject),
            rng: SmallRng::from_rng(&mut rand::rng()),
            seen: None,
            nodes: Vec::new(),
            must_read: false,
            mode: Mode::Blocking,
            patience: None,
            limit: None,
        }
    }

    /// Forgets what may be wrong after a panic, and pauses.
    pub(super) fn restart(&mut self) {
        let subject = &self.common.subject;
        self.watch = new_watch(subject);
        self.seen = None;
        let pause = subject.timing.retry_max.min(Duration::from_secs(5));
        self.watch.read_again(Instant::now() + pause);
    }

    pub(super) fn subject(&self) -> Arc<Subject> {
        Arc::clone(&self.common.subject)
    }

    /// Whether an instance of the last answer is on this node.
    pub(super) fn is_on(&self, node: u64) -> bool {
        self.nodes.contains(&node)
    }

    /// One request and what follows from it.
    pub(super) fn run(&mut self, tools: &mut Tools<'_>) -> Ran {
        let now = Instant::now();
        let limits = self.patience.into_iter().chain(self.limit);
        self.watch.limit_wait(limits.min());
        let Step::Fetch(fetch) = self.watch.next(now) else { return Ran::Done { changed: false } };
        let common = Arc::clone(&self.common);
        match self.glance(&common.subject, fetch, now, tools) {
            Ok(Some(done)) => return done,
            Ok(None) => {}
            Err(failure) => return self.failed(&common, fetch, failure, tools.sink),
        }
        let asked = ask(tools.client, &common.subject, fetch, View::Full);
        tools.client.end_probe(asked.is_ok());
        let taken = asked.and_then(|answer| match answer {
            Some(answer) => self.take(&common, (fetch, now), answer, tools),
            None => Ok(Ran::Stopped),
        });
        taken.unwrap_or_else(|failure| self.failed(&common, fetch, failure, tools.sink))
    }

    /// Where the index alone can say that nothing has changed, asks only for that. `None` if all
    /// has to be read.
    fn glance(
        &mut self,
        subject: &Subject,
        fetch: Fetch,
        now: Instant,
        tools: &mut Tools<'_>,
    ) -> Result<Option<Ran>, Failure> {
        let query = &subject.query;
        // The agent's cache has entries of its own age for every set of parameters.
        let usable = has_tags(query.source) && query.consistency != Consistency::Cached;
        let Some((server, index, at)) = self.seen.filter(|_| usable && !self.must_read) else {
            return Ok(None);
        };
        if fetch.index.is_some() || fetch.probe || fetch.server != server || now - at > TRUST {
            return Ok(None);
        }
        match ask(tools.client, subject, fetch, View::Index)? {
            None => Ok(Some(Ran::Stopped)),
            Some((now_index, bytes, _)) if now_index == index => {
                let digest = self.watch.digest().unwrap_or_default();
                let answer = Answer::Good { index, digest, bytes };
                self.watch.answer(answer, Instant::now(), &mut self.rng);
                let good = Good { index, server, mode: self.mode };
                good.report(&self.common.targets(), None, tools.sink);
                Ok(Some(Ran::Done { changed: false }))
            }
            Some(_) => Ok(None),
        }
    }

    /// Takes a believable answer.
    fn take(
        &mut self,
        common: &Common,
        (fetch, sent): (Fetch, Instant),
        (index, bytes, instances): (u64, u64, Instances),
        tools: &mut Tools<'_>,
    ) -> Result<Ran, Failure> {
        let (subject, server, sink) = (&*common.subject, fetch.server, tools.sink);
        let targets = common.targets();
        let mut publisher = common.publisher.lock();
        let prepared =
            publisher.prepare(subject, &targets, (index, &instances), tools.resolver, sink);
        let is_nothing = instances.good.is_empty() && instances.skipped.is_empty();
        if prepared.is_confirmed() && !vouch(tools.client, subject, server, is_nothing)? {
            return Ok(Ran::Stopped);
        }
        let answer = Answer::Good { index, digest: digest(&instances.good), bytes };
        let outcome = self.watch.answer(answer, Instant::now(), &mut self.rng);
        told(subject, fetch, outcome, sink);
        let published = publisher.publish(&prepared, sink);
        common.published.fetch_add(1, Ordering::SeqCst);
        drop(publisher);
        common.server.store(server, Ordering::Relaxed);
        let waits = targets.iter().any(|target| prepared.pending(target.number).is_some());
        let settled = published && !waits && prepared.limit().is_none();
        self.seen = settled.then_some((server, index, sent));
        self.must_read = false;
        self.remember_nodes(&instances.good);
        self.limit = prepared.limit();
        if let Some(limit) = self.limit {
            self.watch.advance(sent + limit);
        }
        if let Some(at) = prepared.again() {
            self.watch.read_again(at);
        } else if !published {
            self.watch.read_again(Instant::now() + REFUSED);
        }
        Good { index, server, mode: self.mode }.report(&targets, Some(&prepared), sink);
        Ok(Ran::Done { changed: matches!(outcome, Outcome::Publish { changed: true, .. }) })
    }

    fn remember_nodes(&mut self, instances: &[Instance]) {
        self.nodes.clear();
        self.nodes.extend(instances.iter().map(|instance| overview::key(&instance.node)));
        self.nodes.sort_unstable();
        self.nodes.dedup();
        self.nodes.shrink_to_fit();
    }

    fn failed(&mut self, common: &Common, fetch: Fetch, failure: Failure, sink: &dyn Sink) -> Ran {
        self.seen = None;
        let now = Instant::now();
        match failure {
            // It was only worth a try.
            _ if fetch.probe => {
                self.watch.answer(Answer::Failed, now, &mut self.rng);
            }
            Failure::Reconnected => {
                self.watch.answer(Answer::Reconnected, now, &mut self.rng);
            }
            Failure::Refused(reason, error) => {
                let outcome = self.watch.answer(Answer::Failed, now, &mut self.rng);
                tell_failure(common, fetch, (reason, &error), outcome, sink);
            }
        }
        Ran::Done { changed: false }
    }
}

/// What the log says of an answer after failures.
fn told(subject: &Subject, fetch: Fetch, outcome: Outcome, sink: &dyn Sink) {
    let (name, server) = (query_name(&subject.query), &subject.endpoint.servers[fetch.server]);
    if let Outcome::Publish { outage: Some(outage), .. } = outcome {
        let line = format!("{name}: answers again after {outage:.1?}, server \"{server}\"");
        sink.log(Level::Notice, line);
    }
    if fetch.probe {
        let line = format!("{name}: the first server answers again, server \"{server}\"");
        sink.log(Level::Notice, line);
    }
}

fn tell_failure(
    common: &Common,
    fetch: Fetch,
    (reason, error): (Reason, &str),
    outcome: Outcome,
    sink: &dyn Sink,
) {
    let Outcome::Failed { failures, retry_in, round } = outcome else { return };
    let targets = common.targets();
    let heard = || targets.iter().filter(|target| !target.is_gone()).map(|target| target.number);
    if failures == 1 || round {
        let level = if failures == 1 { Level::Error } else { Level::Info };
        let server = &common.subject.endpoint.servers[fetch.server];
        let name = query_name(&common.subject.query);
        let retry = match retry_in.as_millis() {
            0 => "trying the next server".to_owned(),
            millis => format!("retrying in {millis}ms"),
        };
        let first = if heard().any(|target| sink.has_data(target)) {
            ""
        } else {
            ", it has never answered"
        };
        sink.log(level, format!("{name}: {error}, {retry}, server \"{server}\"{first}"));
    }
    for target in heard() {
        let server = fetch.server;
        sink.report(target, &Report::Failed { server, reason, error, failures, retry_in });
    }
}

fn new_watch(subject: &Subject) -> Watch {
    Watch::new(Settings {
        servers: subject.endpoint.servers.len(),
        wait: subject.timing.wait,
        retry_min: subject.timing.retry_min,
        retry_max: subject.timing.retry_max,
        sweep: None,
    })
}

/// How often to ask what can't be blocked on.
pub(super) fn poll(subject: &Subject) -> Option<Duration> {
    (subject.query.source == Source::Query).then_some(subject.timing.poll)
}
