//! One query, repeated: sends the request that the rules of blocking queries ask for, publishes the
//! answer and reports the result.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::outages::{Failing, Outages, Recovery};
use super::plan::Followed;
use super::publisher::{Prepared, Publisher};
use super::sink::{Report, Sink};
use crate::consul::blocking::{BlockingQuery, FetchResult, Outcome, Settings, Step};
use crate::consul::client::Client;
use crate::consul::endpoint::WatchedQuery;
use crate::consul::fetch::{Answer, Failure, fetch, verify_token};
use crate::consul::overview;
use crate::consul::query::{Fetch, ReadFrom, View, has_tags, may_be_copy};
use crate::model::{Consistency, Instance, Level, Mode, Pending, Reason, Source};
use crate::resolve::Resolve;

/// Pause before a set that the sink refused is read again; other services may have made room.
const REFUSED: Duration = Duration::from_secs(3);
/// How long an unchanged index stands for unchanged instances. Indices of different servers, or of
/// a state that was restored, can be equal by chance.
const TRUST_INDEX: Duration = Duration::from_secs(50);

/// What a thread works with.
pub(super) struct Context<'a> {
    pub(super) client: &'a mut Client,
    pub(super) resolver: &'a dyn Resolve,
    pub(super) sink: &'a dyn Sink,
    pub(super) outages: &'a Arc<Outages>,
}

/// A query with its targets, shared by all threads that read it.
pub(super) struct Subscription {
    pub(super) watched: Arc<WatchedQuery>,
    /// Its name in log lines.
    pub(super) name: String,
    targets: Mutex<Arc<[Followed]>>,
    /// Locked from the decision about an answer to its publication.
    publisher: Mutex<Publisher>,
}

impl Subscription {
    pub(super) fn new(
        watched: Arc<WatchedQuery>,
        name: String,
        targets: Vec<Followed>,
    ) -> Arc<Self> {
        let publisher = Mutex::new(Publisher::new(name.clone()));
        Arc::new(Subscription { watched, name, targets: Mutex::new(targets.into()), publisher })
    }

    pub(super) fn targets(&self) -> Arc<[Followed]> {
        Arc::clone(&self.targets.lock())
    }

    pub(super) fn set_targets(&self, targets: Vec<Followed>) {
        *self.targets.lock() = targets.into();
    }

    /// Reads once while a blocking query is under way in another thread. `Ok(Some)`: when to read
    /// again.
    pub(super) fn read_concurrently(
        &self,
        context: &mut Context<'_>,
    ) -> Result<Option<Instant>, Failure> {
        let watched = &*self.watched;
        let (before, from) = {
            let publisher = self.publisher.lock();
            (publisher.last, publisher.from())
        };
        let read = Fetch { from, ..Fetch::read(before.server, watched.timing.wait) };
        let Some(answer) = fetch(context.client, watched, read, View::Full)? else {
            return Ok(None);
        };
        let mut publisher = self.publisher.lock();
        let digest = answer.digest();
        if publisher.last != before || answer.is_copy && publisher.is_outdated(answer.index, digest)
        {
            // The blocking query has published meanwhile, which may be newer.
            return Ok(None);
        }
        let published = self.publish(&mut publisher, (&answer, digest), before.server, context)?;
        let Some((prepared, _)) = published else { return Ok(None) };
        let good = (answer.index, before.server, Mode::Blocking);
        report_good(good, prepared.targets(), context.sink);
        Ok(prepared.read_again_at())
    }

    /// Publishes an answer as far as the policies allow; `None` if the watcher stops, `false` if the
    /// sink refused a set.
    fn publish(
        &self,
        publisher: &mut Publisher,
        (answer, digest): (&Answer, u128),
        server: usize,
        context: &mut Context<'_>,
    ) -> Result<Option<(Prepared, bool)>, Failure> {
        let (watched, targets) = (&*self.watched, self.targets());
        let found = (answer.index, &answer.instances, !answer.is_copy);
        let prepared = publisher.prepare(watched, &targets, found, context.resolver, context.sink);
        let is_confirmed = prepared.is_confirmed();
        if is_confirmed && !verify_token(context.client, watched, server, answer.is_empty())? {
            return Ok(None);
        }
        let is_published = publisher.publish(&prepared, context.sink);
        publisher.note((answer.index, digest, answer.is_copy), server);
        Ok(Some((prepared, is_published)))
    }
}

/// Reports a good answer: its index, the server and how changes are seen.
pub(super) fn report_good<'a>(
    (index, server, mode): (u64, usize, Mode),
    targets: impl Iterator<Item = (&'a Followed, Option<Pending>)>,
    sink: &dyn Sink,
) {
    for (target, pending) in targets.filter(|(target, _)| !target.is_gone()) {
        sink.report(target.number, &Report::Good { index, server, mode, pending });
    }
}

