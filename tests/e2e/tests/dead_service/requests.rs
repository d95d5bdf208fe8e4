//! Whatever kind of request a probe is, it ends.

use std::time::{Duration, Instant};

use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::{Config, Manner, wait};

use super::{NEXT_PROBE, Stage};
use crate::support::SOON;

/// A kind of request.
#[derive(Clone, Copy, Debug)]
struct Kind {
    method: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
}

const fn get(path: &'static str) -> Kind {
    Kind { method: "GET", path, headers: &[] }
}

/// Each is an answer that nginx sees, or hides, in a way of its own.
const KINDS: [Kind; 14] = [
    get("/"),
    Kind { method: "HEAD", path: "/", headers: &[] },
    Kind { method: "POST", path: "/", headers: &[] },
    get("/status/304"),
    get("/status/204"),
    Kind {
        method: "GET",
        path: "/ws",
        headers: &[("Upgrade", "websocket"), ("Connection", "Upgrade")],
    },
    get("/accel/internal"),
    get("/accel/nested"),
    get("/intercepted"),
    get("/authorized"),
    get("/included"),
    get("/mirrored"),
    get("/cached"),
    get("/uwsgi"),
];

const SERVER: &str = "
    error_page 404 =200 @page;
    location @page { return 200 page; }
    location /ws { proxy_pass http://api; proxy_read_timeout 300ms;
        proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $to_upgrade; }
    location = /internal { internal; return 200 internal; }
    location = /nested { internal; proxy_pass http://api/; proxy_read_timeout 300ms; }
    location = /intercepted { proxy_pass http://api/status/404; proxy_read_timeout 300ms;
        proxy_intercept_errors on; }
    location = /sub { internal; proxy_pass http://api/; proxy_read_timeout 300ms;
        proxy_pass_request_body off; proxy_set_header Content-Length ''; }
    location = /authorized { auth_request /sub; alias page; }
    location = /included { ssi on; ssi_types *; alias including; }
    location = /mirrored { mirror /sub; alias page; }
    location = /cached { proxy_pass http://api; proxy_read_timeout 300ms;
        proxy_cache cache; proxy_cache_valid 200 1h; }
    location = /uwsgi { uwsgi_pass api; uwsgi_connect_timeout 300ms; uwsgi_read_timeout 300ms;
        uwsgi_param REQUEST_METHOD $request_method; uwsgi_param REQUEST_URI $request_uri; }
";

fn kinds(config: Config) -> Config {
    config
        .more("proxy_cache_path cache keys_zone=cache:1m;")
        .file("page", "page\n")
        .file("including", "<!--#include virtual=\"/sub\" -->\n")
        .file("server.conf", SERVER)
}

impl Kind {
    /// Sends one; each of a `number` has a URI of its own, so that no cache knows it.
    fn send(self, stage: &Stage, number: usize) -> Connection {
        let mut connection = Connection::open(stage.nginx.address()).expect("a connection");
        let path = format!("{}?{number}", self.path);
        connection.send(self.method, &path, self.headers, b"").expect("sent");
        connection
    }

    /// Sends one after the other until one has come to an instance; that one.
    fn reach(self, stage: &Stage, number: &mut usize) -> Connection {
        let before = stage.requests();
        wait::until_some(&format!("{self:?} comes to an instance"), SOON, || {
            *number += 1;
            let mut connection = self.send(stage, *number);
            let (start, mut answered) = (Instant::now(), None);
            // What answers without an instance has said so, or does it aside a moment later.
            let is_refused = |since: Option<Instant>| since.is_some_and(|t| t.elapsed() > ASIDE);
            while stage.requests() == before && !is_refused(answered) && start.elapsed() < SOON {
                answered = answered.or_else(|| has_answer(&mut connection).then(Instant::now));
                wait::pause();
            }
            (stage.requests() > before).then_some(connection)
        })
    }
}

/// From an answer until a request that nginx sends aside has come to an instance, if it is let.
const ASIDE: Duration = Duration::from_millis(100);

fn has_answer(connection: &mut Connection) -> bool {
    let stream = connection.stream();
    stream.set_nonblocking(true).expect("a socket");
    let is_there = stream.peek(&mut [0]).is_ok();
    stream.set_nonblocking(false).expect("a socket");
    is_there
}

/// That no probe could: more at a time than there are instances.
const MANY: usize = 8;

/// After `fail` and one answer, of each kind, so many requests at a time are served again.
fn any_kind_of_answer_serves(instances: usize, many: usize, fail: impl Fn(&Stage)) {
    let stage = Stage::start_with(instances, "fail_timeout=60s", kinds);
    let mut number = 0;
    for kind in KINDS {
        fail(&stage);
        stage.release_all();
        let mut connection = kind.reach(&stage, &mut number);
        let answer = connection.receive().unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        assert!(answer.status < 400, "{kind:?}: {answer:?}");
        let is_open = u64::from(answer.status == 101);
        stage.until_known(&format!("{kind:?} is over"), is_open);
        let waiting = stage.hang("/long/silent", many);
        stage.release_all();
        let seen = super::outcomes(waiting);
        assert_eq!(seen.of("a") + seen.of("b"), many, "{kind:?}: {seen}");
    }
}

#[test]
fn any_kind_of_answer_ends_an_outage() {
    any_kind_of_answer_serves(2, MANY, Stage::put_out);
}

#[test]
fn any_kind_of_answer_lifts_the_bound_on_an_only_instance() {
    any_kind_of_answer_serves(1, super::UNPROVEN + MANY, Stage::fail_once);
}

#[test]
fn no_kind_of_probe_that_fails_or_is_given_up_bars_the_next() {
    let stage = Stage::start_with(2, "fail_timeout=60s", kinds);
    let mut number = 0;
    for kind in KINDS {
        for is_given_up in [false, true] {
            stage.put_out();
            let mut connection = kind.reach(&stage, &mut number);
            if !is_given_up {
                connection.receive().unwrap_or_else(|error| panic!("{kind:?}: {error}"));
            }
            drop(connection);
            wait::until_eq(&format!("{kind:?} is over"), SOON, &0, || stage.busy());
            stage.set_all(Manner::Well);
            let took = stage.until_served(NEXT_PROBE);
            assert!(took < NEXT_PROBE, "{kind:?}, given up: {is_given_up}");
        }
    }
}

#[test]
fn what_a_cache_answers_takes_no_probe() {
    let stage = Stage::start_with(2, "fail_timeout=60s", kinds);
    assert!(stage.is_served("/cached"));
    stage.put_out();
    let before = stage.requests();
    for _ in 0..30 {
        assert!(stage.is_served("/cached"));
    }
    assert_eq!(stage.requests(), before);
    stage.release_all();
    stage.until_served(NEXT_PROBE);
    stage.all_are_served(20);
}
