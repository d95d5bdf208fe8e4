mod many;
mod scheduler;

use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::thread;

use super::*;
use crate::watch::Target;
use crate::watch::testing::{FakeConsul, RecordingSink, element, endpoint, target};

fn start(blocks: Vec<Target>, connections: usize) -> (Watcher, Arc<RecordingSink>) {
    let sink = Arc::new(RecordingSink::default());
    let (plan, _) = Plan::new(blocks, connections);
    let watcher = Watcher::start(Arc::new(plan), Arc::clone(&sink) as Arc<dyn Sink>).unwrap();
    (watcher, sink)
}

/// Ends the watcher, which must not take long.
fn end(watcher: Watcher) {
    let start = Instant::now();
    assert!(watcher.join(Duration::from_secs(2)), "a thread does not end");
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
}

#[test]
fn follows_changes_at_once_and_logs_each_once() {
    let consul = FakeConsul::new(&[element("a", 1)]);
    let endpoint = Arc::new(endpoint(&consul.url));
    let (watcher, sink) = start(vec![target(&endpoint, "web")], 64);
    sink.until_peers(0, 1);
    for count in 2..=10u16 {
        consul.set(&(0..count).map(|i| element(&i.to_string(), 1 + i)).collect::<Vec<_>>());
        let late = sink.until_peers(0, count.into());
        // Measured 1 ms; any sleep between polls would show even on a busy machine.
        assert!(late < Duration::from_millis(250), "{late:?}");
    }
    consul.set(&[]);
    sink.until_peers(0, 0);
    end(watcher);
    let lines = sink.lines();
    assert_eq!(lines.len(), 11, "{lines:#?}");
    assert_eq!(lines[0], "Notice service \"web\": 1 peer (+1 -0), index 10");
    assert_eq!(lines[2], "Notice service \"web\": 3 peers (+1 -0), index 12");
    assert_eq!(lines[10], "Notice service \"web\": 0 peers (+0 -10), index 20");
    assert_eq!(consul.connections(), 1);
}

#[test]
fn ends_at_once_inside_a_poll_a_backoff_and_a_silent_connection() {
    let consul = FakeConsul::new(&[]);
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let urls = [
        consul.url.clone(),
        format!("http://{dead}"),
        format!("http://{}", silent.local_addr().unwrap()),
    ];
    let blocks = urls.map(|url| {
        let mut target = target(&Arc::new(endpoint(&url)), "web");
        target.timing.retry_min = Duration::from_secs(20);
        target
    });
    let (watcher, sink) = start(blocks.to_vec(), 64);
    sink.until(|told| told.reports.len() == 2);
    let _held = silent.accept().unwrap();
    while consul.requests() < 2 {
        thread::yield_now();
    }
    end(watcher);
}

#[test]
fn an_outage_is_logged_when_it_begins_and_when_it_ends() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{address}");
    let (watcher, sink) = start(vec![target(&Arc::new(endpoint(&url)), "web")], 64);
    let repeated = |line: &&String| line.starts_with("Info");
    sink.until(|told| told.lines.iter().filter(repeated).count() >= 2);
    // Consul comes up on the address that refused so far.
    let listener = TcpListener::bind(address).unwrap();
    let server = thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        // The second of these would block.
        for index in [5, 6] {
            let _ = stream.read(&mut [0; 4096]).unwrap();
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Consul-Index:";
            let answer = format!("{head} {index}\r\nContent-Length: 2\r\n\r\n[]");
            stream.write_all(answer.as_bytes()).unwrap();
        }
        stream
    });
    sink.until(|told| told.lines.iter().any(|line| line.contains("first answer after")));
    end(watcher);
    drop(server.join());
    let lines = sink.lines();
    let errors: Vec<_> = lines.iter().filter(|line| line.starts_with("Error")).collect();
    assert_eq!(errors.len(), 1, "{lines:#?}");
    let refused =
        "service \"web\": cannot connect (Connection refused (os error 111)), retrying in ";
    assert!(errors[0].contains(refused), "{errors:?}");
    let end = format!("ms, server \"{url}\", no answer so far");
    assert!(errors[0].ends_with(&end), "{errors:?}");
    assert!(lines.iter().filter(|line| line.starts_with("Info")).count() >= 2, "{lines:#?}");
    let again = lines.last().unwrap();
    assert!(again.starts_with("Notice service \"web\": first answer after "), "{again}");
    assert!(again.ends_with(&format!("s, server \"{url}\"")), "{again}");
}

