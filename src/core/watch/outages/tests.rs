use std::collections::HashSet;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::watch::testing::RecordingSink;

const URL: &str = "http://127.0.0.1:8500";
const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    outages: Arc<Outages>,
    sink: RecordingSink,
    now: Instant,
}

impl Bench {
    fn new() -> Bench {
        let outages = Arc::<Outages>::default();
        Bench { outages, sink: RecordingSink::default(), now: Instant::now() }
    }

    fn fail(&self, name: &str, error: &str) -> Failing {
        let retry = ("retrying in 300ms".to_owned(), true);
        self.outages.begin(URL, (name.to_owned(), error), retry, self.now)
    }

    fn recover(&self, name: &str, failing: Failing) {
        let ended = Recovery {
            outage: SECOND,
            without_streaming: false,
            server: "http://other".to_owned(),
        };
        failing.end(name.to_owned(), ended, self.now);
    }

    /// The lines of the next so many seconds.
    fn lines(&mut self, time: Duration) -> Vec<String> {
        let (end, before) = (self.now + time, self.sink.lines().len());
        while self.now < end {
            let next = self.outages.write(&self.sink, self.now);
            self.now = next.map_or(end, |next| next.max(self.now)).min(end);
        }
        self.outages.write(&self.sink, self.now);
        self.sink.lines().split_off(before)
    }
}

#[test]
fn services_that_fail_together_are_one_line_and_so_is_their_end() {
    let mut bench = Bench::new();
    let error = "HTTP 500: rpc error";
    let all: Vec<_> =
        (0..40).map(|n| (n, bench.fail(&format!("service \"s{n}\""), error))).collect();
    assert!(all.iter().all(|(_, failing)| !failing.is_logged()));
    let line = format!(
        "Error service \"s0\" and 39 others: HTTP 500: rpc error, retrying in 300ms, server \"{URL}\""
    );
    assert_eq!(bench.lines(SECOND), [line]);
    assert_eq!(all.iter().filter(|(_, failing)| failing.is_logged()).count(), 1);
    for (n, failing) in all {
        assert_eq!(bench.lines(SECOND / 20), [""; 0], "while others still fail");
        bench.recover(&format!("service \"s{n}\""), failing);
    }
    let line = "Notice service \"s0\" and 39 others: recovered after 1.0s, server \"http://other\"";
    assert_eq!(bench.lines(Duration::ZERO), [line], "the last one waits for nobody");
    assert_eq!(bench.outages.write(&bench.sink, bench.now), None);
}

#[test]
fn one_service_has_its_own_lines_in_their_order() {
    let mut bench = Bench::new();
    let failing = bench.fail("service \"a\"", "one");
    let other = bench.fail("service \"b\"", "two");
    bench.recover("service \"a\"", failing);
    let lines = bench.lines(Duration::ZERO);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].starts_with("Error service \"a\": one, "), "{lines:#?}");
    assert!(lines[1].starts_with("Notice service \"a\": recovered "), "{lines:#?}");
    let lines = bench.lines(SECOND);
    assert!(lines.len() == 1 && lines[0].starts_with("Error service \"b\": two, "), "{lines:#?}");
    drop(other);
    assert_eq!(bench.lines(60 * SECOND), [""; 0], "it is not followed any more");
}

#[test]
fn who_joins_later_is_logged_of_but_not_more_than_six_times_a_minute() {
    let mut bench = Bench::new();
    let mut failing = vec![bench.fail("service \"a\"", "one")];
    assert_eq!(bench.lines(SECOND).len(), 1);
    let mut lines = Vec::new();
    for n in 0..100 {
        failing.push(bench.fail(&format!("service \"{n}\""), "one"));
        lines.extend(bench.lines(SECOND));
    }
    assert!((8..=10).contains(&lines.len()), "{lines:#?}");
    // Those that recover don't wait for the others for ever.
    bench.recover("service \"a\"", failing.swap_remove(0));
    let lines = bench.lines(6 * SECOND);
    assert!(
        lines.iter().any(|line| line.starts_with("Notice service \"a\": recovered")),
        "{lines:#?}"
    );
}

#[test]
fn a_change_of_how_services_are_asked_is_one_line() {
    let mut bench = Bench::new();
    for n in 0..3 {
        bench.outages.note_copy_change(
            URL,
            format!("service \"s{n}\""),
            CopyChange::Avoided,
            bench.now,
        );
    }
    bench.outages.note_copy_change(URL, "service \"t\"".to_owned(), CopyChange::Resumed, bench.now);
    let lines: HashSet<String> = bench.lines(SECOND).into_iter().collect();
    let lag = format!(
        "Warn service \"s0\" and 2 others: streamed answers are outdated, blocking without streaming \
         for some minutes, server \"{URL}\""
    );
    let back = format!("Info service \"t\": blocking with streaming again, server \"{URL}\"");
    assert_eq!(lines, HashSet::from([lag, back]));
}

#[test]
fn reads_after_failures_are_spread_but_nobody_waits_for_long() {
    let (outages, now) = (Outages::default(), Instant::now());
    let mut rng = SmallRng::seed_from_u64(1);
    let mut turns: Vec<Duration> =
        (0..40).map(|_| outages.reserve_read(URL, now, &mut rng) - now).collect();
    turns.sort_unstable();
    assert!(turns[4].is_zero() && !turns[7].is_zero(), "{turns:?}");
    for (n, turn) in turns.iter().enumerate() {
        let within = turns.iter().filter(|t| **t >= *turn && **t < *turn + SECOND).count();
        assert!(within <= 31, "{within} within a second of the {n}th: {turns:?}");
    }
    assert!(turns[39] <= 2 * SECOND, "{turns:?}");
    let most = (0..5000).map(|_| outages.reserve_read(URL, now, &mut rng) - now).max().unwrap();
    assert!(most <= MAX_DELAY, "{most:?}");
    assert_eq!(outages.reserve_read("http://other", now, &mut rng), now, "each server has its own");
}
