//! Readers of a long status, many at a time or slow: they share what a worker renders.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nginx_consul_e2e::fake_consul::instance;
use nginx_consul_e2e::http::{self, Connection, Response};
use nginx_consul_e2e::{Config, FakeConsul, Nginx, process, wait};
use serde_json::{Value, json};

use super::large::{self, PEERS, until_known};
use crate::support::SOON;

const READERS: usize = 300;
/// Most texts that a worker has for the readers of a location in a format.
const TEXTS: usize = 8;
const JSON: &str = "/consul?format=json";
const MORE: &str = "location = /ready { consul_status ready; } location /api { consul_api; }
    location = /few { consul_status metrics=service; }";

/// As [`large::following`]; the kernel takes little of what nginx sends to a client that reads nothing.
fn following(more: &str) -> (FakeConsul, Config) {
    let (consul, config) = large::following(more);
    (consul, config.set("BUFFER", " sndbuf=64k"))
}

fn start(more: &str) -> (FakeConsul, Nginx) {
    let (consul, config) = following(more);
    let nginx = config.start();
    until_known(&nginx);
    (consul, nginx)
}

/// A reader that has sent its request, and reads nothing yet.
fn reader(nginx: &Nginx, method: &str, path: &str) -> Connection {
    let mut connection = Connection::open(nginx.address()).expect("a connection");
    connection.send(method, path, &[], b"").expect("sent");
    connection
}

/// The same, once its answer has begun to arrive: its text is complete then.
fn slow_reader(nginx: &Nginx, path: &str) -> Connection {
    let mut connection = reader(nginx, "GET", path);
    assert!(!connection.reader().fill_buf().expect("an answer").is_empty());
    connection
}

/// When an answer was rendered.
fn rendered_at(answer: &Response) -> u64 {
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.body.ends_with("]}]}\n"), "{} bytes", answer.body.len());
    let rest = answer.body.split_once("\"time_ms\":").expect("a time").1;
    rest.split(',').next().and_then(|n| n.parse().ok()).expect("a number")
}

fn rss_mb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).expect("kB") / 1024
}

fn drain(nginx: &Nginx, id: usize, method: &str) -> u16 {
    let path = match method {
        "POST" => format!("/api/services/web/instances/web-{id}/drain"),
        _ => format!("/api/services/web/instances/web-{id}"),
    };
    nginx.send_json(method, &path, "").status
}

fn post(nginx: &Nginx, change: &str) -> u16 {
    nginx.send_json("POST", &format!("/api/services/web/{change}"), "").status
}

#[test]
fn hundreds_of_readers_that_read_nothing_cost_a_worker_a_few_texts() {
    let (_consul, nginx) = start(MORE);
    let (worker, before) = (nginx.workers()[0], rss_mb(nginx.workers()[0]));
    let mut readers: Vec<_> = (0..READERS).map(|_| reader(&nginx, "GET", JSON)).collect();
    assert_eq!(nginx.outcome("/ready"), "ready");
    for reader in &mut readers {
        assert!(!reader.reader().fill_buf().expect("an answer").is_empty());
    }
    let after = rss_mb(worker);
    let answers = readers.iter_mut().map(|reader| reader.receive().expect("an answer"));
    let mut length = 0;
    let times: BTreeSet<u64> = answers
        .map(|answer| {
            length = answer.body.len();
            rendered_at(&answer)
        })
        .collect();
    println!("{READERS} readers of {length} bytes: {before} MB, {after} MB, rendered {times:?}");
    assert!(times.len() <= TEXTS, "{} renderings", times.len());
    let most = TEXTS * length / (1 << 20) + 64;
    assert!(after < before + most as u64, "{before} MB, then {after} MB, most {most} MB more");
}

#[test]
fn beyond_the_bound_a_reader_gets_a_recent_text_or_503_and_nobody_else_does() {
    let (_consul, nginx) = start(&format!("{MORE} location = /other {{ consul_status; }}"));
    let mut slow: Vec<_> = (0..TEXTS).map(|_| slow_reader(&nginx, JSON)).collect();
    // An override outdates all of them.
    assert_eq!(drain(&nginx, 7, "POST"), 200);
    let answer = nginx.get(JSON);
    assert!(answer.status == 503 || answer.body.contains("\"draining\""), "{}", answer.status);
    wait::until("the last text is old", SOON, || nginx.get(JSON).status == 503);
    let refused = nginx.get("/consul?format=json&service=web");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.header("cache-control"), Some("no-store"));
    assert_eq!(refused.body, "{\"error\":\"too many slow readers\"}\n");
    let line = nginx.wait_for_log("consul: status refused");
    assert!(line.contains("[warn]") && line.contains("request: \"GET /consul"), "{line}");
    assert_eq!(nginx.outcome("/ready"), "ready");
    for path in ["/other?format=json", "/consul?format=prometheus", "/consul", "/few"] {
        assert_eq!(nginx.get(path).status, 200, "{path}");
    }
    assert_eq!(nginx.get("/api/services/web").status, 200);
    assert_eq!(drain(&nginx, 7, "DELETE"), 200);
    assert_eq!(http::request(nginx.address(), "HEAD", JSON, &[], b"").expect("a head").status, 200);
    // One has left: there is room for one more, which is new, and then for readers of that one.
    drop(slow.pop());
    let mut last = wait::until_some("room for another text", SOON, || {
        let mut reader = slow_reader(&nginx, JSON);
        let is_given = reader.reader().buffer().starts_with(b"HTTP/1.1 200");
        is_given.then_some(reader)
    });
    let shared = nginx.get(JSON);
    let last = last.receive().expect("an answer");
    assert!(!last.body.contains("\"draining\""), "it is of before the override was removed");
    // Unless this machine took a second for it.
    assert!(shared.status == 503 || rendered_at(&shared) == rendered_at(&last));
    // The others still get the whole of theirs.
    let times: BTreeSet<u64> =
        slow.iter_mut().map(|reader| rendered_at(&reader.receive().expect("an answer"))).collect();
    assert_eq!(times.len(), TEXTS - 1);
    assert_eq!(nginx.get(JSON).status, 200);
}

