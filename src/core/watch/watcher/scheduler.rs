//! What is to be done, and by when: the threads take their work from here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::ConnectionBudget;
use super::connection_plan::{ConnectionPlan, Demand};
use super::threads::Threads;
use super::triggered::Scope;
use crate::consul::overview;
use crate::model::{Connections, Limit, Mode};
use crate::watch::overview_watch::{OverviewWatch, overview_query};
use crate::watch::plan::{Followed, WatchedQuery};
use crate::watch::subscription::{Common, Job, poll};

/// How often a service is read that overviews speak for, whatever they say.
const TRIGGERED: Duration = Duration::from_secs(60);
/// A service that is followed later has a blocking query only after this time: whoever asked for it may
/// not want it any more once the first answer is there.
const SETTLE: Duration = Duration::from_secs(1);
/// How many due watches are looked at for one of the server that a thread is connected to.
const NEIGHBOURS: usize = 16;

/// What waits in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Beside(u64),
    Watch(u64),
}

/// Work for a thread.
pub(super) enum Task {
    /// One request of a watch.
    Watch(u64, Box<Job>),
    /// A read beside the watch's own query.
    Beside(u64, Arc<Common>),
    /// One request of an overview: scope and view.
    Overview((usize, usize), Box<OverviewWatch>),
}

impl Task {
    /// Whether it may take long.
    pub(super) fn blocks(&self) -> bool {
        match self {
            Task::Watch(_, job) => job.watch.will_block(),
            Task::Beside(..) => false,
            Task::Overview(_, overview) => overview.will_block(),
        }
    }
}

/// One watch.
pub(super) struct Entry {
    pub(super) common: Arc<Common>,
    /// Of the service, by [`overview::key`].
    pub(super) name: u64,
    /// `None` while a thread has it.
    pub(super) job: Option<Box<Job>>,
    /// Its place in the queue, while the job is here.
    due: Instant,
    /// A thread has the job, and it blocks.
    pub(super) is_blocking: bool,
    /// A read beside the query that is under way: when.
    beside: Option<Instant>,
    /// It is to have a blocking query.
    pub(super) is_polled: bool,
    /// Not before that.
    pub(super) settled: Instant,
    /// What it is to be read for has happened while a thread had the job.
    pub(super) again: bool,
    /// It has its place in a sweep that is going on.
    pub(super) is_swept: bool,
    /// Which scope's overviews may speak for it.
    pub(super) scope: Option<usize>,
}

impl Entry {
    /// Whether it can block at all.
    pub(super) fn can_block(&self) -> bool {
        poll(&self.common.watched).is_none()
    }
}

/// All watches of an engine.
pub(super) struct Scheduler {
    pub(super) entries: BTreeMap<u64, Entry>,
    by_query: HashMap<Arc<WatchedQuery>, u64>,
    of_target: HashMap<usize, u64>,
    next_id: u64,
    queue: BTreeSet<(Instant, Key)>,
    pub(super) scopes: Vec<Scope>,
    pub(super) plan: ConnectionPlan,
    pub(super) budget: ConnectionBudget,
    /// Where the sweep has come to.
    pub(super) cursor: Instant,
    /// Blocking queries under way, those of them that are watches', and the longest that they may
    /// last.
    pub(super) blocking: usize,
    polls: usize,
    longest_wait: Duration,
    /// Reads that are.
    reads: usize,
    pub(super) threads: Threads,
    /// The supervisor is to look around.
    pub(super) is_called: bool,
    pub(super) has_ended: bool,
}

impl Scheduler {
    pub(super) fn new(now: Instant) -> Self {
        let nothing = (0, Limit::Configured);
        let (budget, available, watches) = (0, 0, 0);
        let demand = Demand { budget, available, most: nothing, watches, scopes: Vec::new() };
        Scheduler {
            entries: BTreeMap::new(),
            by_query: HashMap::new(),
            of_target: HashMap::new(),
            next_id: 0,
            queue: BTreeSet::new(),
            scopes: Vec::new(),
            plan: ConnectionPlan::of(&demand),
            budget: ConnectionBudget::new(now),
            cursor: now,
            blocking: 0,
            polls: 0,
            longest_wait: Duration::ZERO,
            reads: 0,
            threads: Threads::default(),
            is_called: false,
            has_ended: false,
        }
    }

