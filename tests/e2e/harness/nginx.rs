//! Stock nginx with our module, started the way nginx's own suite does, in a prefix of its own.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

pub use crate::config::{Config, binary, module, workspace};
use crate::http::{self, Response};
use crate::process::{self, Process};
use crate::wait;

/// Longest nginx may take to serve, to reload or to end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// Lines that no log may have at the end.
const FORBIDDEN: [&str; 6] =
    ["[alert]", "[emerg]", "exited on signal", "Sanitizer", "runtime error:", "panicked"];

/// A running nginx.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    config: Config,
    prefix: Option<TempDir>,
    file: PathBuf,
    /// The port that `%%PORT%%` stands for.
    pub port: u16,
}

impl Nginx {
    pub(crate) fn new(
        process: Process,
        config: Config,
        prefix: TempDir,
        file: PathBuf,
        port: u16,
    ) -> Nginx {
        Nginx { process, config, prefix: Some(prefix), file, port }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Its folder.
    ///
    /// # Panics
    /// Never: only the destructor takes it.
    pub fn prefix(&self) -> &Path {
        self.prefix.as_ref().expect("there until dropped").path()
    }

    /// Pid of the master, or of the only process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn is_ready(&self) -> bool {
        let has_pid = fs::metadata(self.prefix().join("nginx.pid")).is_ok_and(|m| m.len() > 0);
        let expected = if self.config.with_master { self.config.workers } else { 0 };
        has_pid
            && self.workers().len() == expected
            && std::net::TcpStream::connect(self.address()).is_ok()
    }

    /// Pids of the workers that accept connections, oldest first.
    pub fn workers(&self) -> Vec<u32> {
        let mut workers = process::children(self.pid(), "nginx: worker process");
        workers.retain(|&pid| !process::title(pid).contains("shutting down"));
        workers
    }

    /// Pid of worker 0: the one with watch threads.
    ///
    /// # Panics
    /// If no worker gets any.
    pub fn worker_zero(&self) -> u32 {
        wait::until_some("a worker has watch threads", PATIENCE, || {
            self.workers().into_iter().find(|&pid| process::threads(pid).len() > 1)
        })
    }

    /// One GET.
    ///
    /// # Errors
    /// As [`http::get`].
    pub fn try_get(&self, path: &str) -> io::Result<Response> {
        http::get(self.address(), path)
    }

    /// One GET.
    ///
    /// # Panics
    /// If nginx doesn't answer, with the tail of its log.
    pub fn get(&self, path: &str) -> Response {
        self.try_get(path).unwrap_or_else(|error| panic!("GET {path}: {error}\n{}", self.tail()))
    }