/// The repetition of a subscription's query. One thread has it at a time.
pub(super) struct QueryLoop {
    subscription: Arc<Subscription>,
    pub(super) rules: BlockingQuery,
    rng: SmallRng,
    /// The last full answer, if all of it is published: server, index and when it was asked for.
    complete: Option<(usize, u64, Instant)>,
    /// Nodes of the instances, by [`overview::key`].
    nodes: Vec<u64>,
    /// The next read has to be a full one.
    pub(super) must_read: bool,
    /// How changes are seen now.
    pub(super) mode: Mode,
    /// Longest `wait`, since the service may be dropped soon.
    pub(super) wait_limit: Option<Duration>,
    /// Longest `wait`, since host names have to be looked up again.
    max_wait: Option<Duration>,
    failing: Option<Failing>,
}

impl QueryLoop {
    pub(super) fn new(subscription: &Arc<Subscription>) -> Self {
        QueryLoop {
            subscription: Arc::clone(subscription),
            rules: rules_of(&subscription.watched),
            rng: SmallRng::from_rng(&mut rand::rng()),
            complete: None,
            nodes: Vec::new(),
            must_read: false,
            mode: Mode::Blocking,
            wait_limit: None,
            max_wait: None,
            failing: None,
        }
    }

    /// Resets what may be wrong after a panic, and pauses.
    pub(super) fn restart(&mut self) {
        let watched = &self.subscription.watched;
        self.rules = rules_of(watched);
        (self.complete, self.failing) = (None, None);
        let pause = watched.timing.retry_max.min(Duration::from_secs(5));
        self.rules.read_again(Instant::now() + pause);
    }

    /// Its name in log lines.
    pub(super) fn name(&self) -> String {
        self.subscription.name.clone()
    }

    pub(super) fn watched(&self) -> &WatchedQuery {
        &self.subscription.watched
    }

    /// Whether an instance of the last answer is on this node.
    pub(super) fn is_on(&self, node: u64) -> bool {
        self.nodes.contains(&node)
    }

    /// Sends one request and handles its result; `None` if the watcher stops.
    pub(super) fn run(&mut self, context: &mut Context<'_>) -> Option<()> {
        let now = Instant::now();
        let limits = self.wait_limit.into_iter().chain(self.max_wait);
        self.rules.limit_wait(limits.min());
        let Step::Fetch(mut fetch) = self.rules.next(now) else { return Some(()) };
        let subscription = Arc::clone(&self.subscription);
        if fetch.index.is_none() {
            fetch.from = fetch.from.max(subscription.publisher.lock().from());
        }
        let ran = match self.fetch(&subscription, fetch, now, context) {
            Ok(ran) => ran,
            Err(failure) => {
                self.on_failure(fetch, &failure, context);
                Some(())
            }
        };
        if let Some(change) = self.rules.take_copy_change() {
            let server = self.server_name(fetch.server);
            let name = self.name();
            context.outages.note_copy_change(&server, name, change, Instant::now());
        }
        ran
    }

    /// Asks for the index alone if that can show that nothing has changed, else for the instances.
    fn fetch(
        &mut self,
        subscription: &Subscription,
        request: Fetch,
        now: Instant,
        context: &mut Context<'_>,
    ) -> Result<Option<()>, Failure> {
        let (watched, server) = (&subscription.watched, request.server);
        if let Some(index) = self.index_to_compare(request, now) {
            let Some(answer) = fetch(context.client, watched, request, View::Index)? else {
                return Ok(None);
            };
            if answer.index == index {
                let digest = self.rules.digest().unwrap_or_default();
                self.on_good(request, &answer, digest, context);
                let targets = subscription.targets();
                let targets = targets.iter().map(|followed| (followed, None));
                report_good((index, server, self.mode()), targets, context.sink);
                return Ok(Some(()));
            }
        }
        match fetch(context.client, watched, request, View::Full)? {
            Some(answer) => self.take(subscription, (request, now), &answer, context),
            None => Ok(None),
        }
    }

    /// The index that, unless it has changed, shows that no instance has.
    fn index_to_compare(&self, fetch: Fetch, now: Instant) -> Option<u64> {
        let query = &self.watched().query;
        // The agent's cache has entries of different age for different parameters.
        let is_usable = has_tags(query.source) && query.consistency != Consistency::Cached;
        let (server, index, at) = self.complete.filter(|_| is_usable && !self.must_read)?;
        let verifies = fetch.from == ReadFrom::Leader;
        let is_other = fetch.index.is_some() || fetch.probe || verifies || fetch.server != server;
        (!is_other && now - at <= TRUST_INDEX).then_some(index)
    }