#[test]
fn the_next_server_takes_over() {
    let consul = FakeConsul::new(&[element("a", 1)]);
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut endpoint = endpoint(&format!("http://{dead}"));
    endpoint.servers.push(consul.url.parse().unwrap());
    let (watcher, sink) = start(vec![target(&Arc::new(endpoint), "web")], 64);
    sink.until_peers(0, 1);
    sink.until(|told| told.reports.len() == 2);
    end(watcher);
    let reports = &sink.state.lock().unwrap().reports;
    assert!(reports[0].contains("Failed { server: 0") && reports[0].contains("retry_in: 0ns"));
    assert_eq!(reports[1], "0 Good { index: 10, server: 1, mode: Blocking, pending: None }");
}

#[test]
fn more_services_than_connections_share_them_in_a_sweep() {
    // This one knows nothing of all services.
    let consul = FakeConsul::new(&[element("a", 1)]);
    let endpoint = Arc::new(endpoint(&consul.url));
    let blocks: Vec<_> = (0..40).map(|i| target(&endpoint, &format!("s{i}"))).collect();
    let (watcher, sink) = start(blocks, 8);
    sink.until(|told| told.sets.len() == 40);
    sink.until(|told| told.reports.join(" ").contains("Polling { delay: 5s }"));
    sink.until(|told| {
        told.lines.iter().any(|line| line.contains("overview watch of all services failed"))
    });
    end(watcher);
    assert!(consul.connections() <= 8, "{}", consul.connections());
    let notice = "Notice more services than consul_connections: 40 services, 8 connections, ";
    let lines = sink.lines();
    assert!(lines.iter().any(|line| line.starts_with(notice)), "{lines:#?}");
}

#[test]
fn a_panic_ends_no_watch() {
    let consul = FakeConsul::new(&[element("a", 1)]);
    let mut target = target(&Arc::new(endpoint(&consul.url)), "web");
    target.timing.retry_max = Duration::from_millis(50);
    let sink = Arc::new(RecordingSink::default());
    sink.panics.store(2, Ordering::SeqCst);
    let plan = Arc::new(Plan::new(vec![target], 64).0);
    let watcher = Watcher::start(plan, Arc::clone(&sink) as Arc<dyn Sink>).unwrap();
    sink.until_peers(0, 1);
    end(watcher);
    assert_eq!(sink.lines()[..2], ["Error service \"web\": its watch panicked and restarts"; 2]);
}

#[test]
fn a_full_zone_is_logged_once_and_skipped_instances_too() {
    let bad = element("bad", 0);
    let consul = FakeConsul::new(std::slice::from_ref(&bad));
    let sink = Arc::new(RecordingSink::default());
    *sink.refuse.lock().unwrap() = Some("zone is full".to_owned());
    let plan = Plan::new(vec![target(&Arc::new(endpoint(&consul.url)), "web")], 64).0;
    let watcher = Watcher::start(Arc::new(plan), Arc::clone(&sink) as Arc<dyn Sink>).unwrap();
    for port in 1..4 {
        sink.until(|told| told.reports.len() == usize::from(port));
        consul.set(&[bad.clone(), element("good", port)]);
    }
    sink.until(|told| told.reports.len() == 4);
    end(watcher);
    assert_eq!(
        sink.lines(),
        [
            "Warn service \"web\": instance \"bad\" on node \"n\" skipped: port 0 is not in 1-65535",
            "Error service \"web\": zone is full, keeping the old peers",
        ]
    );
}

#[test]
fn what_is_asked_again_is_read_beside_the_query_that_waits() {
    let consul = FakeConsul::new(&[element("a", 1)]);
    let endpoint = Arc::new(endpoint(&consul.url));
    let (watcher, sink) = start(vec![target(&endpoint, "web")], 64);
    sink.until_peers(0, 1);
    let asked = || consul.requests();
    for _ in 0..3 {
        let before = asked();
        watcher.request_resync(0);
        watcher.request_resync(9);
        let start = Instant::now();
        while asked() == before {
            assert!(start.elapsed() < Duration::from_secs(5), "Consul was not asked");
            thread::sleep(Duration::from_millis(1));
        }
    }
    end(watcher);
}

#[test]
fn a_target_that_joins_while_the_watch_publishes_gets_the_answer_too() {
    let until = |what: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() < Duration::from_secs(5), "it does not come to that");
            thread::sleep(Duration::from_millis(1));
        }
    };
    let consul = FakeConsul::new(&[element("a", 1)]);
    let endpoint = Arc::new(endpoint(&consul.url));
    let sink = Arc::new(RecordingSink::default());
    let plan = Arc::new(Plan::new(vec![target(&endpoint, "web")], 64).0);
    let watcher = Watcher::start(plan, Arc::clone(&sink) as Arc<dyn Sink>).unwrap();
    sink.until_peers(0, 1);
    *sink.hold.lock().unwrap() = Some(0);
    consul.set(&[element("a", 1), element("b", 2)]);
    until(&|| sink.is_held.load(Ordering::SeqCst));
    watcher.follow(1, target(&endpoint, "web"));
    *sink.hold.lock().unwrap() = None;
    sink.until_peers(1, 2);
    end(watcher);
}
