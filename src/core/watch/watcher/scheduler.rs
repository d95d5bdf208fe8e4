//! Which work is due: the threads take their tasks from here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::ConnectionBudget;
use super::connection_plan::{ConnectionPlan, Load};
use super::reads::Reads;
use super::scopes::Scopes;
use super::task::{Entry, Key, Task};
use super::thread_counts::ThreadCounts;
use crate::consul::endpoint::WatchedQuery;
use crate::consul::overview;
use crate::model::{Connections, Limit, Mode};
use crate::watch::log_labels::query_name;
use crate::watch::overview_watch::overview_query;
use crate::watch::plan::Followed;
use crate::watch::subscription::{QueryLoop, Subscription, poll_interval};

/// How often a service is read that overview watches cover, even if they show no change.
const TRIGGERED: Duration = Duration::from_secs(60);
/// The blocking queries of a service that is followed on demand are short until this time has passed:
/// it may be dropped again by then, and Consul would go on with the query.
const NEW: Duration = Duration::from_secs(3);
const SHORT: Duration = Duration::from_secs(1);
/// How many due tasks are looked at for one with the server that a thread is connected to.
const NEIGHBOURS: usize = 16;

/// All subscriptions of a watcher, and when they are due.
pub(super) struct Scheduler {
    pub(super) entries: BTreeMap<u64, Entry>,
    by_query: HashMap<Arc<WatchedQuery>, u64>,
    of_target: HashMap<usize, u64>,
    next_id: u64,
    queue: BTreeSet<(Instant, Key)>,
    pub(super) scopes: Scopes,
    pub(super) plan: ConnectionPlan,
    pub(super) budget: ConnectionBudget,
    /// When the last read of the full poll under way is due.
    pub(super) full_poll_until: Instant,
    /// Blocking queries under way, and how many of them are about single services.
    pub(super) blocking: usize,
    blocking_services: usize,
    /// The longest time that one of them may last.
    longest_wait: Duration,
    reads: Reads,
    pub(super) threads: ThreadCounts,
    /// The supervisor has something to do.
    pub(super) is_called: bool,
    pub(super) is_stopping: bool,
}

impl Scheduler {
    pub(super) fn new(now: Instant) -> Self {
        let nothing = (0, Limit::Configured);
        let (budget, available, watches) = (0, 0, 0);
        let load = Load { budget, available, most: nothing, watches, scopes: Vec::new() };
        Scheduler {
            entries: BTreeMap::new(),
            by_query: HashMap::new(),
            of_target: HashMap::new(),
            next_id: 0,
            queue: BTreeSet::new(),
            scopes: Scopes::default(),
            plan: ConnectionPlan::of(&load),
            budget: ConnectionBudget::new(now),
            full_poll_until: now,
            blocking: 0,
            blocking_services: 0,
            longest_wait: Duration::ZERO,
            reads: Reads::default(),
            threads: ThreadCounts::default(),
            is_called: false,
            is_stopping: false,
        }
    }

