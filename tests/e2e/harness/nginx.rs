//! Stock nginx with our module, started the way nginx's own suite does: a prefix of its own and
//! the configuration inline in the test.

use std::env;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::http::{self, Response};
use crate::process::{self, Process};
use crate::{ports, wait};

/// Longest nginx may take to serve, to reload or to end.
const PATIENCE: Duration = Duration::from_secs(15);

/// Lines that no log may have at the end.
const FORBIDDEN: [&str; 6] =
    ["[alert]", "[emerg]", "exited on signal", "Sanitizer", "runtime error:", "panicked"];

/// The nginx to test: `TEST_NGINX_BINARY`, else the distribution's.
pub fn binary() -> PathBuf {
    env::var_os("TEST_NGINX_BINARY").map_or_else(|| "/usr/sbin/nginx".into(), PathBuf::from)
}

/// The module to test: `NGINX_CONSUL_MODULE`, else the release build of this workspace.
pub fn module() -> PathBuf {
    env::var_os("NGINX_CONSUL_MODULE").map_or_else(
        || workspace().join("target/release/libngx_http_consul_module.so"),
        PathBuf::from,
    )
}

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    root.expect("tests/e2e is two below the root").to_owned()
}

/// A configuration; `%%PORT%%`, `%%PREFIX%%` and what [`Config::set`] names are replaced in it.
#[derive(Clone, Debug)]
pub struct Config {
    http: String,
    main: String,
    whole: Option<String>,
    variables: Vec<(String, String)>,
    files: Vec<(String, Vec<u8>)>,
    environment: Vec<(String, String)>,
    allowed: Vec<String>,
    workers: usize,
    level: &'static str,
    with_module: bool,
    with_master: bool,
    patience: Duration,
}

impl Config {
    /// A configuration with this inside its `http` block.
    pub fn http(text: &str) -> Config {
        Config {
            http: text.to_owned(),
            main: String::new(),
            whole: None,
            variables: Vec::new(),
            files: Vec::new(),
            environment: Vec::new(),
            allowed: Vec::new(),
            workers: 1,
            level: "info",
            with_module: true,
            with_master: true,
            patience: PATIENCE,
        }
    }

    /// A configuration given whole, as an operator's file is.
    pub fn whole(text: &str) -> Config {
        Config { whole: Some(text.to_owned()), ..Config::http("") }
    }

    /// Adds directives outside of any block.
    pub fn main(mut self, text: &str) -> Config {
        self.main.push_str(text);
        self
    }

    /// Replaces `%%NAME%%` by `value`.
    pub fn set(mut self, name: &str, value: impl ToString) -> Config {
        self.variables.push((format!("%%{name}%%"), value.to_string()));
        self
    }

    /// Puts a file into the prefix.
    pub fn file(mut self, name: &str, contents: impl AsRef<[u8]>) -> Config {
        self.files.push((name.to_owned(), contents.as_ref().to_owned()));
        self
    }