    /// Takes a valid answer.
    fn take(
        &mut self,
        subscription: &Subscription,
        (fetch, sent): (Fetch, Instant),
        answer: &Answer,
        context: &mut Context<'_>,
    ) -> Result<Option<()>, Failure> {
        let (server, index, digest) = (fetch.server, answer.index, answer.digest());
        let mut publisher = subscription.publisher.lock();
        if answer.is_copy && publisher.is_outdated(index, digest) {
            self.rules.on_result(FetchResult::Outdated, Instant::now(), &mut self.rng);
            for target in subscription.targets().iter().filter(|target| !target.is_gone()) {
                let reason = Reason::Outdated;
                context.sink.report(target.number, &Report::Ignored { reason });
            }
            return Ok(Some(()));
        }
        let published = subscription.publish(&mut publisher, (answer, digest), server, context)?;
        drop(publisher);
        let Some((prepared, is_published)) = published else { return Ok(None) };
        self.on_good(fetch, answer, digest, context);
        let is_pending = prepared.targets().any(|(_, pending)| pending.is_some());
        let is_complete = is_published && !is_pending && prepared.max_wait().is_none();
        self.complete = is_complete.then_some((server, index, sent));
        self.must_read = false;
        self.remember_nodes(&answer.instances.good);
        self.max_wait = prepared.max_wait();
        if let Some(max_wait) = self.max_wait {
            self.rules.poll_by(sent + max_wait);
        }
        if let Some(at) = prepared.read_again_at() {
            self.rules.read_again(at);
        } else if !is_published {
            self.rules.read_again(Instant::now() + REFUSED);
        }
        report_good((index, server, self.mode()), prepared.targets(), context.sink);
        Ok(Some(()))
    }

    /// Passes a good answer to the rules, and logs what it ends.
    fn on_good(&mut self, fetch: Fetch, answer: &Answer, digest: u128, context: &Context<'_>) {
        let &Answer { index, bytes, is_copy, .. } = answer;
        let good = FetchResult::Good { index, digest, bytes, is_copy };
        let outcome = self.rules.on_result(good, Instant::now(), &mut self.rng);
        let (name, server) = (self.name(), self.server_name(fetch.server));
        if fetch.probe {
            let line = format!("{name}: using the first server again, server \"{server}\"");
            context.sink.log(Level::Notice, line);
        }
        if let Outcome::Publish { outage: Some(outage), .. } = outcome {
            let without_streaming = self.rules.avoids_copies();
            if let Some(failing) = self.failing.take() {
                failing.end(name, Recovery { outage, without_streaming, server }, Instant::now());
            }
        }
    }

    /// How changes are seen now.
    fn mode(&self) -> Mode {
        match self.rules.polls() {
            true => Mode::Polling { delay: self.watched().timing.poll },
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

    /// Passes a failure to the rules, and logs and reports it.
    fn on_failure(&mut self, fetch: Fetch, failure: &Failure, context: &mut Context<'_>) {
        self.complete = None;
        let now = Instant::now();
        let outcome = self.rules.on_result(failure.result(), now, &mut self.rng);
        let (Outcome::Failed { .. }, Failure::Failed(reason, error)) = (outcome, failure) else {
            return;
        };
        let next = self.server_name(self.rules.server());
        let at = self.rules.due().map_or(now, |due| due.max(now));
        self.rules.pause_until(context.outages.reserve_read(&next, at, &mut self.rng));
        self.report_failure(fetch, (*reason, error), outcome, context);
    }

    fn report_failure(
        &mut self,
        fetch: Fetch,
        (reason, error): (Reason, &str),
        outcome: Outcome,
        context: &Context<'_>,
    ) {
        let Outcome::Failed { failures, retry_in, round } = outcome else { return };
        let (sink, targets) = (context.sink, self.subscription.targets());
        let targets =
            || targets.iter().filter(|target| !target.is_gone()).map(|target| target.number);
        let (name, server) = (self.name(), self.server_name(fetch.server));
        let retry = match retry_in.as_millis() {
            0 if self.rules.server() != fetch.server => "trying the next server".to_owned(),
            millis => format!("retrying in {millis}ms"),
        };
        let has_data = targets().any(|target| sink.has_data(target));
        match &self.failing {
            None => {
                let what = (retry, has_data);
                let failing = context.outages.begin(&server, (name, error), what, Instant::now());
                self.failing = Some(failing);
            }
            Some(failing) if round && failing.is_logged() => {
                let first = if has_data { "" } else { ", no answer so far" };
                let line = format!("{name}: {error}, {retry}, server \"{server}\"{first}");
                sink.log(Level::Info, line);
            }
            Some(_) => {}
        }
        for target in targets() {
            let server = fetch.server;
            sink.report(target, &Report::Failed { server, reason, error, failures, retry_in });
        }
    }

    /// URL of a server, for log lines.
    fn server_name(&self, server: usize) -> String {
        self.watched().endpoint.servers[server].to_string()
    }
}

fn rules_of(watched: &WatchedQuery) -> BlockingQuery {
    BlockingQuery::new(Settings {
        servers: watched.endpoint.servers.len(),
        wait: watched.timing.wait,
        retry_min: watched.timing.retry_min,
        retry_max: watched.timing.retry_max,
        poll_interval: None,
        fallback_interval: watched.timing.poll,
        can_avoid_copies: may_be_copy(&watched.query),
        may_lag: matches!(watched.query.consistency, Consistency::Stale | Consistency::Cached),
    })
}

/// How often to execute a query that can't block.
pub(super) fn poll_interval(watched: &WatchedQuery) -> Option<Duration> {
    (watched.query.source == Source::Query).then_some(watched.timing.poll)
}
