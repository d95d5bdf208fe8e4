//! Who plays: Consul, four backends, nginx with two workers, and clients without a pause.

use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::load::Seen;
use nginx_consul_e2e::{Backend, Config, Load, Nginx, Tally, wait};

use crate::consul::{Consul, SERVICE};
use crate::story::say;

/// The backends' names, which are their instances' ids too.
pub(crate) const NAMES: [&str; 4] = ["red", "green", "blue", "gold"];

/// Longest any change may take to be seen: in a cluster, where an election came in between, the
/// leader learns who left when it next looks at all members, which is once a minute.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

const CONFIGURATION: &str = "consul_server %%CONSUL%%;

    upstream api_server {
        consul_dynamic %%SERVICE%%;
        consul_retry 100ms 1s;
        keepalive 32;
    }

    server {
        listen 127.0.0.1:%%PORT%%;

        location / {
            proxy_pass http://api_server;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
        }

        location = /consul {
            consul_status;
        }
    }";

/// The players.
pub(crate) struct Stage {
    pub(crate) load: Load,
    pub(crate) nginx: Nginx,
    pub(crate) backends: Vec<Backend>,
    pub(crate) consul: Consul,
}

impl Stage {
    /// Starts them; the first three backends are registered.
    pub(crate) fn set(cluster: bool) -> Stage {
        let consul = Consul::start(cluster);
        let backends = Backend::start_all(&NAMES);
        for backend in &backends[..3] {
            consul.register(backend, 1);
        }
        // In a cluster the agent that nginx asks has to hear of them first.
        wait::until("Consul lists three instances", PATIENCE, || consul.listed() == 3);
        let nginx = Config::http(CONFIGURATION)
            .set("CONSUL", consul.url())
            .set("SERVICE", SERVICE)
            .log_level("notice")
            .workers(2)
            .start();
        consul.introduce();
        say(format!("nginx    http://{}, 2 workers, stock binary", nginx.address()));
        let places = backends.iter().map(|b| format!("{} {}", b.name(), b.address()));
        say(format!("backends {}", places.collect::<Vec<_>>().join(", ")));
        // The servers of the cluster elect within milliseconds, and need the CPU for it.
        let pause = Duration::from_micros(if cluster { 500 } else { 0 });
        let load = Load::start_paced(nginx.address(), "/", 2, false, pause);
        Stage { load, nginx, backends, consul }
    }

    /// Lets the clients work for a while, and returns what they saw.
    pub(crate) fn watch(&self, span: Duration) -> Tally {
        self.load.open_window();
        let end = Instant::now() + span;
        while Instant::now() < end {
            wait::pause();
        }
        self.load.window()
    }

    /// Does something, and waits until the clients are served by this one; returns how long that
    /// took from the beginning.
    pub(crate) fn until_first(&self, name: &str, act: impl FnOnce()) -> Duration {
        self.load.open_window();
        let start = Instant::now();
        act();
        let seen =
            wait::until_some(&format!("{name} is served"), PATIENCE, || self.load.seen(name));
        seen.first.saturating_duration_since(start)
    }

    /// Does something, and waits until the clients have not been served by any of these for a while;
    /// returns when, from the beginning, the last one was.
    pub(crate) fn until_last(&self, names: &[&str], act: impl FnOnce()) -> Duration {
        self.load.open_window();
        let start = Instant::now();
        act();
        let latest = || names.iter().filter_map(|name| self.load.seen(name)).map(last).max();
        wait::until(&format!("{names:?} are served no more"), PATIENCE, || {
            latest().unwrap_or(start).elapsed() > Duration::from_millis(400)
        });
        latest().map_or(Duration::ZERO, |at| at.saturating_duration_since(start))
    }

    /// What the clients saw in the window that is none of the backends.
    pub(crate) fn failed(&self) -> usize {
        failures(&self.load.window())
    }

    /// What the module wrote to the error log, without what nginx puts before it, after `n` lines.
    pub(crate) fn log(&self, n: usize) -> Vec<String> {
        let lines = self.nginx.logged("consul: service");
        let text = |line: &String| line.find("consul: ").map(|at| line[at..].to_owned());
        lines.iter().filter_map(text).skip(n).collect()
    }

    /// Leaves it all running until Ctrl-C.
    pub(crate) fn keep(&self) {
        println!("\nLeft running until Ctrl-C:");
        say(format!("http://{}/            the service", self.nginx.address()));
        say(format!("http://{}/consul      the status page", self.nginx.address()));
        say(format!("{}/v1/health/service/{SERVICE}   Consul", self.consul.url()));
        say(format!("{}   nginx's configuration and logs", self.nginx.prefix().display()));
        while !wait::is_interrupted() {
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Outcomes that are no backend's name.
pub(crate) fn failures(tally: &Tally) -> usize {
    tally.total() - NAMES.iter().map(|name| tally.of(name)).sum::<usize>()
}

fn last(seen: Seen) -> Instant {
    seen.last
}
