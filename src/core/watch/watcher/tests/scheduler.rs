//! The scheduler by itself, with a clock of its own.

use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::consul::blocking::FetchResult;
use crate::consul::overview::{Difference, key};
use crate::model::Limit;
use crate::watch::overview_watch::{OverviewDiff, OverviewOutcome, OverviewWatch};
use crate::watch::plan::Followed;
use crate::watch::subscription::QueryLoop;
use crate::watch::testing::{endpoint, target};
use crate::watch::watcher::scheduler::Scheduler;
use crate::watch::watcher::task::Task;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    scheduler: Scheduler,
    connections: usize,
    now: Instant,
    rng: SmallRng,
    index: u64,
}

impl Bench {
    /// So many services `s0` and so on, all asked once.
    fn new(services: usize, connections: usize) -> Bench {
        let now = Instant::now();
        let scheduler = Scheduler::new(now);
        let rng = SmallRng::seed_from_u64(1);
        let mut bench = Bench { scheduler, connections, now, rng, index: 7 };
        let endpoint = Arc::new(endpoint("http://127.0.0.1:1"));
        for number in 0..services {
            let target = Arc::new(target(&endpoint, &format!("s{number}")));
            let watched = Arc::new(target.watched_query());
            bench.scheduler.add(&watched, String::new(), vec![Followed::new(number, target)], now);
        }
        bench.replan();
        bench
    }

    fn replan(&mut self) {
        self.scheduler.replan((self.connections, Limit::Configured), 0, self.now);
    }

    fn take(&mut self) -> Option<Task> {
        self.scheduler.take(self.now, None)
    }

    /// Answers a task and puts it back.
    fn answer(&mut self, task: Task) {
        let now = self.now;
        match task {
            Task::Query(id, mut query) => {
                self.reply(&mut query);
                self.scheduler.put(id, query, now);
            }
            Task::Overview(place, overview) => self.find(place, overview, OverviewDiff::default()),
            Task::ConcurrentRead(id, of) => {
                self.scheduler.end_concurrent_read((id, &of.watched), None, now);
            }
        }
    }

    fn reply(&mut self, query: &mut QueryLoop) {
        query.rules.next(self.now);
        self.index += 1;
        let answer = FetchResult::Good { index: self.index, digest: 1, bytes: 2, is_copy: false };
        query.rules.on_result(answer, self.now, &mut self.rng);
    }

    fn find(&mut self, place: (usize, usize), overview: Box<OverviewWatch>, diff: OverviewDiff) {
        self.scheduler.blocking -= usize::from(overview.will_block());
        self.scheduler.put_overview(place, overview, OverviewOutcome::Changed(diff), self.now);
    }

    /// Does all that is due and doesn't block; gives the number of reads and, as they are under way
    /// now, the queries and overviews.
    fn settle(&mut self) -> (usize, Vec<Task>) {
        let (mut reads, mut queries) = (0, Vec::new());
        while let Some(task) = self.take() {
            if task.blocks() || matches!(task, Task::Overview(..)) {
                queries.push(task);
            } else {
                reads += usize::from(matches!(task, Task::Query(..)));
                self.answer(task);
            }
            assert!(queries.len() <= self.scheduler.plan.budget, "too many queries");
            assert!(reads < 100_000, "without end");
        }
        (reads, queries)
    }

    /// Overviews speak for all; they are under way.
    fn triggered(services: usize, connections: usize) -> (Bench, Vec<Task>) {
        let mut bench = Bench::new(services, connections);
        for task in bench.settle().1 {
            bench.answer(task);
        }
        // The watches wait for the next full poll.
        bench.now += SECOND * 10;
        let queries = bench.settle().1;
        assert_eq!(queries.len(), 3);
        (bench, queries)
    }
}

#[test]
fn what_fits_is_read_once_and_blocks() {
    let mut bench = Bench::new(7, 8);
    let (reads, queries) = bench.settle();
    assert_eq!((reads, queries.len()), (7, 7));
    let connections = bench.scheduler.connections();
    assert_eq!((connections.blocking, connections.wait), (7, SECOND * 60));
    assert_eq!(bench.scheduler.next_due(bench.now), None);
    // What comes back is not read but blocks again.
    for task in queries {
        bench.answer(task);
    }
    let (reads, queries) = bench.settle();
    assert_eq!((reads, queries.len()), (0, 7));
}

