//! Several servers of one endpoint.

use super::*;

#[test]
fn failures_go_through_the_servers_at_once_and_then_pause() {
    let mut bench = Bench::new(3, None);
    for round in 0..4 {
        let mut slept = Duration::ZERO;
        for server in 0..3 {
            let (fetch, sleep) = bench.fetch_after_sleep();
            assert_eq!((fetch.server, fetch.index), (server, None));
            slept += sleep;
            let outcome = bench.answer(Duration::ZERO, FetchResult::Failed);
            let Outcome::Failed { failures, round: last, .. } = outcome else { panic!() };
            assert_eq!((failures, last), (round * 3 + server as u32 + 1, server == 2));
        }
        assert_eq!(slept.is_zero(), round == 0);
    }
}

#[test]
fn the_server_that_answers_is_kept() {
    let mut bench = Bench::new(3, None);
    bench.fetch();
    bench.answer(Duration::ZERO, FetchResult::Failed);
    assert_eq!(bench.fetch().server, 1);
    bench.good(Duration::ZERO, 5, 1);
    assert_eq!(bench.fetch().server, 1);
    bench.answer(Duration::ZERO, FetchResult::Failed);
    assert_eq!(bench.fetch(), Fetch::read(2, WAIT));
}

/// A watch of two servers that has gone over to the second.
fn on_the_second() -> Bench {
    let mut bench = Bench::new(2, None);
    bench.fetch();
    bench.answer(Duration::ZERO, FetchResult::Failed);
    assert_eq!(bench.fetch().server, 1);
    bench.good(Duration::ZERO, 7, 1);
    let poll = bench.fetch();
    assert_eq!((poll.server, poll.index, poll.wait), (1, Some(7), SECOND));
    bench.good(SECOND, 7, 1);
    bench
}

#[test]
fn the_first_server_is_asked_again_while_another_is_in_use() {
    let mut bench = on_the_second();
    // The first answer of the second is a second old.
    let mut elapsed = SECOND;
    for round in 1..=5u32 {
        // The poll of the server in use ends when it is time to ask.
        let poll = bench.fetch();
        assert_eq!((poll.server, poll.index, poll.probe), (1, Some(7), false));
        assert!(poll.wait <= RETURN.mul_f64(1.2), "{poll:?}");
        elapsed += poll.wait;
        assert_eq!(bench.good(poll.wait, 7, 1), publish(false));
        let probe = bench.fetch();
        assert_eq!((probe.server, probe.index, probe.probe), (0, None, true));
        let bounds = RETURN.mul_f64(0.8) * round..=RETURN.mul_f64(1.2) * round;
        assert!(bounds.contains(&elapsed), "{elapsed:?}");
        assert_eq!(bench.answer(Duration::ZERO, FetchResult::Failed), Outcome::Again);
        assert_eq!(bench.query.failures.count, 0, "the one in use is as good as before");
    }
    let poll = bench.fetch();
    assert_eq!((poll.server, poll.index), (1, Some(7)), "the index is still good");
}

#[test]
fn the_first_server_is_in_use_again_once_it_answers() {
    let mut bench = on_the_second();
    let poll = bench.fetch();
    bench.good(poll.wait, 7, 1);
    assert!(bench.fetch().probe);
    assert_eq!(bench.good(Duration::ZERO, 3, 2), publish(true));
    assert_eq!(bench.fetch(), Fetch { index: Some(3), ..Fetch::read(0, WAIT) });
}
