//! Answers that come from a copy of the state: a streamed view, or an agent's cache.

use super::*;

/// A watch that blocks on the index 7 of a streamed view.
fn streamed(settings: impl FnOnce(&mut Settings)) -> Bench {
    let mut bench = Bench::new(1, None);
    settings(&mut bench.query.settings);
    bench.query.copies = Copies::new(bench.query.settings.can_avoid_copies);
    bench.fetch();
    bench.good(Duration::ZERO, 7, 1);
    bench
}

impl Bench {
    fn view(&mut self, after: Duration, index: u64, digest: u128) -> Outcome {
        self.answer(after, FetchResult::Good { index, digest, bytes: 2, is_copy: true })
    }

    /// Expires blocking queries until one asks a server; gives the time and the number of them.
    fn until_verified(&mut self) -> (Duration, u32) {
        let (begin, mut waits) = (self.now, 0);
        loop {
            let fetch = self.fetch();
            if fetch.from == ReadFrom::Leader {
                assert_eq!(fetch.index, None);
                return (self.now - begin, waits);
            }
            let index = fetch.index.expect("it blocks");
            self.view(fetch.wait, index, 1);
            waits += 1;
        }
    }
}

#[test]
fn a_quiet_view_is_verified_every_one_to_two_minutes_and_costs_three_requests_a_minute_at_most() {
    for wait in [60, 50] {
        let mut bench = streamed(|settings| settings.wait = wait * SECOND);
        let (begin, mut requests, mut times) = (bench.now, 0, Vec::new());
        for _ in 0..50 {
            let (time, waits) = bench.until_verified();
            assert!((60 * SECOND..=120 * SECOND).contains(&time), "{time:?}");
            assert_eq!(bench.good(Duration::ZERO, 7, 1), publish(false));
            times.push(time);
            requests += waits + 1;
        }
        let minutes = (bench.now - begin).as_secs_f64() / 60.0;
        let rate = f64::from(requests) / minutes;
        assert!(rate <= 3.0, "{rate} requests a minute");
        times.sort_unstable();
        times.dedup();
        assert!(times.len() > 40, "all watches of an watcher would be in step");
    }
}

#[test]
fn a_server_that_answers_itself_needs_no_verification() {
    let mut bench = Bench::blocking();
    for _ in 0..20 {
        bench.good(WAIT, 7, 1);
        assert_eq!(bench.fetch(), Fetch { index: Some(7), ..Fetch::read(0, WAIT) });
    }
}

#[test]
fn an_expired_wait_of_a_view_may_have_a_lower_index_and_costs_no_read() {
    let mut bench = streamed(|_| {});
    bench.fetch();
    assert_eq!(bench.view(WAIT, 5, 1), publish(false));
    let fetch = bench.fetch();
    assert_eq!((fetch.index, fetch.from), (Some(5), ReadFrom::Anywhere));
    assert_eq!(bench.view(SECOND, 9, 2), publish(true));
    assert_eq!(bench.fetch().index, Some(9));
}

#[test]
fn a_lower_index_that_leads_back_at_once_is_not_asked_for_again() {
    let mut bench = streamed(|settings| settings.wait = SECOND);
    let mut asked = Vec::new();
    for _ in 0..8 {
        let fetch = bench.fetch_after_sleep().0;
        let index = fetch.index.expect("it blocks");
        asked.push(index);
        match index {
            7 => bench.view(SECOND, 6, 1),
            _ => bench.view(Duration::ZERO, 7, 1),
        };
    }
    assert_eq!(asked, [7, 6, 7, 7, 7, 7, 7, 7]);
    // A change is followed as ever.
    bench.fetch_after_sleep();
    bench.view(Duration::ZERO, 9, 2);
    assert_eq!(bench.fetch_after_sleep().0.index, Some(9));
}

#[test]
fn a_view_is_outdated_if_it_says_something_else_and_is_not_newer() {
    assert!(!is_outdated(None, 1, 1));
    assert!(!is_outdated(Some((7, 1)), 5, 1), "it says the same");
    assert!(!is_outdated(Some((7, 1)), 8, 2));
    assert!(is_outdated(Some((7, 1)), 7, 2));
    assert!(is_outdated(Some((7, 1)), 1, 2));
}