    /// Adds a query with its targets; gives its number.
    pub(super) fn add(
        &mut self,
        watched: &Arc<WatchedQuery>,
        name: String,
        targets: Vec<Followed>,
        now: Instant,
    ) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.of_target.extend(targets.iter().map(|target| (target.number, id)));
        let scope = overview_query(watched).map(|watched| self.scopes.number_of(watched));
        let subscription = Subscription::new(Arc::clone(watched), name, targets);
        self.by_query.insert(Arc::clone(watched), id);
        self.longest_wait = self.longest_wait.max(watched.timing.wait);
        let entry = Entry {
            name: overview::key(&watched.query.service),
            query: Some(Box::new(QueryLoop::new(&subscription))),
            subscription,
            due: now,
            is_blocking: false,
            concurrent_read: None,
            shall_block: false,
            new_until: now,
            read_when_back: false,
            is_in_full_poll: false,
            scope,
        };
        self.entries.insert(id, entry);
        self.queue.insert((now, Key::Query(id)));
        id
    }

    /// Follows one more target; its query asks `server` first.
    pub(super) fn follow(&mut self, followed: Followed, server: usize, now: Instant) {
        debug_assert!(!self.of_target.contains_key(&followed.number), "the number is in use");
        self.forget(followed.number);
        let watched = followed.target.watched_query();
        let Some(&id) = self.by_query.get(&watched) else {
            let name = query_name(&watched.query);
            let id = self.add(&Arc::new(watched), name, vec![followed], now);
            let Some(entry) = self.entries.get_mut(&id) else { return };
            entry.new_until = now + NEW;
            entry.shall_block = self.plan.lets_block(entry);
            entry.query.iter_mut().for_each(|query| query.rules.begin_with(server));
            return;
        };
        self.of_target.insert(followed.number, id);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let mut targets = entry.subscription.targets().to_vec();
        targets.push(followed);
        entry.subscription.set_targets(targets);
        self.read_at_once(id, now);
    }

    /// Reads a target's service now, even if its query is under way.
    pub(super) fn request_resync(&mut self, target: usize, now: Instant) {
        if let Some(&id) = self.of_target.get(&target) {
            self.read_at_once(id, now);
        }
    }

    /// Reads a service now, concurrently with its query if that blocks.
    fn read_at_once(&mut self, id: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.is_blocking && entry.concurrent_read.is_none() {
            entry.concurrent_read = Some(now);
            self.queue.insert((now, Key::ConcurrentRead(id)));
        }
        self.read(id, now);
    }

    /// Stops following a target. A query under way that has no target left runs to its end: Consul
    /// would count its connection until then anyway.
    pub(super) fn forget(&mut self, target: usize) {
        let Some(id) = self.of_target.remove(&target) else { return };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let (gone, left): (Vec<_>, Vec<_>) = entry
            .subscription
            .targets()
            .iter()
            .cloned()
            .partition(|followed| followed.number == target);
        gone.iter().for_each(Followed::forget);
        let is_last = left.is_empty();
        entry.subscription.set_targets(left);
        if is_last {
            if let Some(at) = entry.concurrent_read.take() {
                self.queue.remove(&(at, Key::ConcurrentRead(id)));
            }
            if entry.query.is_some() {
                self.remove(id);
            }
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(entry) = self.entries.remove(&id) {
            self.by_query.remove(&entry.subscription.watched);
            self.queue.remove(&(entry.due, Key::Query(id)));
        }
    }

    /// Reads a service now, without an index. A blocking query that is under way sees the change by
    /// itself.
    pub(super) fn read(&mut self, id: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(query) = &mut entry.query else {
            entry.read_when_back |= !entry.is_blocking;
            return;
        };
        query.must_read = true;
        if query.rules.will_block() {
            query.rules.read_again(now);
        } else {
            query.rules.poll_by(now);
        }
        self.requeue(id, now);
    }

    /// Moves a query in the queue to the time that its rules want.
    pub(super) fn requeue(&mut self, id: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(query) = &entry.query else { return };
        let due = query.rules.due().unwrap_or(now);
        self.queue.remove(&(entry.due, Key::Query(id)));
        entry.due = due;
        self.queue.insert((due, Key::Query(id)));
    }

    /// When the next task is due, of those that are not due yet.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let next = self.queue.range((now, Key::Query(u64::MAX))..).next();
        next.map(|(due, _)| *due)
            .into_iter()
            .chain(self.overviews_due().filter(|at| *at > now))
            .min()
    }

    /// How many tasks are due, up to `most`.
    pub(super) fn count_due(&self, now: Instant, most: usize) -> usize {
        let overviews = self.overviews_due().filter(|at| *at <= now).count();
        (overviews + self.queue.range(..=(now, Key::Query(u64::MAX))).take(most).count()).min(most)
    }

    /// Most threads that the watcher may have now.
    pub(super) fn most_threads(&self) -> usize {
        if !self.is_growing() {
            return self.plan.threads(self.blocking, self.reads.threads(self.scopes.len()));
        }
        // Threads with a new connection stay until all connections of the step were tried.
        self.plan.wanted().min(self.budget.allowed() + self.budget.on_trial())
    }

    /// Whether more connections are to be tried out, until all services can have one.
    pub(super) fn is_growing(&self) -> bool {
        self.plan.budget < self.plan.wanted()
    }

    /// The next task for a thread, which has run the query `last` before.
    pub(super) fn take(&mut self, now: Instant, last: Option<u64>) -> Option<Task> {
        if let Some((id, overview)) = self.scopes.take(self.may_block_overview(), now) {
            self.blocking += usize::from(overview.will_block());
            return Some(Task::Overview(id, overview));
        }
        // An index is good for the connection over which it came, so the query goes on there.
        let sticky = last.filter(|id| {
            let entry = self.entries.get(id);
            entry.is_some_and(|entry| entry.due <= now && self.can_start_blocking(entry))
        });
        let end = (now, Key::Query(u64::MAX));
        let due = self.queue.range(..=end).map(|(_, key)| *key);
        let due = due.filter(|key| self.may_start(*key)).take(NEIGHBOURS);
        let (near, far): (Vec<Key>, Vec<Key>) = due.partition(|key| self.is_near(*key, last));
        let sticky = sticky.map(Key::Query);
        sticky.into_iter().chain(near).chain(far).find_map(|key| self.start(key, now))
    }

    /// Whether a thread is connected to the servers of an entry.
    fn is_near(&self, (Key::Query(id) | Key::ConcurrentRead(id)): Key, last: Option<u64>) -> bool {
        let endpoint = |id| Some(&self.entries.get(&id)?.subscription.watched.endpoint);
        let both = endpoint(id).zip(last.and_then(endpoint));
        both.is_some_and(|(one, other)| Arc::ptr_eq(one, other))
    }

    /// Whether one more overview watch may block: reads must not wait for the end of a query.
    fn may_block_overview(&self) -> bool {
        self.blocking + 1 < self.plan.budget
    }

    /// When each overview watch is due that no thread has and that may run.
    fn overviews_due(&self) -> impl Iterator<Item = Instant> {
        let due = self.scopes.due(self.may_block_overview());
        due.map(|due| due.unwrap_or(self.full_poll_until))
    }

    /// How many more services may have a blocking query.
    pub(super) fn free_blocking_queries(&self) -> usize {
        self.plan.blocking_queries.saturating_sub(self.blocking_services)
    }

    /// Whether its query is to block now, and may.
    fn can_start_blocking(&self, entry: &Entry) -> bool {
        let will_block = entry.query.as_ref().is_some_and(|query| query.rules.will_block());
        entry.shall_block && self.free_blocking_queries() > 0 && will_block
    }

    fn may_start(&self, key: Key) -> bool {
        let (Key::Query(id) | Key::ConcurrentRead(id)) = key;
        let of = (self.plan.readers, self.scopes.len());
        let may = |entry: &Entry| {
            let blocks = key == Key::Query(id) && self.can_start_blocking(entry);
            blocks || self.reads.may_begin(entry.scope, of)
        };
        self.entries.get(&id).is_some_and(may)
    }

    fn start(&mut self, key: Key, now: Instant) -> Option<Task> {
        let (Key::Query(id) | Key::ConcurrentRead(id)) = key;
        let blocks = key == Key::Query(id) && self.can_start_blocking(self.entries.get(&id)?);
        let has_room = self.free_blocking_queries() > 0;
        let entry = self.entries.get_mut(&id)?;
        if let Key::ConcurrentRead(id) = key {
            let at = entry.concurrent_read.take()?;
            self.queue.remove(&(at, key));
            self.reads.begin(entry.scope);
            return Some(Task::ConcurrentRead(id, Arc::clone(&entry.subscription)));
        }
        let is_covered = entry.scope.is_some_and(|scope| self.scopes.is_covered(scope));
        // A query that may block is polled as long as there is no room.
        let (interval, mode) = match poll_interval(&entry.subscription.watched) {
            Some(interval) => (Some(interval), Mode::Polling { delay: interval }),
            None if entry.shall_block && has_room => (None, Mode::Blocking),
            None if is_covered => {
                (Some(TRIGGERED), Mode::Triggered { delay: self.plan.triggered_delay() })
            }
            None => {
                (Some(self.plan.poll_interval), Mode::Polling { delay: self.plan.poll_delay() })
            }
        };
        let mut query = entry.query.take()?;
        self.queue.remove(&(entry.due, key));
        query.rules.set_poll_interval(interval);
        query.mode = mode;
        query.wait_limit = (now < entry.new_until).then_some(SHORT);
        (entry.is_in_full_poll, entry.is_blocking) = (false, blocks);
        if blocks {
            (self.blocking, self.blocking_services) =
                (self.blocking + 1, self.blocking_services + 1);
        } else {
            self.reads.begin(entry.scope);
        }
        Some(Task::Query(id, query))
    }

    /// Takes a query back.
    pub(super) fn put(&mut self, id: u64, query: Box<QueryLoop>, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.due = now;
        entry.query = Some(query);
        if std::mem::take(&mut entry.is_blocking) {
            (self.blocking, self.blocking_services) =
                (self.blocking - 1, self.blocking_services - 1);
        } else {
            self.reads.end(entry.scope);
        }
        let mut is_read_due = std::mem::take(&mut entry.read_when_back);
        if let Some(at) = entry.concurrent_read.take() {
            self.queue.remove(&(at, Key::ConcurrentRead(id)));
            is_read_due = true;
        }
        if entry.subscription.targets().is_empty() {
            self.remove(id);
            return;
        }
        self.requeue(id, now);
        if is_read_due {
            self.read(id, now);
        }
    }

    /// A concurrent read has ended: once more at `again`, unless the query itself is back.
    pub(super) fn end_concurrent_read(
        &mut self,
        (id, watched): (u64, &WatchedQuery),
        again: Option<Instant>,
        now: Instant,
    ) {
        let scope = overview_query(watched).map(|watched| self.scopes.number_of(watched));
        self.reads.end(scope);
        let (Some(at), Some(entry)) = (again, self.entries.get_mut(&id)) else { return };
        if !entry.is_blocking {
            self.read(id, now);
        } else if entry.concurrent_read.is_none() && !entry.subscription.targets().is_empty() {
            entry.concurrent_read = Some(at);
            self.queue.insert((at, Key::ConcurrentRead(id)));
        }
    }

    /// The connections, for the next watcher and the status.
    pub(super) fn connections(&self) -> Connections {
        Connections {
            blocking: self.blocking,
            others: self.threads.count.saturating_sub(self.blocking),
            wait: self.longest_wait,
            allowed: self.plan.budget,
            needed: self.plan.needed,
            limit: self.plan.limit,
        }
    }
}
