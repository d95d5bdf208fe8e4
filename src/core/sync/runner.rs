//! Carries out what the rules of a watch say.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use self::report::Good;
use super::asking::{Failure, Reply, ask, digest, vouch};
use super::names::query_name;
use super::outages::{Failing, Outages};
use super::plan::{Followed, Subject};
use super::publisher::{Prepared, Publisher};
use super::{Mode, Report, Sink};
use crate::consul::client::Client;
use crate::consul::gate::Reason;
use crate::consul::overview;
use crate::consul::query::{ReadFrom, View, has_tags, may_be_copy};
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
    pub(super) outages: &'a Arc<Outages>,
}

/// What all who work on a watch share.
pub(super) struct Common {
    pub(super) subject: Arc<Subject>,
    targets: Mutex<Arc<[Followed]>>,
    /// Locked from the judging of an answer to its publication.
    publisher: Mutex<Publisher>,
    /// A removal waits to be confirmed, which no copy of the state can.
    confirms: AtomicBool,
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
            confirms: AtomicBool::new(false),
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

    /// A read has to come from a server now if it could come from a copy of the state.
    fn from(&self) -> ReadFrom {
        match self.confirms.load(Ordering::Relaxed) {
            true => ReadFrom::Server,
            false => ReadFrom::Anywhere,
        }
    }

    /// Reads once, beside a blocking query that is under way. `Ok(Some)`: once more then. `Err`:
    /// no believable answer.
    pub(super) fn read_beside(&self, tools: &mut Tools<'_>) -> Result<Option<Instant>, Failure> {
        let subject = &*self.subject;
        let before = self.published.load(Ordering::SeqCst);
        let server = self.server.load(Ordering::Relaxed);
        let fetch = Fetch { from: self.from(), ..Fetch::read(server, subject.timing.wait) };
        let Some(reply) = ask(tools.client, subject, fetch, View::Full)? else {
            return Ok(None);
        };
        let mut publisher = self.publisher.lock();
        let digest = digest(&reply.instances.good);
        if self.published.load(Ordering::SeqCst) != before {
            // What the watch itself has published may be newer. Who joined just then has missed it.
            let has_missed = |target: &Followed| !tools.sink.has_data(target.number);
            let missed =
                self.targets().iter().any(|target| !target.is_gone() && has_missed(target));
            return Ok(missed.then(Instant::now));
        }
        if reply.is_copy && publisher.is_outdated(reply.index, digest) {
            return Ok(None);
        }
        let Some(put) = self.put(&mut publisher, (&reply, digest), server, tools)? else {
            return Ok(None);
        };
        let good = Good { index: reply.index, server, mode: Mode::Blocking };
        good.report(&put.targets, Some(&put.prepared), tools.sink);
        Ok(put.prepared.again())
    }

    /// Puts a reply in force as far as the policies allow; `None` if the engine ends.
    fn put(
        &self,
        publisher: &mut Publisher,
        (reply, digest): (&Reply, u128),
        server: usize,
        tools: &mut Tools<'_>,
    ) -> Result<Option<Put>, Failure> {
        let (subject, targets) = (&*self.subject, self.targets());
        let answer = (reply.index, &reply.instances, !reply.is_copy);
        let prepared = publisher.prepare(subject, &targets, answer, tools.resolver, tools.sink);
        if prepared.is_confirmed() && !vouch(tools.client, subject, server, reply.is_empty())? {
            return Ok(None);
        }
        let is_in_force = publisher.publish(&prepared, tools.sink);
        publisher.note(reply.index, digest, reply.is_copy);
        self.confirms.store(publisher.is_waiting(), Ordering::Relaxed);
        Ok(Some(Put { targets, prepared, is_in_force }))
    }
}