    /// Sets a variable of nginx's environment.
    pub fn environment(mut self, name: &str, value: impl ToString) -> Config {
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    /// Number of workers; 1 unless told.
    pub fn workers(mut self, workers: usize) -> Config {
        self.workers = workers;
        self
    }

    /// Level of the error log; `info` unless told.
    pub fn log_level(mut self, level: &'static str) -> Config {
        self.level = level;
        self
    }

    /// Leaves the module out.
    pub fn without_module(mut self) -> Config {
        self.with_module = false;
        self
    }

    /// Runs in one process.
    pub fn without_master(mut self) -> Config {
        self.with_master = false;
        self
    }

    /// Lets log lines with this text pass at the end.
    pub fn allow(mut self, text: &str) -> Config {
        self.allowed.push(text.to_owned());
        self
    }

    /// Writes prefix and configuration.
    fn lay_out(mut self) -> Laid {
        let prefix = tempfile::Builder::new().prefix("nginx-consul-").tempdir().expect("a prefix");
        // Workers drop to an unprivileged user, and have to get at it.
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(prefix.path(), open).expect("an open prefix");
        for (name, contents) in &self.files {
            fs::write(prefix.path().join(name), contents).expect("a file in the prefix");
        }
        let port = ports::free();
        self = self.set("PORT", port).set("PREFIX", prefix.path().display());
        let mut text = self.whole.clone().unwrap_or_else(|| self.text());
        for (name, value) in &self.variables {
            text = text.replace(name, value);
        }
        let file = prefix.path().join("nginx.conf");
        fs::write(&file, &text).expect("nginx.conf");
        Laid { config: self, prefix, port, file, text }
    }

    fn text(&self) -> String {
        let module = if self.with_module {
            format!("load_module {};\n", module().display())
        } else {
            String::new()
        };
        format!(
            "{module}daemon off;\nmaster_process {};\nworker_processes {};\n\
             error_log error.log {};\npid nginx.pid;\n{}\n\
             events {{ worker_connections 2048; }}\n\
             http {{\n\
             log_format e2e '$request_uri|$status|$upstream_addr|$upstream_status';\n\
             access_log access.log e2e;\n\
             client_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\n\
             uwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\n{}\n}}\n",
            if self.with_master { "on" } else { "off" },
            self.workers,
            self.level,
            self.main,
            self.http,
        )
    }

    /// Starts nginx and waits until it serves.
    ///
    /// # Panics
    /// If it doesn't, with what it said.
    pub fn start(self) -> Nginx {
        let nginx = self.launch();
        wait::until("nginx listens and has its workers", nginx.config.patience, || {
            nginx.is_ready()
        });
        nginx
    }

    /// Starts nginx and waits for nothing.
    pub fn launch(self) -> Nginx {
        let laid = self.lay_out();
        let stderr = fs::File::create(laid.prefix.path().join("stderr.log")).expect("stderr.log");
        let mut command = laid.command("error.log");
        let process = Process::spawn(command.stdout(Stdio::null()).stderr(stderr));
        let Laid { config, prefix, port, file, .. } = laid;
        Nginx { process, config, prefix: Some(prefix), port, file }
    }

    /// Runs `nginx -t`.
    ///
    /// # Panics
    /// If nginx can't be run.
    pub fn check(self) -> Checked {
        let laid = self.lay_out();
        let output = laid.command("stderr").arg("-t").output().expect("nginx -t runs");
        Checked {
            passed: output.status.success(),
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
            file: laid.file,
            text: laid.text,
        }
    }
}

/// A configuration on disk.
struct Laid {
    config: Config,
    prefix: TempDir,
    port: u16,
    file: PathBuf,
    text: String,
}

impl Laid {
    fn command(&self, log: &str) -> Command {
        let mut command = Command::new(binary());
        command.arg("-p").arg(self.prefix.path()).arg("-c").arg(&self.file).arg("-e").arg(log);
        command.stdin(Stdio::null());
        for name in ["CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN", "CONSUL_HTTP_TOKEN_FILE"] {
            command.env_remove(name);
        }
        command.envs(self.config.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// What `nginx -t` said.
#[derive(Debug)]
pub struct Checked {
    /// Whether the configuration is good.
    pub passed: bool,
    /// Its messages.
    pub output: String,
    file: PathBuf,
    text: String,
}

impl Checked {
    /// `…/nginx.conf:12` for the line of the configuration that has `mark` in it.
    ///
    /// # Panics
    /// If no line has.
    pub fn place(&self, mark: &str) -> String {
        let line = self.text.lines().position(|line| line.contains(mark));
        format!("{}:{}", self.file.display(), line.expect("the mark is in the configuration") + 1)
    }
}

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

    fn is_ready(&self) -> bool {
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
        wait::until("new workers after the reload", self.config.patience, || {
            let new = self.workers().iter().filter(|pid| !old.contains(pid)).count();
            new == self.config.workers
        });
        old
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
        if thread::panicking() || result.is_err() {
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