#[test]
fn a_view_that_stands_still_is_left_for_minutes_and_then_tried_with_a_short_query() {
    let mut bench = streamed(|_| {});
    bench.until_verified();
    assert_eq!(bench.good(Duration::ZERO, 20, 2), publish(true));
    // Perhaps the view was only a moment late.
    let fetch = bench.fetch();
    assert_eq!((fetch.index, fetch.wait, fetch.from), (Some(20), SECOND, ReadFrom::Anywhere));
    assert_eq!(bench.answer(SECOND, FetchResult::Outdated), Outcome::Again);
    let fetch = bench.fetch();
    assert_eq!((fetch.index, fetch.from), (None, ReadFrom::Leader));
    assert_eq!(bench.good(Duration::ZERO, 20, 2), publish(false));
    assert_eq!(bench.query.take_copy_change(), Some(CopyChange::Avoided));
    assert!(bench.query.avoids_copies());
    let left = bench.now;
    let trial = loop {
        let fetch = bench.fetch();
        if fetch.from == ReadFrom::Anywhere {
            break fetch;
        }
        assert_eq!((fetch.index, fetch.from), (Some(20), ReadFrom::Server));
        bench.good(fetch.wait, 20, 2);
    };
    assert!((300 * SECOND..=660 * SECOND).contains(&(bench.now - left)));
    assert_eq!((trial.index, trial.wait), (Some(20), SECOND));
    // It still lags: the index of the server's answer is as good as before, and nobody is told.
    assert_eq!(bench.answer(SECOND, FetchResult::Outdated), Outcome::Again);
    assert_eq!(bench.query.take_copy_change(), None);
    let fetch = bench.fetch();
    assert_eq!((fetch.index, fetch.from), (Some(20), ReadFrom::Server));
}

#[test]
fn a_view_that_is_there_again_is_used_again() {
    let mut bench = streamed(|_| {});
    bench.query.copies.avoid(bench.now, &mut bench.rng);
    bench.now += 700 * SECOND;
    let fetch = bench.fetch();
    assert_eq!((fetch.from, fetch.wait), (ReadFrom::Anywhere, SECOND));
    bench.view(SECOND, 7, 1);
    assert_eq!(bench.query.take_copy_change(), Some(CopyChange::Resumed));
    assert!(!bench.query.avoids_copies());
    // A Consul that streams no more has nothing to tell.
    bench.query.copies.avoid(bench.now, &mut bench.rng);
    bench.now += 700 * SECOND;
    while bench.fetch().from != ReadFrom::Anywhere {
        bench.good(SECOND, 7, 1);
    }
    bench.good(SECOND, 7, 1);
    assert_eq!((bench.query.take_copy_change(), bench.query.avoids_copies()), (None, false));
}

#[test]
fn a_view_that_catches_up_at_once_is_not_left() {
    let mut bench = streamed(|_| {});
    bench.until_verified();
    bench.good(Duration::ZERO, 20, 2);
    assert_eq!(bench.fetch().wait, SECOND);
    assert_eq!(bench.view(SECOND / 10, 21, 3), publish(true));
    let fetch = bench.fetch();
    assert_eq!((fetch.index, fetch.from), (Some(21), ReadFrom::Anywhere));
    assert!(fetch.wait > SECOND, "{fetch:?}");
    assert_eq!(bench.query.take_copy_change(), None);
}

#[test]
fn a_restored_state_is_taken_and_the_view_that_has_it_is_kept() {
    let mut bench = streamed(|_| {});
    bench.fetch();
    // The index is lower and the content is another one: a server has to say which is right.
    assert_eq!(bench.answer(WAIT, FetchResult::Outdated), Outcome::Again);
    let fetch = bench.fetch();
    assert_eq!((fetch.index, fetch.from), (None, ReadFrom::Leader));
    assert_eq!(bench.good(Duration::ZERO, 3, 9), publish(true));
    assert_eq!(bench.fetch().wait, SECOND);
    bench.view(SECOND, 3, 9);
    assert_eq!((bench.query.take_copy_change(), bench.query.avoids_copies()), (None, false));
}

/// Refuses every query that blocks, as servers do that don't stream, for so long. Gives the times of
/// reads and of queries that block.
fn refuse_blocking(bench: &mut Bench, time: Duration) -> (Vec<Duration>, Vec<Fetch>) {
    let (begin, mut reads, mut blocks) = (bench.now, Vec::new(), Vec::new());
    while bench.now - begin < time {
        let fetch = bench.fetch_after_sleep().0;
        let outcome = if fetch.index.is_some() {
            blocks.push(fetch);
            bench.answer(Duration::ZERO, FetchResult::Rejected)
        } else {
            reads.push(bench.now - begin);
            bench.good(Duration::ZERO, 7, 1)
        };
        assert!(!matches!(outcome, Outcome::Publish { outage: Some(_), .. }), "{outcome:?}");
    }
    (reads, blocks)
}

