//! One dead service never starves the others, and is served as soon as it has recovered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::{Agent, Backend, Config, Load, Manner, Nginx, Tally, wait, wire};

use crate::support::{SOON, register, unique};

mod ends;
mod marks;
mod only_instance;
mod panic;
mod probing;
mod requests;
mod success;
mod table;

/// How long nginx waits for an answer below `/`. Below `/medium/` it waits a second and tries no other
/// instance, below `/long/` it waits for ever.
const READ_TIMEOUT: Duration = Duration::from_millis(300);
/// What nobody had to wait for an instance for.
const AT_ONCE: Duration = Duration::from_millis(200);
/// Longest an instance may be sent no probe, and a little for a busy machine.
const NEXT_PROBE: Duration = Duration::from_millis(2500);
/// From here on a failure bounds an only instance.
const BOUNDED_AFTER: Duration = Duration::from_millis(1100);
/// Most requests that may wait for an instance of which nothing good is known.
const UNPROVEN: usize = 16;

const SERVER: &str = "server { listen 127.0.0.1:%%PORT%%;
    proxy_connect_timeout 300ms; proxy_http_version 1.1;
    location / { proxy_pass http://api; proxy_read_timeout 300ms; }
    location /long/ { proxy_pass http://api/; proxy_read_timeout 1h; proxy_buffering off;
        proxy_connect_timeout 60s;
        proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $to_upgrade; }
    location /medium/ { proxy_pass http://api/; proxy_read_timeout 1s; proxy_next_upstream off; }
    location = /consul { consul_status; }
    include server*.conf; }";

/// nginx with two workers whose upstream `api` has these lines; `%%SERVICE%%` is the service.
fn proxying(consul: &Agent, service: &str, lines: &str) -> Config {
    Config::http(&format!(
        "consul_server %%CONSUL%%;\nupstream api {{ {lines} }}\n\
         map $http_upgrade $to_upgrade {{ default upgrade; '' close; }}\n{SERVER}"
    ))
    .set("CONSUL", consul.url())
    .set("SERVICE", service)
    .workers(2)
}

/// Instances of a service, and nginx that follows it.
struct Stage {
    consul: Arc<Agent>,
    service: String,
    backends: Vec<Backend>,
    nginx: Nginx,
}

impl Stage {
    /// Starts so many instances, `a`, `b`, …; `parameters` are those of `consul_dynamic`.
    fn start(instances: usize, parameters: &str) -> Stage {
        Stage::start_with(instances, parameters, |config| config)
    }

    /// The same with a changed configuration.
    fn start_with(
        instances: usize,
        parameters: &str,
        change: impl FnOnce(Config) -> Config,
    ) -> Stage {
        let lines = format!("consul_dynamic %%SERVICE%% {parameters};");
        Stage::start_lines(instances, &lines, change)
    }

    /// So many instances of which one of nginx's own methods picks; nothing for round robin.
    fn start_method(method: &str, instances: usize, parameters: &str) -> Stage {
        let method = if method.is_empty() { String::new() } else { format!("{method};") };
        let lines = format!("{method} consul_dynamic %%SERVICE%% {parameters};");
        Stage::start_lines(instances, &lines, |config| config)
    }

    fn start_lines(instances: usize, lines: &str, change: impl FnOnce(Config) -> Config) -> Stage {
        let (consul, service) = (Agent::shared(), unique("dead"));
        let backends = Backend::start_all(&["a", "b", "c", "d"][..instances]);
        register(&consul, &service, &backends);
        let nginx = change(proxying(&consul, &service, lines)).start();
        Stage { consul, service, backends, nginx }
    }

    fn set_all(&self, manner: Manner) {
        self.backends.iter().for_each(|backend| backend.set(manner));
    }

    fn release_all(&self) {
        self.backends.iter().for_each(Backend::release);
    }

    /// Waits until nginx knows that no request but `more` is with an instance any longer; a backend
    /// has answered before.
    #[track_caller]
    fn until_known(&self, what: &str, more: u64) {
        wait::until_eq(what, SOON, &more, || self.nginx.in_flight());
    }

    /// Requests that the backends have now.
    fn busy(&self) -> usize {
        self.backends.iter().map(Backend::busy).sum()
    }

    fn requests(&self) -> usize {
        self.backends.iter().map(Backend::requests).sum()
    }

    /// Has all instances fail until each is out and a try after that has failed, so that only
    /// probes are let through.
    #[track_caller]
    fn put_out(&self) {
        self.set_all(Manner::Silent);
        self.until_at_once("502");
    }

    /// Waits until a request is answered so without a try that fails first.
    #[track_caller]
    fn until_at_once(&self, outcome: &str) {
        wait::until(&format!("{outcome} at once"), SOON, || {
            let (seen, took) = self.timed("/");
            seen == outcome && took < AT_ONCE
        });
    }

    /// Has each instance get a probe that lasts, of several clients that try again and again.
    #[track_caller]
    fn hold_probes(&self) -> Load {
        self.hold_probes_of("/long/silent")
    }

    /// The same with requests that only silent instances leave without an answer.
    #[track_caller]
    fn hold_probes_beside_servers(&self) -> Load {
        self.hold_probes_of("/long/")
    }

    #[track_caller]
    fn hold_probes_of(&self, path: &str) -> Load {
        let period = Duration::from_millis(50);
        let clients = Load::start_every(self.nginx.address(), path, 6, period);
        wait::until("each instance has a probe", SOON, || {
            self.backends.iter().all(|backend| backend.busy() > 0)
        });
        clients
    }

    /// Has an only instance fail a request, and waits until that bounds it; it answers nothing.
    #[track_caller]
    fn fail_once(&self) {
        self.set_all(Manner::Silent);
        assert_eq!(self.nginx.outcome("/"), "504");
        let start = Instant::now();
        wait::until("a second has passed", SOON, || start.elapsed() > BOUNDED_AFTER);
    }

    /// As [`let_end`].
    #[track_caller]
    fn let_end(&self, clients: Load) -> Tally {
        let_end(clients, &self.backends)
    }

    /// The outcome of a request, and how long it took.
    fn timed(&self, path: &str) -> (String, Duration) {
        let start = Instant::now();
        (self.nginx.outcome(path), start.elapsed())
    }

    /// Sees that so many requests, one after the other, are all answered so, and none by waiting.
    #[track_caller]
    fn all_at_once(&self, path: &str, n: usize, outcome: &str) {
        for i in 0..n {
            let (seen, took) = self.timed(path);
            assert!(seen == outcome && took < SOON, "{i}: {seen}, {took:?}");
        }
    }

    /// Sees that so many requests, one after the other, are all served.
    #[track_caller]
    fn all_are_served(&self, n: usize) {
        for i in 0..n {
            let seen = self.nginx.outcome("/long/");
            assert!(self.backends.iter().any(|b| b.name() == seen), "{i}: {seen}");
        }
    }

    /// Waits until a request is served; returns how long that took.
    #[track_caller]
    fn until_served(&self, limit: Duration) -> Duration {
        wait::until("an instance serves", limit, || self.is_served("/long/"))
    }

    fn is_served(&self, path: &str) -> bool {
        let answer = self.nginx.get(path);
        answer.status == 200 && self.backends.iter().any(|b| b.name() == answer.outcome())
    }

    /// Sends a request that gets no answer for now.
    fn hanging(&self, path: &str) -> Connection {
        let mut connection = Connection::open(self.nginx.address()).expect("a connection");
        connection.send("GET", path, &[("Connection", "close")], b"").expect("sent");
        connection
    }

    /// Sends `n` requests that get no answer for now, and waits until the backends have them.
    #[track_caller]
    fn hang(&self, path: &str, n: usize) -> Vec<Connection> {
        let before = self.requests();
        let clients = (0..n).map(|_| self.hanging(path)).collect();
        wait::until_eq("requests at the backends", SOON, &(before + n), || self.requests());
        clients
    }

    /// Asks again and again for what is not over with its header, until an instance sends one.
    #[track_caller]
    fn begin(&self, path: &str, headers: &[(&str, &str)], status: u16) -> Connection {
        wait::until_some("an answer begins", SOON, || {
            let mut connection = Connection::open(self.nginx.address()).expect("a connection");
            connection.send("GET", path, headers, b"").expect("sent");
            let head = wire::read_head(connection.reader());
            let head = head.expect("a head").expect("an answer");
            (head.word(1) == status.to_string()).then_some(connection)
        })
    }
}

/// Ends the clients, has those answered that wait, and tells what all of them have seen.
#[track_caller]
fn let_end(clients: Load, backends: &[Backend]) -> Tally {
    clients.stop();
    wait::until("none is left but those that wait", SOON, || {
        clients.running() <= backends.iter().map(Backend::busy).sum()
    });
    backends.iter().for_each(Backend::release);
    clients.finish()
}

/// The answers to requests that hang no longer.
fn outcomes(clients: Vec<Connection>) -> Tally {
    let answer = |mut client: Connection| {
        client.receive().map_or_else(|error| error.to_string(), |answer| answer.outcome())
    };
    clients.into_iter().map(answer).collect()
}
