//! What is to be done, and by when: the threads take their work from here.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::counts::{Numbers, Waits};
use super::entry::{Again, Entry};
use super::gated::Scopes;
use super::share::{Demand, HOT_WAIT, Share};
use crate::sync::lookout::{Lookout, Scope};
use crate::sync::plan::{Followed, Subject};
use crate::sync::runner::{Common, Job};
use crate::sync::{Connections, Endpoint, Mode};

/// A service that is followed later has a blocking query only after this time: whoever asked for it
/// may not want it any more once the first answer is there.
const SETTLE: Duration = Duration::from_secs(2);
/// Pause of a lookout that has to wait for the end of another blocking query.
pub(super) const NO_ROOM: Duration = Duration::from_secs(1);
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
    /// One request of a lookout: scope and view.
    Look((usize, usize), Box<Lookout>),
}

impl Task {
    /// Whether it may take long.
    pub(super) fn blocks(&self) -> bool {
        match self {
            Task::Watch(_, job) => job.watch.will_block(),
            Task::Beside(..) => false,
            Task::Look(_, lookout) => lookout.blocks_for().is_some(),
        }
    }
}

/// What a thread did last.
#[derive(Default)]
pub(super) struct Last {
    pub(super) watch: Option<u64>,
    pub(super) endpoint: Option<Arc<Endpoint>>,
}

/// All watches of an engine.
pub(super) struct Board {
    /// `consul_connections`.
    connections: usize,
    pub(super) entries: HashMap<u64, Entry>,
    by_subject: HashMap<Arc<Subject>, u64>,
    of_target: HashMap<usize, u64>,
    next_id: u64,
    queue: BTreeSet<(Instant, Key)>,
    pub(super) scopes: Scopes,
    pub(super) share: Share,
    /// Where the sweeps that lookouts asked for have come to.
    pub(super) cursor: Instant,
    /// Blocking queries of watches that are under way.
    polls: usize,
    /// Reads that are.
    reads: usize,
    /// The lengths of all blocking queries under way.
    waits: Waits,
    /// Which numbers threads have.
    pub(super) numbers: Numbers,
    /// Threads, and those that have nothing to do.
    pub(super) threads: usize,
    /// Threads that have not come for work yet.
    pub(super) starting: usize,
    pub(super) idle: usize,
    /// Fewest idle threads since the last look, and how many of them are to end.
    pub(super) least_idle: usize,
    pub(super) surplus: usize,
    /// Until when an idle thread waits.
    pub(super) timed: Option<Instant>,
    pub(super) ended: bool,
}

impl Board {
    pub(super) fn new(connections: usize, foreign: usize, now: Instant) -> Self {
        let budget = connections.saturating_sub(foreign);
        Board {
            connections,
            entries: HashMap::new(),
            by_subject: HashMap::new(),
            of_target: HashMap::new(),
            next_id: 0,
            queue: BTreeSet::new(),
            scopes: Scopes::default(),
            share: Share::of(&Demand { budget, ..Demand::default() }),
            cursor: now,
            polls: 0,
            reads: 0,
            waits: Waits::default(),
            numbers: Numbers::default(),
            threads: 0,
            starting: 0,
            idle: 0,
            least_idle: 0,
            surplus: 0,
            timed: None,
            ended: false,
        }
    }

    /// Takes a watch of the configuration.
    pub(super) fn add(&mut self, subject: &Arc<Subject>, targets: Vec<Followed>, now: Instant) {
        for target in &targets {
            self.of_target.insert(target.number, self.next_id);
        }
        let scope = Scope::of(subject).map(|scope| self.scopes.number(scope));
        let common = Common::new(Arc::clone(subject), targets);
        self.by_subject.insert(Arc::clone(subject), self.next_id);
        self.entries.insert(self.next_id, Entry::new(common, scope, now));
        self.queue.insert((now, Key::Watch(self.next_id)));
        self.next_id += 1;
    }