#[test]
fn where_only_queries_that_block_are_refused_a_server_is_asked_after_three() {
    let mut bench = streamed(|_| {});
    let (_, blocks) = refuse_blocking(&mut bench, 10 * SECOND);
    let from: Vec<ReadFrom> = blocks.iter().map(|fetch| fetch.from).take(5).collect();
    let (stream, server) = (ReadFrom::Anywhere, ReadFrom::Server);
    assert_eq!(from, [stream, stream, stream, server, server]);
    // The server's own answer ends the outage.
    let fetch = loop {
        let fetch = bench.fetch_after_sleep().0;
        if fetch.index.is_some() {
            break fetch;
        }
        bench.good(Duration::ZERO, 7, 1);
    };
    assert_eq!((fetch.from, fetch.wait), (server, SECOND));
    let outcome = bench.good(SECOND, 7, 1);
    assert!(matches!(outcome, Outcome::Publish { outage: Some(_), .. }), "{outcome:?}");
    assert!(bench.query.avoids_copies() && !bench.query.polls());
    assert_eq!(bench.query.take_copy_change(), None, "the end of the outage tells it");
    // The stream is tried again now and then, and that is no outage.
    let begin = bench.now;
    loop {
        let fetch = bench.fetch_after_sleep().0;
        if fetch.from == stream {
            assert_eq!((fetch.index, fetch.wait), (Some(7), SECOND));
            break;
        }
        bench.good(fetch.wait, 7, 1);
    }
    assert!(bench.now - begin > 280 * SECOND, "{:?}", bench.now - begin);
    assert_eq!(bench.answer(Duration::ZERO, FetchResult::Rejected), Outcome::Again);
    let fetch = bench.fetch_after_sleep().0;
    assert_eq!((fetch.index, fetch.from), (Some(7), server));
}

#[test]
fn while_queries_that_block_are_refused_it_reads_every_poll_interval_and_backs_off() {
    let mut bench = streamed(|settings| settings.fallback_interval = 5 * SECOND);
    let (reads, blocks) = refuse_blocking(&mut bench, 300 * SECOND);
    let late: Vec<_> = reads.windows(2).filter(|pair| pair[1] - pair[0] > 5 * SECOND).collect();
    assert!(late.is_empty(), "{late:?}");
    assert!(reads.len() < 110, "{} reads", reads.len());
    assert!(blocks.len() < 45, "{} queries", blocks.len());
    assert!(bench.query.polls());
    let failures = bench.query.failures.count;
    assert_eq!(failures as usize, blocks.len(), "a read does not end the outage");
}

#[test]
fn an_outage_of_everything_is_no_reason_to_do_without_streams() {
    let mut bench = streamed(|_| {});
    for _ in 0..6 {
        while bench.fetch_after_sleep().0.index.is_none() {
            bench.good(Duration::ZERO, 7, 1);
        }
        bench.answer(Duration::ZERO, FetchResult::Rejected);
        bench.fetch_after_sleep();
        bench.answer(Duration::ZERO, FetchResult::Rejected);
    }
    assert!(!bench.query.avoids_copies());
}

#[test]
fn where_nothing_is_streamed_a_refused_query_changes_nothing_of_what_is_asked() {
    let mut bench = streamed(|settings| settings.can_avoid_copies = false);
    let (_, blocks) = refuse_blocking(&mut bench, 60 * SECOND);
    assert!(blocks.len() > 5 && blocks.iter().all(|fetch| fetch.from == ReadFrom::Anywhere));
}

#[test]
fn a_verification_that_is_refused_is_an_outage_unless_answers_may_lag() {
    let mut bench = streamed(|_| {});
    bench.until_verified();
    let outcome = bench.answer(Duration::ZERO, FetchResult::Rejected);
    assert!(matches!(outcome, Outcome::Failed { failures: 1, .. }), "{outcome:?}");
    let mut bench = streamed(|settings| settings.may_lag = true);
    bench.until_verified();
    assert_eq!(bench.answer(Duration::ZERO, FetchResult::Rejected), Outcome::Again);
    let (time, _) = bench.until_verified();
    assert!((5 * SECOND..=40 * SECOND).contains(&time), "{time:?}");
    bench.good(Duration::ZERO, 7, 1);
    assert!(bench.until_verified().0 > 60 * SECOND);
}

#[test]
fn a_poll_of_a_cache_is_verified_too() {
    let mut bench = Bench::new(1, Some(5 * SECOND));
    let (mut verified, begin) = (0, Instant::now());
    bench.now = begin;
    for _ in 0..100 {
        let (fetch, slept) = bench.fetch_after_sleep();
        assert!(slept <= 5 * SECOND, "{slept:?}");
        let is_copy = fetch.from == ReadFrom::Anywhere;
        verified += u32::from(!is_copy);
        bench.answer(Duration::ZERO, FetchResult::Good { index: 7, digest: 1, bytes: 2, is_copy });
    }
    assert!((3..=8).contains(&verified), "{verified} in {:?}", bench.now - begin);
}
