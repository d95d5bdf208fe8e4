//! Targets that come and go, and more services than connections.

use std::sync::atomic::Ordering;

use super::*;
use crate::model::Selection;
use crate::watch::testing::SOON;
use crate::watch::testing::registry::Registry;

fn of(registry: &Registry) -> Arc<crate::watch::Endpoint> {
    Arc::new(endpoint(&registry.url))
}

/// An watcher that follows `s0` to `s<count - 1>`, on the targets of these numbers.
fn follow_all(
    registry: &Registry,
    count: usize,
    connections: usize,
) -> (Watcher, Arc<RecordingSink>) {
    let endpoint = of(registry);
    let blocks = (0..count).map(|i| target(&endpoint, &format!("s{i}"))).collect();
    start(blocks, connections)
}

/// Waits until overviews speak for all.
fn until_triggered(registry: &Registry, sink: &RecordingSink, count: usize) {
    sink.until(|told| told.sets.len() == count);
    for path in ["state/critical", "state/warning", "catalog/services"] {
        registry.until_blocked(path, 1);
    }
    let last = |told: &crate::watch::testing::Recorded, number: usize| {
        let start = format!("{number} ");
        let report = told.reports.iter().rev().find(|report| report.starts_with(&start));
        report.is_some_and(|report| report.contains("Triggered"))
    };
    sink.until_within(SOON * 4, |told| (0..count).filter(|n| last(told, *n)).count() >= count / 2);
}

fn peers(told: &crate::watch::testing::Recorded, number: usize) -> usize {
    told.sets.get(&number).map_or(0, |set| set.peers().len())
}

#[test]
fn a_target_that_comes_is_read_at_once_and_one_that_goes_is_not_heard_of() {
    let registry = Registry::new(3);
    let endpoint = of(&registry);
    let (watcher, sink) = start(Vec::new(), 8);
    watcher.follow(7, target(&endpoint, "s1"));
    assert!(sink.until_peers(7, 1) < Duration::from_secs(1));
    registry.until_blocked("service/s1", 1);
    registry.set("s1", &[element("a", 1), element("b", 2)]);
    assert!(sink.until_peers(7, 2) < Duration::from_secs(1));
    watcher.forget(7);
    let reports = sink.state.lock().unwrap().reports.len();
    registry.set("s1", &[element("a", 1)]);
    // Whatever comes later than this would have come before.
    watcher.follow(8, target(&endpoint, "s2"));
    sink.until_peers(8, 1);
    let told = sink.state.lock().unwrap();
    assert_eq!(peers(&told, 7), 2);
    assert!(told.reports[reports..].iter().all(|report| !report.starts_with("7 ")));
    drop(told);
    end(watcher);
}

#[test]
fn a_target_joins_a_query_that_is_under_way_without_ending_it() {
    let registry = Registry::new(1);
    let (watcher, sink) = follow_all(&registry, 1, 8);
    registry.until_blocked("service/s0", 1);
    let other = Selection { admit: crate::model::Admit::Any, ..Selection::default() };
    let joins = crate::watch::Target { selection: other, ..target(&of(&registry), "s0") };
    watcher.follow(5, joins);
    assert!(sink.until_peers(5, 1) < Duration::from_secs(1));
    registry.until_blocked("service/s0", 1);
    let requests = registry.requests("service/s0");
    registry.set("s0", &[element("a", 1), element("b", 2)]);
    sink.until(|told| peers(told, 5) == 2 && peers(told, 0) == 2);
    registry.until_blocked("service/s0", 1);
    assert!(registry.requests("service/s0") <= requests + 2, "one query for both");
    watcher.forget(5);
    registry.set("s0", &[element("a", 1)]);
    sink.until_peers(0, 1);
    assert_eq!(peers(&sink.state.lock().unwrap(), 5), 2);
    end(watcher);
}

#[test]
fn a_change_around_the_call_is_never_missed() {
    let registry = Registry::new(60);
    let endpoint = of(&registry);
    let (watcher, sink) = start(Vec::new(), 16);
    for number in 0..60u16 {
        watcher.follow(number.into(), target(&endpoint, &format!("s{number}")));
        registry.set(&format!("s{number}"), &[element("a", 1), element("b", 2 + number)]);
    }
    sink.until_within(SOON * 2, |told| (0..60).all(|number| peers(told, number) == 2));
    assert!(registry.most_connections() <= 16, "{}", registry.most_connections());
    end(watcher);
}

#[test]
fn thousands_may_come_and_go() {
    let registry = Registry::new(10);
    let endpoint = of(&registry);
    let (watcher, sink) = start(Vec::new(), 8);
    let begin = Instant::now();
    for number in 0..5000 {
        watcher.follow(number, target(&endpoint, &format!("gone-{number}")));
        watcher.forget(number);
    }
    // One that waited for Consul would take a second by itself.
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    watcher.follow(9000, target(&endpoint, "s9"));
    sink.until_peers(9000, 1);
    registry.until_blocked("service/gone", 0);
    assert!(registry.most_connections() <= 8);
    end(watcher);
}

#[test]
fn beyond_the_connections_a_change_of_health_is_seen_at_once_and_costs_only_its_service() {
    let registry = Registry::new(100);
    let (watcher, sink) = follow_all(&registry, 100, 8);
    until_triggered(&registry, &sink, 100);
    // The full poll that the first answers of the overviews ask for is over.
    let quiet = || {
        let before = registry.requests("health/service");
        thread::sleep(Duration::from_millis(300));
        registry.requests("health/service") == before
    };
    let deadline = Instant::now() + SOON * 2;
    while !quiet() {
        assert!(Instant::now() < deadline, "never quiet");
    }
    let before = registry.requests("health/service");
    registry.set_health("s50", &[element("a", 1), element("b", 2)]);
    let took = sink.until_peers(50, 2);
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert!(registry.requests("health/service") - before <= 2);
    assert!(registry.most_connections() <= 8, "{}", registry.most_connections());
    end(watcher);
}

