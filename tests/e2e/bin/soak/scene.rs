//! What the soak runs on: a Consul with an ACL, nginx with many services, and backends.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use nginx_consul_e2e::consul::Options;
use nginx_consul_e2e::{Agent, Backend, Config, Nginx, process, wait};
use serde_json::{Value, json};

/// Services, each with an upstream and an instance that stays.
pub(crate) const SERVICES: usize = 50;

/// Worker processes.
pub(crate) const WORKERS: usize = 2;

/// Longest that anything may take to settle.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const MANAGEMENT: &str = "b1000000-0000-4000-8000-000000000001";

/// All of it.
pub(crate) struct Scene {
    consul: RwLock<Agent>,
    /// Instances that stay are at the first, those that come and go at the others.
    pub(crate) backends: Vec<Backend>,
    pub(crate) nginx: Nginx,
}

impl Scene {
    /// Starts everything; each service has one instance.
    pub(crate) fn start() -> Scene {
        let consul = Options::server("s1")
            .hcl(&format!(
                "acl {{ enabled = true default_policy = \"deny\"
                        tokens {{ master = \"{MANAGEMENT}\" agent = \"{MANAGEMENT}\" }} }}"
            ))
            .token(MANAGEMENT)
            .start();
        until_acl(&consul);
        let rules =
            "service_prefix \"\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" }";
        consul.put("/v1/acl/policy", &json!({ "Name": "gateway", "Rules": rules }));
        let backends = Backend::start_all(&["home", "x", "y", "z"]);
        for service in 0..SERVICES {
            let home = registration(service, "home", &backends[0], 1);
            consul.put("/v1/agent/service/register", &home);
        }
        let nginx = nginx(&consul);
        let scene = Scene { consul: RwLock::new(consul), backends, nginx };
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
        until_acl(&consul);
    }

    /// Gives nginx a new token, and takes the old one back. Says whether Consul went along.
    pub(crate) fn rotate_token(&self, accessor: &mut Option<String>) -> bool {
        let consul = self.consul();
        let Some((secret, id)) = token(&consul) else { return false };
        put_token(self.nginx.prefix(), &secret);
        let old = accessor.replace(id);
        old.is_none_or(|old| {
            let path = format!("/v1/acl/token/{old}");
            consul.request("DELETE", &path, &Value::Null).is_ok_and(|a| a.status == 200)
        })
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

fn until_acl(consul: &Agent) {
    wait::until("the ACL system is up", PATIENCE, || {
        let own = consul.request("GET", "/v1/acl/token/self", &Value::Null);
        own.is_ok_and(|answer| answer.status == 200)
    });
}

/// A new token and its accessor.
fn token(consul: &Agent) -> Option<(String, String)> {
    let wanted = json!({ "Policies": [{ "Name": "gateway" }] });
    let answer = consul.request("PUT", "/v1/acl/token", &wanted).ok()?;
    let token: Value = serde_json::from_str(&answer.body).ok()?;
    Some((token["SecretID"].as_str()?.to_owned(), token["AccessorID"].as_str()?.to_owned()))
}

/// Swaps the token file as a whole.
fn put_token(folder: &std::path::Path, secret: &str) {
    let (new, file) = (folder.join("token.new"), folder.join("token"));
    fs::write(&new, secret).expect("a token file");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o644)).expect("readable by workers");
    fs::rename(new, file).expect("the token file");
}

fn nginx(consul: &Agent) -> Nginx {
    let (first, _) = token(consul).expect("a token");
    let mut text = "consul_server %%CONSUL%%; consul_token_file token;
        consul_retry 50ms 1s; access_log off; keepalive_requests 100000;\n"
        .to_owned();
    let mut locations = String::new();
    for n in 0..SERVICES {
        let _ = writeln!(
            text,
            "upstream u{n} {{ consul_dynamic s{n}; keepalive 2; keepalive_timeout 2s; }}"
        );
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
        .file("token", first)
        .workers(WORKERS)
        .log_level("error")
        .allow("exited on signal 9")
        .allow("was locked by")
        .start()
}