/// What has become of a reply.
struct Put {
    targets: Arc<[Followed]>,
    prepared: Prepared,
    /// No set was refused.
    is_in_force: bool,
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
    failing: Option<Failing>,
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
            failing: None,
        }
    }

    /// Forgets what may be wrong after a panic, and pauses.
    pub(super) fn restart(&mut self) {
        let subject = &self.common.subject;
        self.watch = new_watch(subject);
        (self.seen, self.failing) = (None, None);
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
        let Step::Fetch(mut fetch) = self.watch.next(now) else {
            return Ran::Done { changed: false };
        };
        let common = Arc::clone(&self.common);
        if fetch.index.is_none() {
            fetch.from = fetch.from.max(common.from());
        }
        match self.glance(&common.subject, fetch, now, tools) {
            Ok(Some(done)) => return done,
            Ok(None) => {}
            Err(failure) => return self.failed(&common, fetch, &failure, tools),
        }
        let asked = ask(tools.client, &common.subject, fetch, View::Full);
        tools.client.end_probe(asked.is_ok());
        let taken = asked.and_then(|reply| match reply {
            Some(reply) => self.take(&common, (fetch, now), &reply, tools),
            None => Ok(Ran::Stopped),
        });
        let ran = taken.unwrap_or_else(|failure| self.failed(&common, fetch, &failure, tools));
        if let Some(turn) = self.watch.take_turn() {
            let server = common.subject.endpoint.servers[fetch.server].to_string();
            let name = query_name(&common.subject.query);
            tools.outages.note_turn(&server, name, turn, Instant::now());
        }
        ran
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
        let verifies = fetch.from == ReadFrom::Leader;
        let is_other = fetch.index.is_some() || fetch.probe || verifies || fetch.server != server;
        if is_other || now - at > TRUST {
            return Ok(None);
        }
        match ask(tools.client, subject, fetch, View::Index)? {
            None => Ok(Some(Ran::Stopped)),
            Some(reply) if reply.index == index => {
                let digest = self.watch.digest().unwrap_or_default();
                let Reply { bytes, is_copy, .. } = reply;
                let answer = Answer::Good { index, digest, bytes, is_copy };
                let outcome = self.watch.answer(answer, Instant::now(), &mut self.rng);
                self.log_good(fetch, outcome, tools);
                let good = Good { index, server, mode: self.mode() };
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
        reply: &Reply,
        tools: &mut Tools<'_>,
    ) -> Result<Ran, Failure> {
        let server = fetch.server;
        let &Reply { index, bytes, is_copy, .. } = reply;
        let digest = digest(&reply.instances.good);
        let mut publisher = common.publisher.lock();
        if is_copy && publisher.is_outdated(index, digest) {
            self.watch.answer(Answer::Outdated, Instant::now(), &mut self.rng);
            for target in common.targets().iter().filter(|target| !target.is_gone()) {
                let reason = Reason::Outdated;
                tools.sink.report(target.number, &Report::Ignored { reason });
            }
            return Ok(Ran::Done { changed: false });
        }
        let Some(put) = common.put(&mut publisher, (reply, digest), server, tools)? else {
            return Ok(Ran::Stopped);
        };
        common.published.fetch_add(1, Ordering::SeqCst);
        drop(publisher);
        let Put { targets, prepared, is_in_force } = put;
        let answer = Answer::Good { index, digest, bytes, is_copy };
        let outcome = self.watch.answer(answer, Instant::now(), &mut self.rng);
        self.log_good(fetch, outcome, tools);
        common.server.store(server, Ordering::Relaxed);
        let waits = targets.iter().any(|target| prepared.pending(target.number).is_some());
        let settled = is_in_force && !waits && prepared.limit().is_none();
        self.seen = settled.then_some((server, index, sent));
        self.must_read = false;
        self.remember_nodes(&reply.instances.good);
        self.limit = prepared.limit();
        if let Some(limit) = self.limit {
            self.watch.advance(sent + limit);
        }
        if let Some(at) = prepared.again() {
            self.watch.read_again(at);
        } else if !is_in_force {
            self.watch.read_again(Instant::now() + REFUSED);
        }
        let good = Good { index, server, mode: self.mode() };
        good.report(&targets, Some(&prepared), tools.sink);
        Ok(Ran::Done { changed: matches!(outcome, Outcome::Publish { changed: true, .. }) })
    }

    /// How changes are seen now.
    fn mode(&self) -> Mode {
        match self.watch.polls() {
            true => Mode::Sweep { delay: self.common.subject.timing.poll },
            false => self.mode,
        }
    }

    fn remember_nodes(&mut self, instances: &[Instance]) {
        self.nodes.clear();
        self.nodes.extend(instances.iter().map(|instance| overview::key(&instance.node)));
        self.nodes.sort_unstable();
        self.nodes.dedup();
        self.nodes.shrink_to_fit();
    }

    fn failed(
        &mut self,
        common: &Common,
        fetch: Fetch,
        failure: &Failure,
        tools: &mut Tools<'_>,
    ) -> Ran {
        self.seen = None;
        let now = Instant::now();
        let outcome = self.watch.answer(failure.answer(), now, &mut self.rng);
        if let (Outcome::Failed { .. }, Failure::Refused(reason, error)) = (outcome, failure) {
            let next = &common.subject.endpoint.servers[self.watch.server()].to_string();
            let at = self.watch.due().map_or(now, |due| due.max(now));
            self.watch.pause_until(tools.outages.turn(next, at, &mut self.rng));
            self.report_failure(fetch, (*reason, error), outcome, tools);
        }
        Ran::Done { changed: false }
    }
}

fn new_watch(subject: &Subject) -> Watch {
    Watch::new(Settings {
        servers: subject.endpoint.servers.len(),
        wait: subject.timing.wait,
        retry_min: subject.timing.retry_min,
        retry_max: subject.timing.retry_max,
        sweep: None,
        poll: subject.timing.poll,
        can_avoid_copies: may_be_copy(&subject.query),
        may_lag: matches!(subject.query.consistency, Consistency::Stale | Consistency::Cached),
    })
}

/// How often to ask what can't be blocked on.
pub(super) fn poll(subject: &Subject) -> Option<Duration> {
    (subject.query.source == Source::Query).then_some(subject.timing.poll)
}

mod report;