#[test]
fn a_registration_is_found_by_a_sweep_of_indices() {
    let registry = Registry::new(100);
    let (watcher, sink) = follow_all(&registry, 100, 8);
    until_triggered(&registry, &sink, 100);
    registry.set("s70", &[element("a", 1), element("b", 2)]);
    let took = sink.until_peers(70, 2);
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(registry.requests("tag=nginx-consul%3Anone") >= 50);
    end(watcher);
}

#[test]
fn without_the_right_to_read_all_services_each_is_polled() {
    let registry = Registry::new(40);
    registry.refuse(Some(403));
    let (watcher, sink) = follow_all(&registry, 40, 8);
    sink.until(|told| told.sets.len() == 40);
    let refused = "overview watch of all services failed";
    sink.until(|told| told.lines.iter().any(|line| line.contains(refused)));
    registry.set("s33", &[element("a", 1), element("b", 2)]);
    sink.until_within(Duration::from_secs(6), |told| peers(told, 33) == 2);
    let told = sink.state.lock().unwrap();
    assert!(told.reports.iter().any(|report| report.contains("Polling { delay: 5s }")));
    assert!(told.lines.iter().filter(|line| line.contains(refused)).count() <= 3);
    drop(told);
    // The right is back.
    registry.refuse(None);
    sink.until_within(SOON * 8, |told| {
        told.lines.iter().any(|l| l.contains("of all services recovered"))
    });
    end(watcher);
}

fn shared(
    registry: &Registry,
    (services, connections): (usize, usize),
    foreign: usize,
) -> (Watcher, Arc<RecordingSink>) {
    let endpoint = of(registry);
    let blocks = (0..services).map(|i| target(&endpoint, &format!("s{i}"))).collect();
    let sink = Arc::new(RecordingSink::default());
    sink.foreign.store(foreign, Ordering::SeqCst);
    let plan = Arc::new(Plan::new(blocks, connections).0);
    (Watcher::start(plan, Arc::clone(&sink) as Arc<dyn Sink>).unwrap(), sink)
}

#[test]
fn connections_of_an_engine_before_are_left_alone_until_they_are_gone() {
    let registry = Registry::new(12);
    let (watcher, sink) = shared(&registry, (12, 16), 10);
    sink.until(|told| told.sets.len() == 12);
    sink.until(|told| told.lines.iter().any(|l| l.contains("12 services, 6 connections")));
    registry.set("s3", &[element("a", 1), element("b", 2)]);
    sink.until_within(SOON + SOON, |told| peers(told, 3) == 2);
    assert!(registry.most_connections() <= 6, "{}", registry.most_connections());
    sink.foreign.store(0, Ordering::SeqCst);
    registry.until_blocked("service/", 12);
    let end_of_it = "each of 12 services has its own blocking query";
    sink.until_within(SOON * 2, |told| told.lines.iter().any(|l| l.contains(end_of_it)));
    let noted = *sink.noted.lock().unwrap();
    assert_eq!((noted.blocking >= 12, noted.wait >= Duration::from_secs(10)), (true, true));
    assert!(registry.most_connections() <= 16, "{}", registry.most_connections());
    end(watcher);
}

#[test]
fn more_than_64_connections_are_tried_out_and_a_restart_of_the_agent_is_no_refusal() {
    let registry = Registry::new(150);
    let (watcher, sink) = shared(&registry, (150, 200), 0);
    registry.until_blocked("service/", 150);
    assert!(registry.most_connections() <= 166, "{}", registry.most_connections());
    let noted = *sink.noted.lock().unwrap();
    assert_eq!((noted.allowed, noted.needed, noted.limit), (166, 166, None));
    registry.cut_all();
    registry.until_blocked("service/", 0);
    registry.until_blocked("service/", 150);
    registry.set("s7", &[element("a", 1), element("b", 2)]);
    sink.until_peers(7, 2);
    end(watcher);
    let lines = sink.lines();
    assert!(lines.iter().all(|line| !line.contains("refused connection")), "{lines:#?}");
}

#[test]
fn what_consul_refuses_is_told_and_the_connections_are_given_back() {
    let cases = [(false, "raise limits.http_max_conns_per_client"), (true, "raise LimitNOFILE")];
    for (is_silent, told) in cases {
        let registry = Registry::new(150);
        registry.limit(100, is_silent);
        let (watcher, sink) = shared(&registry, (150, 200), 0);
        let refused = |line: &String| line.starts_with("Warn Consul refused connection ");
        sink.until(|told| told.lines.iter().any(refused));
        let line = sink.lines().into_iter().find(refused).unwrap();
        assert!(line.contains(told), "{line}");
        sink.until(|_| registry.connections() <= 24);
        registry.set("s70", &[element("a", 1), element("b", 2)]);
        sink.until_peers(70, 2);
        let noted = *sink.noted.lock().unwrap();
        assert_eq!((noted.needed, noted.limit), (166, Some(crate::model::Limit::Refused)));
        assert!((64..100).contains(&noted.allowed), "{noted:?}");
        assert_eq!(sink.lines().iter().filter(|line| refused(line)).count(), 1);
        end(watcher);
    }
}
