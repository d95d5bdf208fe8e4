use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::pacing::{BUCKET, REFILL};
use super::terms::MIN_RETRY;
use super::*;

mod copies;
mod servers;

const SECOND: Duration = Duration::from_secs(1);
const WAIT: Duration = Duration::from_secs(60);

/// A watch with its own clock.
struct Bench {
    query: BlockingQuery,
    now: Instant,
    rng: SmallRng,
}

impl Bench {
    fn new(servers: usize, poll_interval: Option<Duration>) -> Self {
        let settings = Settings {
            servers,
            wait: WAIT,
            retry_min: Duration::from_millis(250),
            retry_max: Duration::from_secs(30),
            poll_interval,
            fallback_interval: 5 * SECOND,
            can_avoid_copies: true,
            may_lag: false,
        };
        let rng = SmallRng::seed_from_u64(1);
        Bench { query: BlockingQuery::new(settings), now: Instant::now(), rng }
    }

    /// Sleeps as told, then gives the request.
    fn fetch(&mut self) -> Fetch {
        let Step::Fetch(fetch) = self.step() else { panic!("it would sleep") };
        fetch
    }

    fn step(&mut self) -> Step {
        self.query.next(self.now)
    }

    fn fetch_after_sleep(&mut self) -> (Fetch, Duration) {
        match self.step() {
            Step::Fetch(fetch) => (fetch, Duration::ZERO),
            Step::Sleep(time) => {
                self.now += time;
                (self.fetch(), time)
            }
        }
    }

    fn answer(&mut self, after: Duration, answer: FetchResult) -> Outcome {
        self.now += after;
        self.query.on_result(answer, self.now, &mut self.rng)
    }

    fn good(&mut self, after: Duration, index: u64, digest: u128) -> Outcome {
        self.answer(after, FetchResult::Good { index, digest, bytes: 2, is_copy: false })
    }

    /// A watch that blocks on index 7.
    fn blocking() -> Self {
        let mut bench = Bench::new(1, None);
        bench.fetch();
        bench.good(Duration::ZERO, 7, 1);
        assert_eq!(bench.fetch(), Fetch { index: Some(7), ..Fetch::read(0, WAIT) });
        bench
    }
}

fn publish(changed: bool) -> Outcome {
    Outcome::Publish { changed, outage: None }
}

#[test]
fn the_first_request_has_no_index_and_the_second_blocks_on_the_answers() {
    let mut bench = Bench::new(1, None);
    assert_eq!(bench.fetch(), Fetch::read(0, WAIT));
    assert_eq!(bench.good(Duration::ZERO, 4711, 1), publish(true));
    assert_eq!(bench.fetch().index, Some(4711));
}

#[test]
fn a_timeout_with_the_same_index_keeps_it_and_costs_nothing() {
    let mut bench = Bench::blocking();
    for _ in 0..100 {
        let tokens = bench.query.bucket.tokens;
        assert_eq!(bench.good(WAIT + SECOND, 7, 1), publish(false));
        assert_eq!(bench.fetch().index, Some(7));
        assert_eq!(bench.query.bucket.tokens, tokens);
    }
}

#[test]
fn what_an_answer_says_decides_on_which_index_the_next_request_blocks() {
    for (after, index, digest, changed, next, why) in [
        (SECOND, 9, 2, true, Some(9), "a change"),
        (SECOND, 8, 1, false, Some(8), "a wakeup without a change"),
        (WAIT, 7, 1, false, Some(7), "an expired wait"),
        (SECOND, 7, 1, false, None, "an early return with the same index"),
        (SECOND, 6, 2, true, None, "a lower index"),
    ] {
        let mut bench = Bench::blocking();
        assert_eq!(bench.good(after, index, digest), publish(changed), "{why}");
        assert_eq!(bench.fetch().index, next, "{why}");
        if next.is_none() {
            bench.good(Duration::ZERO, index, digest);
            assert_eq!(bench.fetch_after_sleep().0.index, Some(index), "{why}, read again");
        }
    }
}

#[test]
fn the_index_is_at_least_1() {
    let mut bench = Bench::new(1, None);
    bench.fetch();
    bench.good(Duration::ZERO, 0, 1);
    assert_eq!(bench.fetch().index, Some(1));
}

#[test]
fn an_error_forgets_the_index_and_pauses() {
    let mut bench = Bench::blocking();
    let Outcome::Failed { failures: 1, retry_in, round: true } =
        bench.answer(SECOND, FetchResult::Failed)
    else {
        panic!("not a failure")
    };
    assert!((250..=500).contains(&retry_in.as_millis()), "{retry_in:?}");
    assert_eq!(bench.step(), Step::Sleep(retry_in));
    assert_eq!(bench.fetch_after_sleep().0.index, None);
}

