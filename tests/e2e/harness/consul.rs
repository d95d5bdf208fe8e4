//! Real Consul agents on loopback.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::dressing::Dressing;
use crate::http::{self, Response};
pub use crate::instance::Instance;
use crate::process::Process;
use crate::{version, wait};

mod options;

use self::options::Kind;
pub use self::options::Options;

/// Longest an agent may take to have a leader.
const PATIENCE: Duration = Duration::from_secs(30);

/// An agent; it may be down at times.
#[derive(Debug)]
pub struct Agent {
    process: Option<Process>,
    dressing: Option<Box<Dressing>>,
    options: Options,
    folder: TempDir,
    http_port: u16,
    server_port: u16,
    serf_port: u16,
}

static SHARED: Mutex<Weak<Agent>> = Mutex::new(Weak::new());

impl Agent {
    /// The agent that tests share while they only add services of their own.
    ///
    /// # Panics
    /// If it doesn't start.
    pub fn shared() -> Arc<Agent> {
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let agent = Arc::new(Options::dev().start());
            *shared = Arc::downgrade(&agent);
            agent
        })
    }

    /// Starts it, again on the same ports.
    ///
    /// # Panics
    /// If no leader comes to be.
    pub fn start(&mut self) {
        self.launch();
        wait::until("the Consul agent is ready", PATIENCE, || {
            self.process.as_mut().is_some_and(|p| {
                let ended = p.exited();
                assert!(ended.is_none(), "consul ended: {ended:?}\n{}", log(self.folder.path()));
                true
            }) && {
                self.show();
                self.is_ready()
            }
        });
    }

    /// Has the dressing listen once the agent does.
    fn show(&self) {
        let up = || TcpStream::connect(self.direct()).is_ok();
        self.dressing.iter().filter(|_| up()).for_each(|dressing| dressing.listen());
    }

    fn hide(&self) {
        self.dressing.iter().for_each(|dressing| dressing.refuse());
    }

    /// Starts it and waits for nothing.
    fn launch(&mut self) {
        let folder = self.folder.path();
        fs::write(folder.join("agent.hcl"), &self.options.hcl).expect("agent.hcl");
        let log = fs::File::options().create(true).append(true).open(folder.join("log"));
        let log = log.expect("a log");
        let mut command = match self.options.descriptors {
            None => Command::new(version::binary()),
            Some(most) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={most}")).arg(version::binary());
                command
            }
        };
        command.args(self.arguments());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("the log")).stderr(log);
        for name in ["CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN", "CONSUL_HTTP_TOKEN_FILE"] {
            command.env_remove(name);
        }
        self.process = Some(Process::spawn(&mut command));
    }

    fn arguments(&self) -> Vec<String> {
        let options = &self.options;
        let data = self.folder.path().join("data");
        let mut arguments = vec!["agent".to_owned()];
        match options.kind {
            Kind::Dev => arguments.push("-dev".to_owned()),
            Kind::Server => arguments.extend(["-server", "-bootstrap-expect=1"].map(str::to_owned)),
            Kind::Client => {}
        }
        if options.kind != Kind::Dev {
            arguments.push(format!("-data-dir={}", data.display()));
        }
        arguments.extend([
            format!("-node={}", options.node),
            format!("-bind={}", options.ip),
            format!("-client={}", options.ip),
            format!("-http-port={}", self.http_port),
            format!("-server-port={}", self.server_port),
            format!("-serf-lan-port={}", self.serf_port),
            "-serf-wan-port=-1".to_owned(),
            "-dns-port=-1".to_owned(),
            "-log-level=warn".to_owned(),
            format!("-config-file={}", self.folder.path().join("agent.hcl").display()),
        ]);
        arguments.extend(version::without_grpc().iter().map(|&argument| argument.to_owned()));
        arguments.extend(options.arguments.iter().cloned());
        arguments
    }

    fn is_ready(&self) -> bool {
        let leader = self.request("GET", "/v1/status/leader", &Value::Null);
        if !leader.is_ok_and(|answer| answer.status == 200 && answer.body.len() > 4) {
            return false;
        }
        let nodes = self.request("GET", "/v1/catalog/nodes", &Value::Null);
        // With an ACL, the node is listed once the agent has a token; that is the test's affair.
        nodes.is_ok_and(|answer| {
            answer.status == 200
                && (answer.body.contains(&self.options.node) || self.options.token.is_some())
        })
    }

    /// Pid of the running agent.
    ///
    /// # Panics
    /// If it is down.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the agent runs").pid()
    }

    /// Kills it: no goodbye to anybody.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop(&[(Signal::KILL, Duration::from_secs(5))]);
        }
        self.hide();
    }

    /// Ends it with SIGTERM; a client agent with `leave_on_terminate` says goodbye.
    pub fn terminate(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop(&[
                (Signal::TERM, Duration::from_secs(15)),
                (Signal::KILL, Duration::from_secs(5)),
            ]);
        }
        self.hide();
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.process.iter_mut().for_each(|p| p.signal(signal));
    }

    /// Stops it as a debugger does: connections stay open, nothing is answered.
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
    }

    /// Where nginx is to find its HTTP API: dressed as a newer Consul's where `CONSUL_DRESSED` is 1.
    pub fn address(&self) -> SocketAddr {
        self.dressing().map_or_else(|| self.direct(), Dressing::address)
    }

    /// Where its HTTP API listens.
    pub fn direct(&self) -> SocketAddr {
        (IpAddr::from(self.options.ip), self.http_port).into()
    }

    /// What dresses it, if anything does.
    pub fn dressing(&self) -> Option<&Dressing> {
        self.dressing.as_deref()
    }

    /// URL of [`Agent::address`].
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Where others join its cluster.
    pub fn serf_address(&self) -> String {
        format!("{}:{}", self.options.ip, self.serf_port)
    }

    /// Where the servers of its cluster reach it; `/v1/status/leader` names the leader's.
    pub fn server_address(&self) -> String {
        format!("{}:{}", self.options.ip, self.server_port)
    }

    /// Name of its node.
    pub fn node(&self) -> &str {
        &self.options.node
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// One request; `Null` sends no body.
    ///
    /// # Errors
    /// As [`http::request`].
    pub fn request(&self, method: &str, path: &str, body: &Value) -> std::io::Result<Response> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let token = self.options.token.as_deref().unwrap_or_default();
        let headers = [("X-Consul-Token", token)];
        let headers = if token.is_empty() { &[][..] } else { &headers[..] };
        http::request(self.direct(), method, path, headers, body.as_bytes())
    }

    /// Puts a document; returns the answer's.
    ///
    /// # Panics
    /// Unless Consul says 200.
    pub fn put(&self, path: &str, body: &Value) -> Value {
        let answer = self.request("PUT", path, body);
        let answer = answer.unwrap_or_else(|error| panic!("PUT {path}: {error}"));
        assert_eq!(answer.status, 200, "PUT {path} {body}: {}", answer.body);
        serde_json::from_str(&answer.body).unwrap_or_default()
    }

    /// Gets a document.
    ///
    /// # Panics
    /// Unless Consul says 200.
    pub fn get(&self, path: &str) -> Value {
        let answer = self.request("GET", path, &Value::Null);
        let answer = answer.unwrap_or_else(|error| panic!("GET {path}: {error}"));
        assert_eq!(answer.status, 200, "GET {path}: {}", answer.body);
        serde_json::from_str(&answer.body).unwrap_or_default()
    }

    /// The index of an answer, to block on.
    ///
    /// # Panics
    /// If there is none.
    pub fn index(&self, path: &str) -> u64 {
        let answer = self.request("GET", path, &Value::Null).expect("an answer");
        let index = answer.header("X-Consul-Index").and_then(|index| index.parse().ok());
        index.unwrap_or_else(|| panic!("GET {path}: no index"))
    }

    /// Registers an instance with this agent.
    pub fn register(&self, instance: &Instance) {
        self.put("/v1/agent/service/register", &instance.for_agent());
    }

    /// Takes an instance back.
    pub fn deregister(&self, id: &str) {
        self.put(&format!("/v1/agent/service/deregister/{id}"), &Value::Null);
    }

    /// Turns an instance's check `passing`, `warning` or `critical`.
    pub fn set_check(&self, id: &str, status: &str) {
        let path = format!("/v1/agent/check/update/service:{id}");
        self.put(&path, &json!({ "Status": status }));
    }

    /// Puts an instance into maintenance, or out of it.
    pub fn set_maintenance(&self, id: &str, on: bool) {
        let path = format!("/v1/agent/service/maintenance/{id}?enable={on}");
        self.put(&path, &Value::Null);
    }

    /// Registers an instance in the catalog, on a node that has no agent.
    pub fn register_external(&self, node: &str, node_address: &str, instance: &Instance) {
        self.put("/v1/catalog/register", &instance.for_catalog(node, node_address));
    }

    /// Takes an instance of such a node back.
    pub fn deregister_external(&self, node: &str, id: &str) {
        self.put("/v1/catalog/deregister", &json!({ "Node": node, "ServiceID": id }));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

fn log(folder: &Path) -> String {
    fs::read_to_string(folder.join("log")).unwrap_or_default()
}
