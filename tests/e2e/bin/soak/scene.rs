//! What the soak runs on: a Consul with an ACL, nginx with many services, and backends.

use std::fmt::Write as _;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use nginx_consul_e2e::acl::{self, Token};
use nginx_consul_e2e::consul::Options;
use nginx_consul_e2e::{Agent, Backend, Config, Nginx, process, wait};
use serde_json::{Value, json};

/// Services, each with an upstream and an instance that stays.
pub(crate) const SERVICES: usize = 50;

/// Worker processes.
pub(crate) const WORKERS: usize = 2;

/// Longest that anything may take to settle.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// All of it.
pub(crate) struct Scene {
    consul: RwLock<Agent>,
    /// Instances that stay are at the first, those that come and go at the others.
    pub(crate) backends: Vec<Backend>,
    pub(crate) nginx: Nginx,
    /// The first one that nginx has.
    pub(crate) token: Token,
}

impl Scene {
    /// Starts everything; each service has one instance.
    pub(crate) fn start() -> Scene {
        let (consul, token) = acl::start(Options::server("s1"));
        let backends = Backend::start_all(&["home", "x", "y", "z"]);
        for service in 0..SERVICES {
            let home = registration(service, "home", &backends[0], 1);
            consul.put("/v1/agent/service/register", &home);
        }
        let nginx = nginx(&consul, &token);
        let scene = Scene { consul: RwLock::new(consul), backends, nginx, token };
        scene.until_settled();
        scene
    }

    /// The agent, for as long as it isn't to be restarted.
    pub(crate) fn consul(&self) -> RwLockReadGuard<'_, Agent> {
        self.consul.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent, to be restarted.
    fn consul_alone(&self) -> RwLockWriteGuard<'_, Agent> {
        self.consul.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills the agent and starts it again on its data.
    pub(crate) fn restart_consul(&self) {
        let mut consul = self.consul_alone();
        consul.kill();
        consul.start();
        acl::until_up(&consul);
    }

    /// Gives nginx a new token, and takes the one back that it has. Says whether Consul went along.
    pub(crate) fn rotate_token(&self, held: &mut Token) -> bool {
        let consul = self.consul();
        let Some(new) = acl::issue(&consul) else { return false };
        acl::swap(&self.nginx.prefix().join("token"), &new);
        acl::revoke(&consul, &std::mem::replace(held, new))
    }

    /// Waits until no old worker is left and each service has its one instance again.
    pub(crate) fn until_settled(&self) {
        let all = || process::children(self.nginx.pid(), "nginx: worker process").len();
        wait::until("only the new workers", PATIENCE, || {
            all() == WORKERS && self.nginx.workers().len() == WORKERS
        });
        wait::until_eq("peers of all services", PATIENCE, &SERVICES, || {
            let status = self.nginx.status();
            let services = status["services"].as_array().cloned().unwrap_or_default();
            let count = |s: &&Value| s["peers"].as_array().map_or(0, Vec::len) == 1;
            let well = |s: &&Value| s["failures"] == 0;
            services.iter().filter(count).filter(well).count()
        });
        // What the workers before have left at Consul counts until its wait is over.
        let watching = || {
            let workers = self.nginx.workers();
            workers.iter().map(|&pid| process::threads(pid).len()).max().unwrap_or(0)
        };
        wait::until("a thread for each service", PATIENCE, || watching() > SERVICES);
    }
}

/// The document that registers an instance with an agent.
pub(crate) fn registration(service: usize, name: &str, backend: &Backend, weight: usize) -> Value {
    json!({
        "Name": format!("s{service}"), "ID": format!("s{service}-{name}"),
        "Address": "127.0.0.1", "Port": backend.address().port(),
        "Weights": { "Passing": weight, "Warning": 1 },
    })
}

fn nginx(consul: &Agent, token: &Token) -> Nginx {
    let mut text = "consul_server %%CONSUL%%; consul_token_file token;
        consul_retry 50ms 1s; consul_wait 10s; access_log off; keepalive_requests 100000;\n"
        .to_owned();
    let mut locations = String::new();
    for n in 0..SERVICES {
        let kept = match n % 2 {
            0 => "keepalive 2; keepalive_timeout 2s;",
            _ => "consul_keepalive 2 timeout=2s;",
        };
        let _ = writeln!(text, "upstream u{n} {{ consul_dynamic s{n}; {kept} }}");
        let _ = writeln!(locations, "location /s{n} {{ proxy_pass http://u{n}; }}");
    }
    let _ = write!(
        text,
        "server {{
            listen 127.0.0.1:%%PORT%%;
            proxy_http_version 1.1;
            proxy_set_header Connection '';
            {locations}
            location = /consul {{ consul_status; }}
            location = /probe {{ add_header X-Worker $pid; return 200 ok; }}
        }}"
    );
    Config::http(&text)
        .set("CONSUL", consul.url())
        .file("token", &token.secret)
        .workers(WORKERS)
        .log_level("error")
        .allow_kills()
        .start()
}