#[test]
fn a_lost_connection_forgets_the_index_without_a_pause() {
    let mut bench = Bench::blocking();
    assert_eq!(bench.answer(Duration::ZERO, FetchResult::Reconnected), Outcome::Again);
    assert_eq!(bench.fetch(), Fetch::read(0, WAIT));
    let outcome = bench.answer(Duration::ZERO, FetchResult::Reconnected);
    assert!(matches!(outcome, Outcome::Failed { .. }), "no index was sent: {outcome:?}");
}

#[test]
fn the_pause_doubles_up_to_its_maximum_and_starts_afresh_after_an_answer() {
    let mut bench = Bench::new(1, None);
    for ceiling in [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000] {
        bench.fetch_after_sleep();
        let Outcome::Failed { retry_in, .. } = bench.answer(Duration::ZERO, FetchResult::Failed)
        else {
            panic!()
        };
        assert!((250..=ceiling).contains(&retry_in.as_millis()), "{retry_in:?} of {ceiling}");
    }
    bench.fetch_after_sleep();
    bench.good(Duration::ZERO, 1, 1);
    bench.fetch_after_sleep();
    bench.good(SECOND, 1, 1);
    bench.fetch();
    let Outcome::Failed { retry_in, failures: 1, .. } =
        bench.answer(Duration::ZERO, FetchResult::Failed)
    else {
        panic!()
    };
    assert!(retry_in <= Duration::from_millis(500), "{retry_in:?}");
}

#[test]
fn an_outage_is_as_long_as_the_time_since_the_last_good_answer() {
    let mut bench = Bench::blocking();
    bench.answer(SECOND, FetchResult::Failed);
    bench.now += 12 * SECOND;
    bench.fetch_after_sleep();
    assert_eq!(bench.good(Duration::ZERO, 3, 1), publish(false), "nothing has blocked yet");
    let (fetch, slept) = bench.fetch_after_sleep();
    assert_eq!((fetch.index, fetch.wait), (Some(3), SECOND), "a short one is enough to know");
    let outcome = bench.good(SECOND, 3, 1);
    let outage = Some(13 * SECOND + slept);
    assert_eq!(outcome, Outcome::Publish { changed: false, outage });
    assert_eq!(bench.fetch_after_sleep().0.wait, WAIT);
    assert_eq!(bench.good(WAIT, 3, 1), publish(false));
}

#[test]
fn without_a_good_answer_before_it_an_outage_begins_with_the_first_failure() {
    let mut bench = Bench::new(1, None);
    bench.fetch();
    bench.answer(9 * SECOND, FetchResult::Failed);
    let (_, slept) = bench.fetch_after_sleep();
    assert_eq!(bench.good(SECOND, 3, 1), publish(true));
    bench.fetch_after_sleep();
    let outage = Some(SECOND + slept);
    assert_eq!(bench.good(SECOND, 3, 1), Outcome::Publish { changed: false, outage });
}

#[test]
fn changes_follow_without_sleep_even_ten_a_second() {
    let mut bench = Bench::blocking();
    for i in 0..100 {
        bench.good(SECOND / 10, 8 + i, u128::from(i) + 2);
        let Step::Fetch(_) = bench.step() else { panic!("change {i} is not seen at once") };
    }
}

#[test]
fn a_storm_of_useless_wakeups_is_held_to_two_a_second() {
    let mut bench = Bench::blocking();
    let start = bench.now;
    let mut index = 8;
    let mut requests = 0;
    while bench.now - start < 60 * SECOND {
        bench.good(Duration::ZERO, index, 1);
        index += 1;
        bench.fetch_after_sleep();
        requests += 1;
    }
    assert!((118..=124).contains(&requests), "{requests}");
}

#[test]
fn large_answers_cost_more() {
    let mut bench = Bench::blocking();
    for i in 0..4 {
        let answer = FetchResult::Good {
            index: 8 + i,
            digest: 2 + u128::from(i),
            bytes: 16 << 20,
            is_copy: false,
        };
        bench.answer(Duration::ZERO, answer);
        bench.fetch_after_sleep();
    }
    bench.answer(
        Duration::ZERO,
        FetchResult::Good { index: 50, digest: 50, bytes: 16 << 20, is_copy: false },
    );
    let Step::Sleep(time) = bench.step() else { panic!("17 MiB/s without pause") };
    assert_eq!(time.as_millis(), 850);
}

#[test]
fn a_poll_never_blocks_and_keeps_its_interval() {
    let mut bench = Bench::new(1, Some(5 * SECOND));
    for _ in 0..10 {
        let (fetch, slept) = bench.fetch_after_sleep();
        assert_eq!(fetch.index, None);
        assert!(slept.is_zero() || (4 * SECOND..=5 * SECOND).contains(&slept), "{slept:?}");
        bench.good(Duration::ZERO, 7, 1);
    }
}