    /// The answer to a request with a body of JSON, as `consul_api` wants it.
    pub fn send_json(&self, method: &str, path: &str, body: &str) -> Response {
        let json = [("Content-Type", "application/json")];
        http::request(self.address(), method, path, &json, body.as_bytes())
            .unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.tail()))
    }

    /// Who answers a GET: the body, or the status unless it is 200.
    pub fn outcome(&self, path: &str) -> String {
        self.get(path).outcome()
    }

    /// Outcomes of `n` GETs, one after the other, joined by a space.
    pub fn sequence(&self, path: &str, n: usize) -> String {
        (0..n).map(|_| self.outcome(path)).collect::<Vec<_>>().join(" ")
    }

    /// The status document, served at `/consul`.
    ///
    /// # Panics
    /// If there is none, or it isn't JSON.
    pub fn status(&self) -> Value {
        let answer = self.get("/consul?format=json");
        serde_json::from_str(&answer.body)
            .unwrap_or_else(|error| panic!("status: {error}\n{}", answer.body))
    }

    /// What the status document says of a service.
    ///
    /// # Panics
    /// If it doesn't list it.
    pub fn service(&self, name: &str) -> Value {
        let status = self.status();
        let services = status["services"].as_array().cloned().unwrap_or_default();
        let found = services.into_iter().find(|s| s["service"] == name);
        found.unwrap_or_else(|| panic!("no service {name:?} in {status:#}"))
    }

    /// Addresses of a service's peers as status shows them, sorted, joined by a space.
    pub fn peers(&self, service: &str) -> String {
        let service = self.service(service);
        let peers = service["peers"].as_array().cloned().unwrap_or_default();
        let mut names: Vec<String> =
            peers.iter().map(|p| p["server"].as_str().unwrap_or("?").to_owned()).collect();
        names.sort_unstable();
        names.join(" ")
    }

    /// Requests that the status document counts as being with an instance of any service.
    ///
    /// # Panics
    /// If it doesn't tell.
    pub fn in_flight(&self) -> u64 {
        let status = self.status();
        let services = status["services"].as_array().expect("services");
        let peers = services.iter().flat_map(|service| service["peers"].as_array().expect("peers"));
        peers.map(|peer| peer["in_flight"].as_u64().expect("requests in flight")).sum()
    }

    /// Sends the master a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Reloads; returns the old workers once as many new ones serve.
    ///
    /// # Panics
    /// If no new ones come.
    pub fn reload(&mut self) -> Vec<u32> {
        let old = self.workers();
        self.signal(Signal::HUP);
        wait::until("new workers after the reload", PATIENCE, || {
            let new = self.workers().iter().filter(|pid| !old.contains(pid)).count();
            new == self.config.workers
        });
        old
    }

    /// Reloads, and waits for the old workers' end: until then they serve too, each with a round
    /// robin of its own.
    ///
    /// # Panics
    /// If no new ones come, or the old ones stay.
    pub fn reload_and_wait(&mut self) {
        let old = self.reload();
        wait::until("the old workers end", PATIENCE, || {
            !old.iter().any(|&pid| process::is_alive(pid))
        });
    }

    /// Waits until another worker is there in place of a killed one.
    ///
    /// # Panics
    /// If none comes.
    pub fn until_replaced(&self, killed: u32) {
        wait::until("a replacement", PATIENCE, || {
            let workers = self.workers();
            workers.len() == self.config.workers && !workers.contains(&killed)
        });
    }

    /// Writes another configuration for the next reload.
    ///
    /// # Panics
    /// If the file can't be written.
    pub fn rewrite(&mut self, change: impl FnOnce(&str) -> String) {
        let text = fs::read_to_string(&self.file).expect("nginx.conf");
        fs::write(&self.file, change(&text)).expect("nginx.conf");
    }

    /// Quits gracefully; returns how long it took.
    ///
    /// # Panics
    /// If it doesn't end.
    pub fn quit(&mut self) -> Duration {
        let start = Instant::now();
        self.signal(Signal::QUIT);
        let status = self.process.wait(PATIENCE);
        assert!(status.is_some_and(|s| s.success()), "quit: {status:?}\n{}", self.tail());
        start.elapsed()
    }

    /// The error log so far.
    pub fn log(&self) -> String {
        let mut log = fs::read(self.prefix().join("error.log")).unwrap_or_default();
        log.extend(fs::read(self.prefix().join("stderr.log")).unwrap_or_default());
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Lines of the error log that have `text` in them.
    pub fn logged(&self, text: &str) -> Vec<String> {
        self.log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    /// Waits for a line with `text` in the error log.
    ///
    /// # Panics
    /// If none comes, with the tail of the log.
    pub fn wait_for_log(&self, text: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(line) = self.logged(text).into_iter().next() {
                return line;
            }
            assert!(start.elapsed() < PATIENCE, "no log line with {text:?}\n{}", self.tail());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lines of the access log with `uri`: `uri|status|addresses|statuses`.
    ///
    /// # Panics
    /// If there are fewer than `n` after a while.
    pub fn access(&self, uri: &str, n: usize) -> Vec<String> {
        wait::until_some("lines in the access log", PATIENCE, || {
            let log = fs::read_to_string(self.prefix().join("access.log")).unwrap_or_default();
            let lines: Vec<String> = log
                .lines()
                .filter(|line| line.split('|').next() == Some(uri))
                .map(str::to_owned)
                .collect();
            (lines.len() >= n).then_some(lines)
        })
    }

    /// The last lines of the error log.
    pub fn tail(&self) -> String {
        let path = self.prefix().join("error.log");
        let mut text = Vec::new();
        if let Ok(mut file) = fs::File::open(&path) {
            let length = file.metadata().map_or(0, |m| m.len());
            let _ = file.seek(SeekFrom::Start(length.saturating_sub(6000)));
            let _ = file.read_to_end(&mut text);
        }
        text.extend(fs::read(self.prefix().join("stderr.log")).unwrap_or_default());
        format!("--- {}:\n{}", path.display(), String::from_utf8_lossy(&text))
    }

    fn end(&mut self) -> Result<(), String> {
        let second = Duration::from_secs(1);
        let ladder =
            [(Signal::QUIT, second * 4), (Signal::TERM, second * 3), (Signal::KILL, second * 3)];
        let workers = process::children(self.pid(), "nginx:");
        if self.process.stop(&ladder) == Some(Signal::KILL) {
            workers.into_iter().for_each(|pid| process::send(pid, Signal::KILL));
            return Err("nginx had to be killed".to_owned());
        }
        let log = self.log();
        let bad = log.lines().find(|line| {
            FORBIDDEN.iter().any(|text| line.contains(text))
                && !self.config.allowed.iter().any(|text| line.contains(text))
        });
        bad.map_or(Ok(()), |line| Err(format!("in the error log: {line}")))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let result = self.end();
        if (thread::panicking() && !wait::is_interrupted()) || result.is_err() {
            eprintln!("{}", self.tail());
            if let Some(prefix) = self.prefix.take() {
                eprintln!("--- kept: {}", prefix.keep().display());
            }
        }
        if let (Err(problem), false) = (result, thread::panicking()) {
            panic!("{problem}");
        }
    }
}