    /// Takes a watch; gives its number.
    pub(super) fn add(
        &mut self,
        watched: &Arc<WatchedQuery>,
        targets: Vec<Followed>,
        now: Instant,
    ) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.of_target.extend(targets.iter().map(|target| (target.number, id)));
        let scope = overview_query(watched).map(|watched| self.number_of_scope(watched));
        let common = Common::new(Arc::clone(watched), targets);
        self.by_query.insert(Arc::clone(watched), id);
        self.longest_wait = self.longest_wait.max(watched.timing.wait);
        let entry = Entry {
            name: overview::key(&watched.query.service),
            job: Some(Box::new(Job::new(&common))),
            common,
            due: now,
            is_blocking: false,
            beside: None,
            is_polled: false,
            settled: now,
            again: false,
            is_swept: false,
            scope,
        };
        self.entries.insert(id, entry);
        self.queue.insert((now, Key::Watch(id)));
        id
    }

    /// Follows one more target.
    pub(super) fn follow(&mut self, followed: Followed, now: Instant) {
        debug_assert!(!self.of_target.contains_key(&followed.number), "the number is in use");
        self.forget(followed.number);
        let watched = followed.target.watched_query();
        let Some(&id) = self.by_query.get(&watched) else {
            let id = self.add(&Arc::new(watched), vec![followed], now);
            self.entries.entry(id).and_modify(|entry| entry.settled = now + SETTLE);
            return;
        };
        self.of_target.insert(followed.number, id);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let mut targets = entry.common.targets().to_vec();
        targets.push(followed);
        entry.common.set_targets(targets);
        self.read_at_once(id, now);
    }

    /// Asks about a target now, whatever is under way.
    pub(super) fn request_resync(&mut self, target: usize, now: Instant) {
        if let Some(&id) = self.of_target.get(&target) {
            self.read_at_once(id, now);
        }
    }

    /// Has a service read now, beside the query that is under way if there is one.
    fn read_at_once(&mut self, id: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.is_blocking && entry.beside.is_none() {
            entry.beside = Some(now);
            self.queue.insert((now, Key::Beside(id)));
        }
        self.read(id, now);
    }

    /// Stops following a target. A query that is under way for nobody runs to its end: Consul would
    /// count its connection until then anyhow.
    pub(super) fn forget(&mut self, target: usize) {
        let Some(id) = self.of_target.remove(&target) else { return };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let (gone, left): (Vec<_>, Vec<_>) =
            entry.common.targets().iter().cloned().partition(|followed| followed.number == target);
        gone.iter().for_each(Followed::forget);
        let is_last = left.is_empty();
        entry.common.set_targets(left);
        if is_last {
            if let Some(at) = entry.beside.take() {
                self.queue.remove(&(at, Key::Beside(id)));
            }
            if entry.job.is_some() {
                self.remove(id);
            }
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(entry) = self.entries.remove(&id) {
            self.by_query.remove(&entry.common.watched);
            self.queue.remove(&(entry.due, Key::Watch(id)));
        }
    }

    /// Has a service read now, without an index. A blocking query that is under way sees by itself
    /// what it would be read for.
    pub(super) fn read(&mut self, id: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(job) = &mut entry.job else {
            entry.again |= !entry.is_blocking;
            return;
        };
        job.must_read = true;
        if job.watch.will_block() {
            job.watch.read_again(now);
        } else {
            job.watch.advance(now);
        }
        self.requeue(id, now);
    }

    /// Puts a watch where its rules want it.
    pub(super) fn requeue(&mut self, id: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(job) = &entry.job else { return };
        let due = job.watch.due().unwrap_or(now);
        self.queue.remove(&(entry.due, Key::Watch(id)));
        entry.due = due;
        self.queue.insert((due, Key::Watch(id)));
    }

    /// When something is due next that no thread could begin before.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let next = self.queue.range((now, Key::Watch(u64::MAX))..).next();
        next.map(|(due, _)| *due)
            .into_iter()
            .chain(self.overviews_due().filter(|at| *at > now))
            .min()
    }

    /// How many things are due, up to `most`.
    pub(super) fn count_due(&self, now: Instant, most: usize) -> usize {
        let overviews = self.overviews_due().filter(|at| *at <= now).count();
        (overviews + self.queue.range(..=(now, Key::Watch(u64::MAX))).take(most).count()).min(most)
    }

    /// Most threads that the engine has now.
    pub(super) fn most_threads(&self) -> usize {
        if !self.is_growing() {
            return self.plan.threads(self.blocking);
        }
        // Those whose connections were tried out stay until all have been.
        self.plan.wanted().min(self.budget.allowed() + self.budget.on_trial())
    }

    /// Whether more connections are to be tried out, until all services can have one.
    pub(super) fn is_growing(&self) -> bool {
        self.plan.budget < self.plan.wanted()
    }

    /// The next thing to do for a thread, which has run the watch `last` before.
    pub(super) fn take(&mut self, now: Instant, last: Option<u64>) -> Option<Task> {
        if let Some((place, overview)) = self.take_overview(now) {
            self.blocking += usize::from(overview.will_block());
            return Some(Task::Overview(place, overview));
        }
        // Whoever has just read a service has the connection that its index is good for.
        let sticky = last.filter(|id| {
            let entry = self.entries.get(id);
            entry.is_some_and(|entry| entry.due <= now && self.wants_query(entry))
        });
        let end = (now, Key::Watch(u64::MAX));
        let due = self.queue.range(..=end).take(NEIGHBOURS).map(|(_, key)| *key);
        let (near, far): (Vec<Key>, Vec<Key>) = due.partition(|key| self.is_near(*key, last));
        let sticky = sticky.map(Key::Watch);
        sticky.into_iter().chain(near).chain(far).find_map(|key| self.hand_out(key))
    }

    /// Whether a thread is connected to the servers of an entry.
    fn is_near(&self, (Key::Watch(id) | Key::Beside(id)): Key, last: Option<u64>) -> bool {
        let endpoint = |id| Some(&self.entries.get(&id)?.common.watched.endpoint);
        let both = endpoint(id).zip(last.and_then(endpoint));
        both.is_some_and(|(one, other)| Arc::ptr_eq(one, other))
    }

    /// How many more watches may have a blocking query.
    pub(super) fn free_polls(&self) -> usize {
        self.plan.polls.saturating_sub(self.polls)
    }

    /// Whether it is to block now, and may.
    fn wants_query(&self, entry: &Entry) -> bool {
        let will_block = entry.job.as_ref().is_some_and(|job| job.watch.will_block());
        entry.is_polled && self.free_polls() > 0 && will_block
    }

    fn hand_out(&mut self, key: Key) -> Option<Task> {
        let (Key::Watch(id) | Key::Beside(id)) = key;
        let blocks = key == Key::Watch(id) && self.wants_query(self.entries.get(&id)?);
        if !blocks && self.reads >= self.plan.readers {
            return None;
        }
        let has_room = self.free_polls() > 0;
        let entry = self.entries.get_mut(&id)?;
        if let Key::Beside(id) = key {
            let at = entry.beside.take()?;
            self.queue.remove(&(at, key));
            self.reads += 1;
            return Some(Task::Beside(id, Arc::clone(&entry.common)));
        }
        // One that finds no room is read as the others are until there is some.
        let scope = entry.scope.and_then(|scope| self.scopes.get(scope));
        let (sweep, mode) = match poll(&entry.common.watched) {
            Some(interval) => (Some(interval), Mode::Polling { delay: interval }),
            None if entry.is_polled && has_room => (None, Mode::Blocking),
            None if scope.is_some_and(Scope::is_vouched) => {
                (Some(TRIGGERED), Mode::Triggered { delay: self.plan.triggered_delay() })
            }
            None => (Some(self.plan.interval), Mode::Polling { delay: self.plan.sweep_delay() }),
        };
        let mut job = entry.job.take()?;
        self.queue.remove(&(entry.due, key));
        job.watch.set_sweep(sweep);
        job.mode = mode;
        (entry.is_swept, entry.is_blocking) = (false, blocks);
        if blocks {
            (self.blocking, self.polls) = (self.blocking + 1, self.polls + 1);
        } else {
            self.reads += 1;
        }
        Some(Task::Watch(id, job))
    }

    /// Takes a watch back.
    pub(super) fn put(&mut self, id: u64, job: Box<Job>, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.due = now;
        entry.job = Some(job);
        if std::mem::take(&mut entry.is_blocking) {
            (self.blocking, self.polls) = (self.blocking - 1, self.polls - 1);
        } else {
            self.reads -= 1;
        }
        let mut again = std::mem::take(&mut entry.again);
        if let Some(at) = entry.beside.take() {
            self.queue.remove(&(at, Key::Beside(id)));
            again = true;
        }
        if entry.common.targets().is_empty() {
            self.remove(id);
            return;
        }
        self.requeue(id, now);
        if again {
            self.read(id, now);
        }
    }

    /// A read beside has ended: once more at `again`, unless the watch itself is back.
    pub(super) fn put_beside(&mut self, id: u64, again: Option<Instant>, now: Instant) {
        self.reads -= 1;
        let (Some(at), Some(entry)) = (again, self.entries.get_mut(&id)) else { return };
        if !entry.is_blocking {
            self.read(id, now);
        } else if entry.beside.is_none() && !entry.common.targets().is_empty() {
            entry.beside = Some(at);
            self.queue.insert((at, Key::Beside(id)));
        }
    }

    /// What the next engine and the status have to know.
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
