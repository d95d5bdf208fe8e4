//! The board by itself, with a clock of its own.

use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::consul::overview::{Difference, key};
use crate::consul::watch::Answer;
use crate::sync::engine::board::{Board, Last, Task};
use crate::sync::lookout::{Finding, Looked, Lookout, More};
use crate::sync::plan::Followed;
use crate::sync::runner::Job;
use crate::sync::testing::{endpoint, target};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    board: Board,
    now: Instant,
    rng: SmallRng,
    index: u64,
}

impl Bench {
    /// So many services `s0` and so on, all asked once.
    fn new(services: usize, connections: usize) -> Bench {
        let now = Instant::now();
        let mut bench = Bench {
            board: Board::new(connections, 0, now),
            now,
            rng: SmallRng::seed_from_u64(1),
            index: 7,
        };
        let endpoint = Arc::new(endpoint("http://127.0.0.1:1"));
        for number in 0..services {
            let target = Arc::new(target(&endpoint, &format!("s{number}")));
            let subject = Arc::new(target.subject());
            bench.board.add(&subject, vec![Followed::new(number, target)], now);
        }
        bench.board.plan(0, now);
        bench
    }

    fn take(&mut self) -> Option<Task> {
        self.board.take(self.now, &Last::default())
    }

    /// Answers a task and puts it back.
    fn answer(&mut self, task: Task) {
        let now = self.now;
        match task {
            Task::Watch(id, mut job) => {
                self.reply(&mut job);
                self.board.put(id, job, false, now);
            }
            Task::Look(place, lookout) => self.look(place, lookout, Finding::default()),
            Task::Beside(id, _) => self.board.put_beside(id, None, now),
        }
    }

    fn reply(&mut self, job: &mut Job) {
        job.watch.next(self.now);
        self.index += 1;
        let answer = Answer::Good { index: self.index, digest: 1, bytes: 2, is_copy: false };
        job.watch.answer(answer, self.now, &mut self.rng);
    }

    fn look(&mut self, place: (usize, usize), lookout: Box<Lookout>, finding: Finding) {
        self.board.release_wait(lookout.blocks_for());
        self.board.put_lookout(place, lookout, Looked::Found(finding), self.now);
    }

    /// Does all that is due and doesn't block; gives the number of reads and, as they are under way
    /// now, the queries and lookouts.
    fn settle(&mut self) -> (usize, Vec<Task>) {
        let (mut reads, mut queries) = (0, Vec::new());
        while let Some(task) = self.take() {
            if task.blocks() || matches!(task, Task::Look(..)) {
                queries.push(task);
            } else {
                reads += usize::from(matches!(task, Task::Watch(..)));
                self.answer(task);
            }
            assert!(queries.len() <= self.board.share.budget, "too many queries");
            assert!(reads < 100_000, "without end");
        }
        (reads, queries)
    }

    /// Lookouts speak for all; they are under way.
    fn gated(services: usize, connections: usize) -> (Bench, Vec<Task>) {
        let mut bench = Bench::new(services, connections);
        for task in bench.settle().1 {
            bench.answer(task);
        }
        // The watches wait for the next sweep.
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
    let connections = bench.board.connections();
    assert_eq!((connections.blocking, connections.wait), (7, SECOND * 60));
    assert_eq!(bench.board.next_due(), None);
    // What comes back is not read but blocks again.
    for task in queries {
        bench.answer(task);
    }
    let (reads, queries) = bench.settle();
    assert_eq!((reads, queries.len()), (0, 7));
}

#[test]
fn queries_under_way_count_when_more_services_come() {
    let mut bench = Bench::new(7, 8);
    let queries = bench.settle().1;
    let endpoint = Arc::new(endpoint("http://127.0.0.1:1"));
    for number in 7..40 {
        let target = Arc::new(target(&endpoint, &format!("s{number}")));
        bench.board.follow(Followed::new(number, target), bench.now);
    }
    bench.board.plan(0, bench.now);
    let (reads, more) = bench.settle();
    let lookouts = more.iter().filter(|task| matches!(task, Task::Look(..))).count();
    assert_eq!((reads, lookouts, more.len()), (33, 3, 3), "seven queries are under way");
    for task in queries {
        bench.answer(task);
    }
    bench.board.plan(0, bench.now);
    bench.now += SECOND;
    let (_, queries) = bench.settle();
    assert!(queries.len() <= bench.board.share.polls, "{}", queries.len());
    assert!(bench.board.share.polls + 3 < 8);
}

#[test]
fn only_who_is_named_is_read_at_once() {
    let (mut bench, queries) = Bench::gated(200, 16);
    let look = queries.into_iter().find_map(|task| match task {
        Task::Look(place, lookout) => Some((place, lookout)),
        _ => None,
    });
    let (place, lookout) = look.unwrap();
    let news = Difference { services: [key("S50"), key("other")].into(), nodes: [].into() };
    bench.look(place, lookout, Finding { news, more: More::No });
    let reads = std::iter::from_fn(|| bench.take());
    let reads: Vec<Task> = reads.filter(|task| matches!(task, Task::Watch(..))).collect();
    let [Task::Watch(_, job)] = &reads[..] else { panic!("{} reads", reads.len()) };
    assert_eq!(job.subject().query.service, "s50");
    assert!(job.must_read && !job.watch.will_block());
}

#[test]
fn a_sweep_keeps_its_pace() {
    let (mut bench, mut queries) = Bench::gated(3000, 16);
    bench.now += SECOND * 20;
    bench.settle();
    let mut reads = 0;
    for round in 0..10 {
        let place = queries.iter().position(|task| matches!(task, Task::Look(..))).unwrap();
        let Task::Look(place, lookout) = queries.swap_remove(place) else { unreachable!() };
        let finding = Finding { news: Difference::default(), more: More::Yes };
        bench.look(place, lookout, finding);
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
