use super::*;

fn usage_of(memory: u64, rest: usize) -> Usage {
    Usage {
        memory: [memory; 2],
        zone: 1000,
        in_flight: 0,
        threads: rest,
        descriptors: rest,
        processes: rest,
    }
}

/// What is found after a minute in which all went well but for what `change` makes of it.
fn found(change: impl FnOnce(&mut Counts, &mut Stalls, &mut Usage)) -> Vec<String> {
    let mut counts = Counts::default();
    for (counter, n) in [
        (&counts.requests, 60_000),
        (&counts.looks, 200),
        (&counts.changes, 12_000),
        (&counts.kills, 40),
        (&counts.killed, 160),
        (&counts.reloads, 15),
        (&counts.restarts, 2),
        (&counts.rotations, 8),
    ] {
        counter.store(n, Ordering::Relaxed);
    }
    let mut stalls = Stalls { latencies: vec![100, 20_000], workers: 2 };
    let mut after = usage_of(11_000, 100);
    change(&mut counts, &mut stalls, &mut after);
    problems(&Result {
        counts: &counts,
        stalls,
        machine: Stalls { latencies: vec![100, 200_000], workers: 1 },
        before: usage_of(10_000, 100),
        after,
        lasted: Duration::from_secs(60),
        clients: 4,
    })
}

#[test]
fn a_good_minute_has_no_problem() {
    assert_eq!(found(|_, _, _| {}), [""; 0]);
}

#[test]
fn each_thing_out_of_bounds_is_a_problem_of_its_own() {
    let one = |what: &str, problems: Vec<String>| {
        assert!(problems.len() == 1 && problems[0].contains(what), "{what}: {problems:?}");
    };
    let set = |counter: &mut AtomicU64, n| *counter.get_mut() = n;
    one("1 failures: ", found(|counts, _, _| set(&mut counts.failed, 1)));
    one("161 requests lost", found(|counts, _, _| set(&mut counts.killed, 161)));
    one("lost: 1 in 200 looks", found(|counts, _, _| set(&mut counts.lost, 1)));
    one("status page", found(|counts, _, _| set(&mut counts.looks, 0)));
    one("6000 requests", found(|counts, _, _| set(&mut counts.requests, 6000)));
    one("1199 registrations", found(|counts, _, _| set(&mut counts.changes, 1199)));
    one("6 reloads", found(|counts, _, _| set(&mut counts.reloads, 6)));
    one("0 Consul restarts", found(|counts, _, _| set(&mut counts.restarts, 0)));
    one("3 token rotations", found(|counts, _, _| set(&mut counts.rotations, 3)));
    one("never probed", found(|_, stalls, _| stalls.latencies.clear()));
    one("held up for 700ms", found(|_, stalls, _| stalls.latencies.push(700_000)));
    one("memory of the master", found(|_, _, after| after.memory[0] = 13_049));
    one("memory of the workers", found(|_, _, after| after.memory[1] = 13_049));
    one("1 bytes of the zone", found(|_, _, after| after.zone += 50 * 1032 + 1));
    one("1 requests are still in flight", found(|_, _, after| after.in_flight = 1));
    one("processes grew from 100 to 101", found(|_, _, after| after.processes = 101));
    // Of 100 processes each has a thread, and one of them those that ask Consul.
    one("threads grew from 100 to 166", found(|_, _, after| after.threads = 166));
    one("descriptors grew from 100 to 166", found(|_, _, after| after.descriptors = 166));
}

#[test]
fn a_worker_is_needed_to_lose_a_request() {
    let problems = found(|counts, _, _| {
        *counts.kills.get_mut() = 0;
        *counts.killed.get_mut() = 1;
    });
    assert!(problems.iter().any(|problem| problem.contains("at most")), "{problems:?}");
    assert!(problems.iter().any(|problem| problem.contains("0 killed workers")), "{problems:?}");
}
