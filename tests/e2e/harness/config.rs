//! Configurations of nginx, written inline in the tests.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::nginx::{Nginx, PATIENCE};
use crate::process::Process;
use crate::{ports, wait};

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
    starter: Vec<String>,
    pub(crate) allowed: Vec<String>,
    pub(crate) workers: usize,
    level: &'static str,
    events: String,
    connections: usize,
    with_module: bool,
    pub(crate) with_master: bool,
    daemon: bool,
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
            starter: Vec::new(),
            allowed: Vec::new(),
            workers: 1,
            level: "info",
            events: String::new(),
            connections: 2048,
            with_module: true,
            with_master: true,
            daemon: false,
        }
    }

    /// A configuration given whole, as an operator's file is.
    pub fn whole(text: &str) -> Config {
        Config { whole: Some(text.to_owned()), ..Config::http("") }
    }

    /// Adds to its `http` block.
    pub fn more(mut self, text: &str) -> Config {
        self.http.push('\n');
        self.http.push_str(text);
        self
    }

    /// Adds directives outside of any block.
    pub fn main(mut self, text: &str) -> Config {
        self.main.push_str(text);
        self
    }

    /// Adds directives to its `events` block.
    pub fn events(mut self, text: &str) -> Config {
        self.events.push_str(text);
        self
    }

    /// Most connections of a worker; 2048 unless told.
    pub fn connections(mut self, connections: usize) -> Config {
        self.connections = connections;
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

    /// Has nginx executed by this program with these arguments; nginx's own command line follows
    /// them. The program has to become nginx, by `exec`.
    pub fn started_by(mut self, program: &[&str]) -> Config {
        self.starter = program.iter().map(|&word| word.to_owned()).collect();
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

    /// Has nginx leave its starter, which then has no hold on it: for [`Config::launch`].
    pub fn daemon(mut self) -> Config {
        self.daemon = true;
        self
    }

    /// Lets log lines with this text pass at the end.
    pub fn allow(mut self, text: &str) -> Config {
        self.allowed.push(text.to_owned());
        self
    }

    /// Lets pass what is logged when workers are killed.
    pub fn allow_kills(self) -> Config {
        self.allow("exited on signal 9").allow("was locked by")
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
            "{module}daemon {};\nmaster_process {};\nworker_processes {};\n\
             error_log error.log {};\npid nginx.pid;\n{}\n\
             events {{ worker_connections {}; {} }}\n\
             http {{\n\
             log_format e2e '$request_uri|$status|$upstream_addr|$upstream_status';\n\
             access_log access.log e2e;\n\
             client_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\n\
             uwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\n{}\n}}\n",
            if self.daemon { "on" } else { "off" },
            if self.with_master { "on" } else { "off" },
            self.workers,
            self.level,
            self.main,
            self.connections,
            self.events,
            self.http,
        )
    }

    /// Starts nginx and waits until it serves.
    ///
    /// # Panics
    /// If it doesn't, with what it said.
    pub fn start(self) -> Nginx {
        let nginx = self.launch();
        wait::until("nginx listens and has its workers", PATIENCE, || nginx.is_ready());
        nginx
    }

    /// Starts nginx and waits for nothing.
    pub fn launch(self) -> Nginx {
        let laid = self.lay_out();
        let stderr = fs::File::create(laid.prefix.path().join("stderr.log")).expect("stderr.log");
        let mut command = laid.command("error.log");
        let process = Process::spawn(command.stdout(Stdio::null()).stderr(stderr));
        let Laid { config, prefix, port, file, .. } = laid;
        Nginx::new(process, config, prefix, file, port)
    }

    /// Runs `nginx -t`.
    ///
    /// # Panics
    /// If nginx can't be run.
    pub fn check(self) -> Checked {
        let laid = self.lay_out();
        let mut command = laid.command("stderr");
        command.arg("-t").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = ports::apart(|| command.spawn()).and_then(Child::wait_with_output);
        let output = output.expect("nginx -t runs");
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
        let words: Vec<OsString> = self.config.starter.iter().map(OsString::from).collect();
        let mut words = words.into_iter().chain([binary().into_os_string()]);
        let mut command = Command::new(words.next().expect("nginx at least"));
        command
            .args(words)
            .arg("-p")
            .arg(self.prefix.path())
            .arg("-c")
            .arg(&self.file)
            .arg("-e")
            .arg(log);
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