/// Until it has stayed for a while, Consul soon ends its query if it is dropped.
#[test]
fn a_service_that_requests_name_blocks_from_its_first_answer_on() {
    let mut bench = Bench::new(2, 8);
    let under_way = bench.settle().1;
    let endpoint = Arc::new(endpoint("http://127.0.0.1:1"));
    let target = Arc::new(target(&endpoint, "named"));
    bench.scheduler.follow(Followed::new(2, target), 0, bench.now);
    bench.replan();
    let mut named = bench.settle();
    for wait in [SECOND, SECOND * 60] {
        let Some(Task::Query(id, mut query)) = named.1.pop() else { panic!("no blocking query") };
        assert!(query.rules.will_block() && named.1.is_empty());
        assert_eq!(query.wait_limit.unwrap_or(SECOND * 60), wait);
        bench.reply(&mut query);
        bench.now += SECOND * 3;
        bench.scheduler.put(id, query, bench.now);
        named = bench.settle();
    }
    drop(under_way);
}

/// Two datacenters, one of which never answers.
#[test]
fn reads_of_a_scope_leave_each_other_scope_one() {
    let mut bench = Bench::new(0, 16);
    let here = Arc::new(endpoint("http://127.0.0.1:1"));
    for number in 0..100 {
        let mut target = target(&here, &format!("s{number}"));
        target.query.datacenter = (number < 50).then(|| "hung".to_owned());
        bench.scheduler.follow(Followed::new(number, Arc::new(target)), 0, bench.now);
    }
    bench.replan();
    assert_eq!(bench.scheduler.plan.readers, 4);
    let is_hung = |query: &QueryLoop| query.watched().query.datacenter.is_some();
    let (mut hung, mut overviews, mut answered) = (Vec::new(), Vec::new(), 0);
    while let Some(task) = bench.take() {
        match task {
            Task::Query(id, query) if is_hung(&query) => hung.push((id, query)),
            Task::Overview(..) => overviews.push(task),
            task => {
                answered += 1;
                bench.answer(task);
            }
        }
        assert!(answered < 1000, "without end");
    }
    assert_eq!((hung.len(), answered), (2, 50));
}

#[test]
fn queries_under_way_count_when_more_services_come() {
    let mut bench = Bench::new(7, 8);
    let queries = bench.settle().1;
    let endpoint = Arc::new(endpoint("http://127.0.0.1:1"));
    for number in 7..40 {
        let target = Arc::new(target(&endpoint, &format!("s{number}")));
        bench.scheduler.follow(Followed::new(number, target), 0, bench.now);
    }
    bench.replan();
    let (reads, more) = bench.settle();
    assert_eq!((reads, more.len()), (33, 3), "the overviews, read for the first time");
    for task in queries {
        bench.answer(task);
    }
    more.into_iter().for_each(|task| bench.answer(task));
    bench.replan();
    bench.now += SECOND;
    let (_, queries) = bench.settle();
    assert_eq!(queries.len(), 3, "nobody has a query of its own");
    assert!(queries.iter().all(|task| matches!(task, Task::Overview(..))));
}

#[test]
fn only_who_is_named_is_read_at_once() {
    let (mut bench, queries) = Bench::triggered(200, 16);
    let overview = queries.into_iter().find_map(|task| match task {
        Task::Overview(place, overview) => Some((place, overview)),
        _ => None,
    });
    let (place, overview) = overview.unwrap();
    let named = Difference { services: [key("S50"), key("other")].into(), nodes: [].into() };
    bench.find(place, overview, OverviewDiff { named, is_unattributed: false });
    let reads = std::iter::from_fn(|| bench.take());
    let reads: Vec<Task> = reads.filter(|task| matches!(task, Task::Query(..))).collect();
    let [Task::Query(_, query)] = &reads[..] else { panic!("{} reads", reads.len()) };
    assert_eq!(query.watched().query.service, "s50");
    assert!(query.must_read && !query.rules.will_block());
}

#[test]
fn a_sweep_keeps_its_pace() {
    let (mut bench, mut queries) = Bench::triggered(3000, 16);
    bench.now += SECOND * 20;
    bench.settle();
    let mut reads = 0;
    for round in 0..10 {
        let place = queries.iter().position(|task| matches!(task, Task::Overview(..))).unwrap();
        let Task::Overview(place, overview) = queries.swap_remove(place) else { unreachable!() };
        let diff = OverviewDiff { named: Difference::default(), is_unattributed: true };
        bench.find(place, overview, diff);
        let (read, more) = bench.settle();
        reads += read;
        queries.extend(more);
        // After a quiet time the first ones come at once.
        assert!(round > 0 || reads >= 1900, "{reads}");
        bench.now += SECOND;
    }
    // Ten seconds at 600 a second, and 2,000 on credit.
    assert!((7000..=8100).contains(&reads), "{reads}");
}