    /// Follows one more target.
    pub(super) fn follow(&mut self, followed: Followed, now: Instant) {
        let subject = followed.target.subject();
        let Some(&id) = self.by_subject.get(&subject) else {
            let id = self.next_id;
            self.add(&Arc::new(subject), vec![followed], now);
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.settled = now + SETTLE;
            }
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
    pub(super) fn ask_again(&mut self, target: usize, now: Instant) {
        if let Some(&id) = self.of_target.get(&target) {
            self.read_at_once(id, now);
        }
    }

    /// Has a service read now, beside the query that is under way if there is one.
    fn read_at_once(&mut self, id: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.out.is_some() && entry.beside.is_none() {
            entry.beside = Some(now);
            self.queue.insert((now, Key::Beside(id)));
        }
        self.read(id, Again::Surely, now);
    }

    /// Stops following a target. A query that is under way for nobody runs to its end: Consul would
    /// count its connection until then anyhow.
    pub(super) fn forget(&mut self, target: usize) {
        let Some(id) = self.of_target.remove(&target) else { return };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let targets = entry.common.targets();
        let left: Vec<_> = targets.iter().filter(|t| t.number != target).cloned().collect();
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
            self.by_subject.remove(&entry.common.subject);
            self.queue.remove(&(entry.due, Key::Watch(id)));
        }
    }

    /// Has a service read now, without an index. A blocking query that is under way sees by itself
    /// what it would be read for.
    pub(super) fn read(&mut self, id: u64, why: Again, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(job) = &mut entry.job else {
            if entry.out.is_none() {
                entry.again = entry.again.max(Some(why));
            }
            return;
        };
        job.must_read |= why == Again::Surely;
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

    /// When something is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let watch = self.queue.first().map(|(due, _)| *due);
        watch.into_iter().chain(self.scopes.next_due()).min()
    }

    /// How many of the things that are due threads may begin now; about, and at most `most`.
    pub(super) fn count_due(&self, now: Instant, most: usize) -> usize {
        let due = self.queue.range(..=(now, Key::Watch(u64::MAX))).take(4 * most);
        let queries = due.clone().filter(|(_, key)| match key {
            Key::Watch(id) => self.entries.get(id).is_some_and(|entry| self.wants_query(entry)),
            Key::Beside(_) => false,
        });
        let queries = queries.count();
        let reads = (due.count() - queries).min(self.share.readers.saturating_sub(self.reads));
        (queries.min(self.free_polls()) + reads + self.scopes.count_due(now)).min(most)
    }

    pub(super) fn free_polls(&self) -> usize {
        self.share.polls.saturating_sub(self.polls)
    }

    /// The next thing to do for a thread.
    pub(super) fn take(&mut self, now: Instant, last: &Last) -> Option<Task> {
        // Reads must not wait for a blocking query to end.
        let may_block = self.waits.count() + 1 < self.share.budget;
        if let Some((place, lookout)) = self.scopes.take(now, may_block) {
            if let Some(wait) = lookout.blocks_for() {
                self.waits.add(wait);
            }
            return Some(Task::Look(place, lookout));
        }
        // Whoever has just read a service has the connection that its index is good for.
        let sticky = last.watch.filter(|id| {
            let entry = self.entries.get(id);
            entry.is_some_and(|e| e.job.is_some() && e.due <= now && self.wants_query(e))
        });
        if let Some(task) = sticky.and_then(|id| self.hand_out(Key::Watch(id), now)) {
            return Some(task);
        }
        let end = (now, Key::Watch(u64::MAX));
        let due: Vec<Key> = self.queue.range(..=end).take(NEIGHBOURS).map(|(_, k)| *k).collect();
        let is_near = |key: &Key| {
            let (Key::Watch(id) | Key::Beside(id)) = key;
            self.entries.get(id).is_some_and(|entry| {
                let endpoint = &entry.common.subject.endpoint;
                last.endpoint.as_ref().is_some_and(|last| Arc::ptr_eq(last, endpoint))
            })
        };
        let (near, far): (Vec<Key>, Vec<Key>) = due.into_iter().partition(is_near);
        near.into_iter().chain(far).find_map(|key| self.hand_out(key, now))
    }

    /// Whether it is to block now, and may.
    fn wants_query(&self, entry: &Entry) -> bool {
        entry.polled
            && self.free_polls() > 0
            && entry.job.as_ref().is_some_and(|job| job.watch.will_block())
    }

