//! Carries out what the rules of a watch say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::SmallRng;

pub(super) use self::report::report_good;
use super::fetch::{Failure, Reply, ask, digest, vouch};
use super::log_labels::query_name;
use super::outages::{Failing, Outages};
use super::plan::{Followed, WatchedQuery};
use super::publisher::{Prepared, Publisher};
use super::{Report, Sink};
use crate::consul::blocking::{Answer, Fetch, Outcome, Settings, Step, Watch};
use crate::consul::client::Client;
use crate::consul::overview;
use crate::consul::query::{ReadFrom, View, has_tags, may_be_copy};
use crate::model::{Consistency, Instance, Mode, Reason, Source};
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
    pub(super) watched: Arc<WatchedQuery>,
    targets: Mutex<Arc<[Followed]>>,
    /// Locked from the judging of an answer to its publication.
    publisher: Mutex<Publisher>,
}

impl Common {
    pub(super) fn new(watched: Arc<WatchedQuery>, targets: Vec<Followed>) -> Arc<Self> {
        Arc::new(Common {
            watched,
            targets: Mutex::new(targets.into()),
            publisher: Mutex::default(),
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
        let watched = &*self.watched;
        let (before, from) = {
            let publisher = self.publisher.lock();
            (publisher.last, publisher.from())
        };
        let fetch = Fetch { from, ..Fetch::read(before.server, watched.timing.wait) };
        let Some(reply) = ask(tools.client, watched, fetch, View::Full)? else {
            return Ok(None);
        };
        let mut publisher = self.publisher.lock();
        let digest = digest(&reply.instances.good);
        if publisher.last != before || reply.is_copy && publisher.is_outdated(reply.index, digest) {
            // What the watch itself has published, to all targets, may be newer.
            return Ok(None);
        }
        let put = self.put(&mut publisher, (&reply, digest), before.server, tools)?;
        let Some((prepared, _)) = put else { return Ok(None) };
        let good = (reply.index, before.server, Mode::Blocking);
        report_good(good, prepared.targets(), tools.sink);
        Ok(prepared.again())
    }

    /// Puts a reply in force as far as the policies allow; `None` if the engine ends, `false` if a
    /// set was refused.
    fn put(
        &self,
        publisher: &mut Publisher,
        (reply, digest): (&Reply, u128),
        server: usize,
        tools: &mut Tools<'_>,
    ) -> Result<Option<(Prepared, bool)>, Failure> {
        let (watched, targets) = (&*self.watched, self.targets());
        let answer = (reply.index, &reply.instances, !reply.is_copy);
        let prepared = publisher.prepare(watched, &targets, answer, tools.resolver, tools.sink);
        if prepared.is_confirmed() && !vouch(tools.client, watched, server, reply.is_empty())? {
            return Ok(None);
        }
        let is_in_force = publisher.publish(&prepared, tools.sink);
        publisher.note((reply.index, digest, reply.is_copy), server);
        Ok(Some((prepared, is_in_force)))
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
    /// Longest `wait` because of the last answer: host names have to be looked up again.
    limit: Option<Duration>,
    failing: Option<Failing>,
}

impl Job {
    pub(super) fn new(common: &Arc<Common>) -> Self {
        Job {
            common: Arc::clone(common),
            watch: new_watch(&common.watched),
            rng: SmallRng::from_rng(&mut rand::rng()),
            seen: None,
            nodes: Vec::new(),
            must_read: false,
            mode: Mode::Blocking,
            limit: None,
            failing: None,
        }
    }

    /// Forgets what may be wrong after a panic, and pauses.
    pub(super) fn restart(&mut self) {
        let watched = &self.common.watched;
        self.watch = new_watch(watched);
        (self.seen, self.failing) = (None, None);
        let pause = watched.timing.retry_max.min(Duration::from_secs(5));
        self.watch.read_again(Instant::now() + pause);
    }

    pub(super) fn watched_query(&self) -> Arc<WatchedQuery> {
        Arc::clone(&self.common.watched)
    }

    /// Whether an instance of the last answer is on this node.
    pub(super) fn is_on(&self, node: u64) -> bool {
        self.nodes.contains(&node)
    }

    /// One request and what follows from it; `None` if the engine ends.
    pub(super) fn run(&mut self, tools: &mut Tools<'_>) -> Option<()> {
        let now = Instant::now();
        self.watch.limit_wait(self.limit);
        let Step::Fetch(mut fetch) = self.watch.next(now) else { return Some(()) };
        let common = Arc::clone(&self.common);
        if fetch.index.is_none() {
            fetch.from = fetch.from.max(common.publisher.lock().from());
        }
        let ran = match self.fetch(&common, fetch, now, tools) {
            Ok(ran) => ran,
            Err(failure) => {
                self.failed(&common, fetch, &failure, tools);
                Some(())
            }
        };
        if let Some(turn) = self.watch.take_turn() {
            let server = common.watched.endpoint.servers[fetch.server].to_string();
            let name = query_name(&common.watched.query);
            tools.outages.note_turn(&server, name, turn, Instant::now());
        }
        ran
    }

    /// Asks for the index alone where that can say that nothing has changed, or for all there is.
    fn fetch(
        &mut self,
        common: &Common,
        fetch: Fetch,
        now: Instant,
        tools: &mut Tools<'_>,
    ) -> Result<Option<()>, Failure> {
        let (watched, server) = (&common.watched, fetch.server);
        if let Some(index) = self.index_to_check(fetch, now) {
            let Some(reply) = ask(tools.client, watched, fetch, View::Index)? else {
                return Ok(None);
            };
            if reply.index == index {
                let digest = self.watch.digest().unwrap_or_default();
                let Reply { bytes, is_copy, .. } = reply;
                let answer = Answer::Good { index, digest, bytes, is_copy };
                let outcome = self.watch.answer(answer, Instant::now(), &mut self.rng);
                self.log_good(fetch, outcome, tools);
                let targets = common.targets();
                let targets = targets.iter().map(|followed| (followed, None));
                report_good((index, server, self.mode()), targets, tools.sink);
                return Ok(Some(()));
            }
        }
        let reply = ask(tools.client, watched, fetch, View::Full);
        let Some(reply) = reply? else { return Ok(None) };
        self.take(common, (fetch, now), &reply, tools)
    }

    /// The index that says, if it has not moved, that nothing has changed.
    fn index_to_check(&self, fetch: Fetch, now: Instant) -> Option<u64> {
        let query = &self.common.watched.query;
        // The agent's cache has entries of its own age for every set of parameters.
        let usable = has_tags(query.source) && query.consistency != Consistency::Cached;
        let (server, index, at) = self.seen.filter(|_| usable && !self.must_read)?;
        let verifies = fetch.from == ReadFrom::Leader;
        let is_other = fetch.index.is_some() || fetch.probe || verifies || fetch.server != server;
        (!is_other && now - at <= TRUST).then_some(index)
    }

    /// Takes a believable answer.
    fn take(
        &mut self,
        common: &Common,
        (fetch, sent): (Fetch, Instant),
        reply: &Reply,
        tools: &mut Tools<'_>,
    ) -> Result<Option<()>, Failure> {
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
            return Ok(Some(()));
        }
        let put = common.put(&mut publisher, (reply, digest), server, tools)?;
        drop(publisher);
        let Some((prepared, is_in_force)) = put else { return Ok(None) };
        let answer = Answer::Good { index, digest, bytes, is_copy };
        let outcome = self.watch.answer(answer, Instant::now(), &mut self.rng);
        self.log_good(fetch, outcome, tools);
        let waits = prepared.targets().any(|(_, pending)| pending.is_some());
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
        report_good((index, server, self.mode()), prepared.targets(), tools.sink);
        Ok(Some(()))
    }

    /// How changes are seen now.
    fn mode(&self) -> Mode {
        match self.watch.polls() {
            true => Mode::Polling { delay: self.common.watched.timing.poll },
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

    fn failed(&mut self, common: &Common, fetch: Fetch, failure: &Failure, tools: &mut Tools<'_>) {
        self.seen = None;
        let now = Instant::now();
        let outcome = self.watch.answer(failure.answer(), now, &mut self.rng);
        if let (Outcome::Failed { .. }, Failure::Refused(reason, error)) = (outcome, failure) {
            let next = &common.watched.endpoint.servers[self.watch.server()].to_string();
            let at = self.watch.due().map_or(now, |due| due.max(now));
            self.watch.pause_until(tools.outages.turn(next, at, &mut self.rng));
            self.report_failure(fetch, (*reason, error), outcome, tools);
        }
    }
}

fn new_watch(watched: &WatchedQuery) -> Watch {
    Watch::new(Settings {
        servers: watched.endpoint.servers.len(),
        wait: watched.timing.wait,
        retry_min: watched.timing.retry_min,
        retry_max: watched.timing.retry_max,
        sweep: None,
        poll: watched.timing.poll,
        can_avoid_copies: may_be_copy(&watched.query),
        may_lag: matches!(watched.query.consistency, Consistency::Stale | Consistency::Cached),
    })
}

/// How often to ask what can't be blocked on.
pub(super) fn poll(watched: &WatchedQuery) -> Option<Duration> {
    (watched.query.source == Source::Query).then_some(watched.timing.poll)
}

mod report;
