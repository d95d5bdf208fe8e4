use std::net::TcpListener;

use super::*;
use crate::watch::Target;
use crate::watch::testing::{FakeConsul, RecordingSink, element, endpoint, target};

fn first(blocks: Vec<Target>, needed: &[usize], timeout: Duration) -> (usize, Arc<RecordingSink>) {
    let sink = Arc::new(RecordingSink::default());
    let plan = Arc::new(Plan::new(blocks, 4).0);
    let answered = first_answers(&plan, &(Arc::clone(&sink) as Arc<dyn Sink>), needed, timeout);
    (answered, sink)
}

#[test]
fn all_needed_services_are_there_and_the_threads_are_gone() {
    let consul = FakeConsul::new(&[element("a", 1)]);
    let endpoint = Arc::new(endpoint(&consul.url));
    let blocks: Vec<_> = (0..20).map(|i| target(&endpoint, &format!("s{i}"))).collect();
    let needed: Vec<usize> = (0..19).collect();
    let (answered, sink) = first(blocks, &needed, Duration::from_secs(5));
    assert_eq!(answered, 19);
    assert_eq!(sink.state.lock().unwrap().sets.len(), 19);
    assert_eq!((consul.requests(), consul.connections()), (19, 4));
    // Nobody but the test holds the sink.
    assert_eq!(Arc::strong_count(&sink), 1);
}

#[test]
fn a_silent_consul_costs_the_timeout_and_no_more() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let consul = FakeConsul::new(&[element("a", 1)]);
    let url = format!("http://{}", silent.local_addr().unwrap());
    let blocks = vec![
        target(&Arc::new(endpoint(&url)), "hangs"),
        target(&Arc::new(endpoint(&consul.url)), "works"),
    ];
    let start = Instant::now();
    let (answered, sink) = first(blocks, &[0, 1], Duration::from_millis(200));
    let took = start.elapsed();
    assert!((200..1000).contains(&took.as_millis()), "{took:?}");
    assert_eq!(answered, 1);
    assert_eq!(
        sink.lines(),
        [
            "Notice service \"works\": 1 peer (+1 -0), index 10",
            "Error initial fetch failed for 1 of 2 queries (no answer within 200ms), starting without",
        ]
    );
}

#[test]
fn a_dead_server_costs_nothing_and_the_next_one_answers() {
    let consul = FakeConsul::new(&[element("a", 1)]);
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dead = endpoint(&format!("http://{dead}"));
    let mut both = dead.clone();
    both.servers.push(consul.url.parse().unwrap());
    let start = Instant::now();
    let blocks = vec![target(&Arc::new(dead), "dead"), target(&Arc::new(both), "both")];
    let (answered, sink) = first(blocks, &[0, 1], Duration::from_secs(5));
    assert!(start.elapsed() < Duration::from_secs(3));
    assert_eq!(answered, 1);
    let last = sink.lines().pop().unwrap();
    let text = "Error initial fetch failed for 1 of 2 queries (service \"";
    assert!(last.starts_with(text) && last.contains("cannot connect"), "{last}");
}

#[test]
fn nothing_needed_is_nothing_done_and_a_panic_is_no_panic() {
    let consul = FakeConsul::new(&[]);
    let web = target(&Arc::new(endpoint(&consul.url)), "web");
    let (answered, sink) = first(vec![web.clone()], &[], Duration::from_secs(5));
    assert_eq!((answered, consul.connections(), sink.lines().len()), (0, 0, 0));
    let sink = Arc::new(RecordingSink::default());
    sink.panics.store(1, std::sync::atomic::Ordering::SeqCst);
    let plan = Arc::new(Plan::new(vec![web], 4).0);
    let shared = Arc::clone(&sink) as Arc<dyn Sink>;
    assert_eq!(first_answers(&plan, &shared, &[0], Duration::from_secs(5)), 0);
    assert_eq!(
        sink.lines(),
        ["Error initial fetch failed for 1 of 1 queries (panic), starting without"]
    );
}