    fn hand_out(&mut self, key: Key, now: Instant) -> Option<Task> {
        let (Key::Watch(id) | Key::Beside(id)) = key;
        let entry = self.entries.get(&id)?;
        let blocks = key == Key::Watch(id) && self.wants_query(entry);
        if !blocks && self.reads >= self.share.readers {
            return None;
        }
        if let Key::Beside(id) = key {
            let entry = self.entries.get_mut(&id)?;
            let at = entry.beside.take()?;
            self.queue.remove(&(at, key));
            self.reads += 1;
            return Some(Task::Beside(id, Arc::clone(&entry.common)));
        }
        let gated = self.is_gated(entry);
        let interval = entry.interval(&self.share, gated);
        // One that finds no room is read as the others are until there is some.
        let has_room = blocks || (entry.polled && self.free_polls() > 0);
        let is_short = !self.share.all_block || self.share.budget < 2;
        let patience = is_short.then_some(HOT_WAIT);
        let mode = match (has_room, gated) {
            (true, _) => Mode::Blocking,
            (false, true) => Mode::Gated { delay: self.share.gated_delay() },
            (false, false) if entry.can_block() => Mode::Sweep { delay: self.share.sweep_delay() },
            (false, false) => Mode::Sweep { delay: interval },
        };
        let entry = self.entries.get_mut(&id)?;
        let mut job = entry.job.take()?;
        self.queue.remove(&(entry.due, key));
        job.watch.set_sweep((!has_room).then_some(interval));
        (job.mode, job.patience) = (mode, patience);
        entry.asked = Some(now);
        entry.swept = false;
        if blocks {
            let wait = entry.common.subject.timing.wait;
            let wait = patience.map_or(wait, |patience| patience.min(wait));
            entry.out = Some(wait);
            self.polls += 1;
            self.waits.add(wait);
        } else {
            self.reads += 1;
        }
        Some(Task::Watch(id, job))
    }

    /// Takes a watch back.
    pub(super) fn put(&mut self, id: u64, job: Box<Job>, changed: bool, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.due = now;
        entry.job = Some(job);
        if changed {
            entry.heat.note_change();
        }
        let mut again = entry.again.take();
        match entry.out.take() {
            Some(wait) => {
                self.polls -= 1;
                self.waits.remove(wait);
            }
            None => self.reads -= 1,
        }
        if let Some(at) = entry.beside.take() {
            self.queue.remove(&(at, Key::Beside(id)));
            again = Some(Again::Surely);
        }
        if entry.common.targets().is_empty() {
            self.remove(id);
            return;
        }
        self.requeue(id, now);
        if let Some(why) = again {
            self.read(id, why, now);
        }
    }

    /// A read beside has ended: once more at `again`, unless the watch itself is back.
    pub(super) fn put_beside(&mut self, id: u64, again: Option<Instant>, now: Instant) {
        self.reads -= 1;
        let (Some(at), Some(entry)) = (again, self.entries.get_mut(&id)) else { return };
        if entry.out.is_some() && entry.beside.is_none() && !entry.common.targets().is_empty() {
            entry.beside = Some(at);
            self.queue.insert((at, Key::Beside(id)));
        } else {
            self.read(id, Again::Surely, now);
        }
    }

    /// A lookout's query that lasted so long has ended.
    pub(super) fn release_wait(&mut self, wait: Option<Duration>) {
        if let Some(wait) = wait {
            self.waits.remove(wait);
        }
    }

    /// What the next engine has to know.
    pub(super) fn connections(&self) -> Connections {
        let blocking = self.waits.count();
        let others = self.threads.saturating_sub(blocking);
        Connections { blocking, others, wait: self.waits.longest() }
    }

    /// What may be used while others have so many.
    pub(super) fn budget(&self, foreign: usize) -> usize {
        self.connections.saturating_sub(foreign).max(1)
    }

    pub(super) fn is_gated(&self, entry: &Entry) -> bool {
        entry.scope.is_some_and(|scope| self.scopes.is_vouched(scope))
    }
}