#[test]
fn who_reads_the_status_after_an_override_or_a_new_set_sees_it() {
    // A few turns of the workers even so: a debug build takes seconds for 10,000.
    let (consul, config) = large::following_many(1_000, MORE);
    let nginx = config.set("BUFFER", "").workers(2).start();
    nginx.wait_for_log("service \"web\": 1000 peers");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    assert_eq!(nginx.get(JSON).status, 200);
                }
            });
        }
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..4 {
                for (method, is_drained) in [("POST", true), ("DELETE", false)] {
                    assert_eq!(drain(&nginx, round, method), 200);
                    let answer = nginx.get(JSON);
                    assert_eq!(answer.status, 200);
                    let seen = answer.body.contains("\"draining\"");
                    assert_eq!(seen, is_drained, "round {round}, after {method}");
                }
                for (change, is_frozen) in [("freeze", true), ("thaw", false)] {
                    assert_eq!(post(&nginx, change), 200);
                    let service = nginx.service("web");
                    assert_eq!(service["frozen"].is_object(), is_frozen, "after {change}");
                }
            }
            let peers: Vec<Value> = (0..9)
                .map(|n| instance(&format!("web-{n}"), ([127, 1, 0, n], 81).into()))
                .collect();
            consul.publish("web", 8, &peers.into());
            wait::until("the new set", SOON, || {
                nginx.get("/api/services/web").body.contains("127.1.0.8:81")
            });
            assert_eq!(nginx.service("web")["peers"].as_array().map(Vec::len), Some(9));
        }));
        is_over.store(true, Ordering::SeqCst);
        checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn readers_of_different_things_at_the_same_time_get_their_own() {
    let swapped = "location = /swapped {
        charset two; source_charset one; charset_types application/json; consul_status; }
        location = /zipped { gzip on; gzip_types application/json; consul_status; }
        location = /twice { ssi on; default_type text/html;
            return 200 '<!--#include virtual=\"/few?format=json\" --><!--#include virtual=\"/few?format=json\" -->'; }";
    let (_consul, config) = following(&format!("{MORE} {swapped}"));
    let config = config.more("charset_map one two { 75 55; 55 75; }");
    let nginx = config.start();
    until_known(&nginx);
    let paths = [
        ("GET", JSON),
        ("GET", "/consul?format=prometheus"),
        ("GET", "/few?format=prometheus"),
        ("GET", "/consul?format=json&service=web"),
        ("GET", "/consul?format=json&service=other"),
        ("HEAD", JSON),
        ("GET", "/swapped?format=json"),
        ("GET", "/zipped?format=json"),
        ("GET", "/twice"),
    ];
    let mut readers: Vec<_> =
        paths.iter().cycle().take(27).map(|(method, path)| reader(&nginx, method, path)).collect();
    let answers: Vec<Response> =
        readers.iter_mut().map(|reader| reader.receive().expect("an answer")).collect();
    for (answer, (_, path)) in answers.iter().zip(paths.iter().cycle()) {
        let expected = if path.ends_with("other") { 404 } else { 200 };
        assert_eq!(answer.status, expected, "{path}");
    }
    let lines = |body: &str| body.matches("\nnginx_consul_peer_picks_total{").count();
    for round in answers.chunks(paths.len()) {
        let [all, metrics, few, one, other, head, swapped, zipped, twice] = round else {
            panic!("{}", round.len())
        };
        for json in [all, one, zipped] {
            let status: Value = serde_json::from_str(&json.body).expect("JSON");
            assert_eq!(status["services"][0]["peers"].as_array().map(Vec::len), Some(PEERS));
        }
        assert_eq!((lines(&metrics.body), lines(&few.body)), (PEERS, 0));
        assert_eq!(
            serde_json::from_str::<Value>(&other.body).ok(),
            Some(json!({"error": "no such service"}))
        );
        assert!(head.body.is_empty());
        assert_eq!(twice.body.matches("\"service_id\"").count(), 2 * PEERS);
        assert!(swapped.body.starts_with("{\"version\":1") && swapped.body.ends_with("]}]}\n"));
        let count = |text: &str| swapped.body.matches(text).count();
        assert_eq!((count("\"Up\""), count("\"up\"")), (PEERS, 0));
    }
}

#[test]
fn a_slow_reader_gets_the_whole_of_it_over_a_reload_and_may_be_cut_off() {
    let (_consul, config) = following("");
    let mut nginx = config.main("worker_shutdown_timeout 5s;").start();
    until_known(&nginx);
    let (mut slow, idle) = (slow_reader(&nginx, JSON), slow_reader(&nginx, JSON));
    let old = nginx.reload();
    assert_eq!(nginx.get(JSON).status, 200);
    rendered_at(&slow.receive().expect("an answer of the old worker"));
    // The other one reads nothing.
    wait::until("the old worker ends", Duration::from_secs(15), || !process::is_alive(old[0]));
    drop(idle);
}