#[test]
fn the_wait_can_be_limited_for_a_while() {
    let mut bench = Bench::blocking();
    bench.query.limit_wait(Some(5 * SECOND));
    bench.good(SECOND, 9, 2);
    assert_eq!(bench.fetch().wait, 5 * SECOND);
    assert_eq!(bench.good(5 * SECOND, 9, 2), publish(false));
    bench.query.limit_wait(None);
    assert_eq!(bench.fetch(), Fetch { index: Some(9), ..Fetch::read(0, WAIT) });
}

#[test]
fn senseless_settings_are_bounded() {
    let settings = Settings {
        servers: 0,
        wait: Duration::ZERO,
        retry_min: Duration::ZERO,
        retry_max: Duration::ZERO,
        poll_interval: None,
        fallback_interval: Duration::ZERO,
        can_avoid_copies: false,
        may_lag: false,
    };
    let mut bench = Bench::new(1, None);
    bench.query = BlockingQuery::new(settings);
    assert_eq!(bench.fetch().wait, SECOND);
    bench.answer(Duration::ZERO, FetchResult::Failed);
    assert_eq!(bench.step(), Step::Sleep(MIN_RETRY));
}

#[test]
fn a_read_can_be_wanted_at_a_time_and_comes_without_an_index() {
    for poll_interval in [None, Some(5 * SECOND)] {
        let mut bench = Bench::new(1, poll_interval);
        bench.fetch();
        bench.good(Duration::ZERO, 7, 1);
        bench.query.read_again(bench.now + SECOND);
        assert_eq!(bench.step(), Step::Sleep(SECOND));
        let (fetch, _) = bench.fetch_after_sleep();
        assert_eq!(fetch.index, None);
    }
    // Whatever is wanted, answers that change nothing are paid for.
    let mut bench = Bench::new(1, None);
    let start = bench.now;
    for _ in 0..40 {
        bench.fetch_after_sleep();
        bench.good(Duration::ZERO, 7, 1);
        bench.query.read_again(bench.now);
    }
    assert!(bench.now - start > 15 * SECOND, "{:?}", bench.now - start);
}

fn any_answer() -> impl Strategy<Value = FetchResult> {
    let bytes = prop_oneof![Just(2), 0..32u64 << 20];
    prop_oneof![
        4 => (0..5u64, 0..3u128, bytes, any::<bool>()).prop_map(|(index, digest, bytes, is_copy)| {
            FetchResult::Good { index, digest, bytes, is_copy }
        }),
        1 => Just(FetchResult::Outdated),
        2 => Just(FetchResult::Rejected),
        2 => Just(FetchResult::Failed),
        1 => Just(FetchResult::Reconnected),
    ]
}

proptest! {
    #[test]
    fn any_history_keeps_every_bound(
        answers in proptest::collection::vec((any_answer(), 0..200u64), 1..300),
        servers in 1..4usize,
        polls: bool,
        seed: u64,
    ) {
        let mut bench = Bench::new(servers, polls.then_some(5 * SECOND));
        bench.rng = SmallRng::seed_from_u64(seed);
        let start = bench.now;
        let mut requests = 0u32;
        for (answer, millis) in answers {
            let (fetch, slept) = bench.fetch_after_sleep();
            requests += 1;
            prop_assert!(slept <= Duration::from_secs(30), "slept {slept:?}");
            prop_assert!(fetch.server < servers);
            prop_assert!(!fetch.probe || fetch.server == 0 && fetch.index.is_none());
            prop_assert_ne!(fetch.index, Some(0));
            prop_assert!(!polls || fetch.index.is_none());
            // Nothing can bring a watch to ask more often than this.
            let time = (bench.now - start).as_secs_f64();
            prop_assert!(f64::from(requests) <= BUCKET + 2.0 + time * REFILL, "{requests} in {time} s");
            let had_index = fetch.index;
            let outcome = bench.answer(Duration::from_millis(millis), answer);
            if let (FetchResult::Good { index, is_copy: false, .. }, Some(asked)) = (answer, had_index) {
                prop_assert!(index.max(1) > asked || bench.query.index.is_none());
            }
            if matches!(outcome, Outcome::Failed { .. }) {
                prop_assert_eq!(bench.query.index, None);
                prop_assert!(!fetch.probe);
            }
            if bench.query.is_failing() {
                let ends = matches!(outcome, Outcome::Publish { outage: Some(_), .. });
                prop_assert!(!ends, "{outcome:?}");
                let blocks = fetch.index.is_some() && matches!(answer, FetchResult::Good { .. });
                prop_assert!(!blocks, "only the answer to a query that blocks ends an outage");
            }
        }
    }
}
