//! nginx under callgrind, which counts only while it is told to, and only the event loop of one of
//! two workers.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::nginx;
use nginx_consul_e2e::process::{self, Process};
use nginx_consul_e2e::{ports, wait};
use rustix::process::Signal;
use tempfile::TempDir;

/// nginx under valgrind takes its time to start and to end.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running one.
pub(crate) struct Counted {
    folder: TempDir,
    process: Process,
    address: SocketAddr,
    /// Worker 0 and worker 1.
    workers: [u32; 2],
    /// Which of them counts.
    counting: usize,
}

/// What was counted.
#[derive(Debug)]
pub(crate) struct Counts {
    /// Instructions of the thread.
    pub(crate) total: u64,
    /// Calls from nginx into our module, each function's number of calls and their instructions, of
    /// everything called from there included but for the header filters that come after ours.
    pub(crate) into_module: HashMap<String, (u64, u64)>,
    /// Instructions by source file of ours, inlined functions under their own.
    pub(crate) files: BTreeMap<String, u64>,
}

impl Counted {
    /// Starts nginx with this configuration and waits until it listens. Nothing is counted yet, and
    /// then only what the worker `counting` does.
    pub(crate) fn start(text: &str, counting: usize) -> Counted {
        let folder = tempfile::tempdir().expect("a folder");
        let port = ports::free();
        let file = folder.path().join("nginx.conf");
        let text = text.replace("%%PORT%%", &port.to_string());
        let text = text.replace("worker_processes 1;", "worker_processes 2;");
        // valgrind's pipes, by which it is told to count, are made before workers change the user.
        fs::write(&file, format!("user root;\n{text}")).expect("nginx.conf");
        let out = folder.path().join("callgrind.out.%p");
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--instr-atstart=no", "--separate-threads=yes"]);
        // Or callgrind_control finds no process that was forked.
        command.arg("--trace-children=yes");
        command.arg(format!("--callgrind-out-file={}", out.display()));
        command.arg(nginx::binary()).arg("-p").arg(folder.path()).arg("-c").arg(&file);
        command.args(["-e", "error.log"]).stdin(Stdio::null());
        let log = fs::File::create(folder.path().join("valgrind.log")).expect("valgrind.log");
        let process = Process::spawn(command.stdout(Stdio::null()).stderr(log));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut counted = Counted { folder, process, address, workers: [0; 2], counting };
        counted.workers = wait::until_some("nginx serves under valgrind", PATIENCE, || {
            let ended = counted.process.exited().is_some();
            assert!(!ended, "nginx ended under valgrind:\n{}", counted.told());
            let workers = process::children(counted.process.pid(), "").try_into().ok()?;
            TcpStream::connect(address).is_ok().then_some(workers)
        });
        counted
    }

    /// Opens connections to the worker that counts.
    pub(crate) fn connect(&self, connections: usize) -> Vec<Connection> {
        let other = self.workers[1 - self.counting];
        process::send(other, Signal::STOP);
        wait::until("the other worker stops", PATIENCE, || process::is_stopped(other));
        let wanted = self.workers[self.counting].to_string();
        let open = || {
            let mut connection = Connection::open(self.address).expect("a connection");
            let who = connection.get("/pid").expect("the worker's pid").body;
            assert_eq!(who, wanted, "the pid of the worker that counts");
            connection
        };
        let opened = (0..connections).map(|_| open()).collect();
        process::send(other, Signal::CONT);
        opened
    }

    /// What it and valgrind said.
    pub(crate) fn told(&self) -> String {
        let read =
            |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        format!("{}\n{}", read("error.log"), read("valgrind.log"))
    }

    /// Counts from here on, or no more.
    pub(crate) fn switch(&self, on: bool) {
        let mut command = Command::new("callgrind_control");
        command
            .args(["-i", if on { "on" } else { "off" }])
            .arg(self.workers[self.counting].to_string());
        let output = command.output().expect("callgrind_control: scripts/deps bench");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("OK"), "{command:?}: {text}");
    }

    /// Ends it. What callgrind wrote is left in the file `keep`.
    pub(crate) fn end(mut self, keep: Option<&Path>) -> Counts {
        self.process.signal(Signal::TERM);
        let status = self.process.wait(PATIENCE);
        assert!(status.is_some_and(|s| s.success()), "{status:?}\n{}", self.told());
        let worker = self.workers[self.counting];
        let out = self.folder.path().join(format!("callgrind.out.{worker}-01"));
        if let Some(keep) = keep {
            fs::copy(&out, keep).expect("a place to keep callgrind.out");
        }
        Counts::parse(&fs::read_to_string(out).expect("what callgrind wrote"))
    }
}

impl Counts {
    /// Reads callgrind's own format, see "Callgrind Format Specification" in valgrind's manual.
    fn parse(text: &str) -> Counts {
        let mut names = Names::default();
        let (nginx, module) = (path(nginx::binary()), path(nginx::module()));
        let (mut total, mut from, mut into) = (0, String::new(), String::new());
        let (mut callee, mut calls) = (String::new(), None);
        let mut into_module: HashMap<String, (u64, u64)> = HashMap::new();
        let (mut function, mut passed_on) = (String::new(), 0);
        let (mut file, mut files) = (String::new(), BTreeMap::new());
        for line in text.lines() {
            if let Some(count) = calls.take() {
                let cost = line.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
                if from == nginx && into == module {
                    let sum = into_module.entry(callee.clone()).or_default();
                    *sum = (sum.0 + count, sum.1 + cost);
                } else if from == module && into == nginx && is_filter(&function) {
                    passed_on += cost;
                }
                into.clone_from(&from);
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                if let Some(n) = line.strip_prefix("totals: ") {
                    total = n.trim().parse().expect("totals of callgrind.out");
                } else if let (Some(own), Some(cost)) = (own_file(&file), line.split(' ').nth(1)) {
                    *files.entry(own.to_owned()).or_default() += cost.parse().unwrap_or(0);
                }
                continue;
            };
            match key {
                "ob" => {
                    from = names.objects.resolve(value);
                    into.clone_from(&from);
                }
                "fl" | "fi" | "fe" => file = names.files.resolve(value),
                "cfl" | "cfi" => drop(names.files.resolve(value)),
                "cob" => into = names.objects.resolve(value),
                "fn" => function = names.functions.resolve(value),
                "cfn" => callee = names.functions.resolve(value),
                "calls" => calls = value.split(' ').next().and_then(|n| n.parse::<u64>().ok()),
                _ => {}
            }
        }
        assert!(total > 0, "no totals in callgrind.out");
        if let Some((_, filter)) = into_module.iter_mut().find(|(name, _)| is_filter(name)) {
            filter.1 = filter.1.saturating_sub(passed_on);
        }
        Counts { total, into_module, files }
    }
}

/// Our header filter, which calls the next one.
fn is_filter(function: &str) -> bool {
    function.contains("ngx_http_consul_header_filter")
}

/// A source file of ours, from `core` or `module` on.
fn own_file(file: &str) -> Option<&str> {
    ["src/core/", "src/module/"].iter().find_map(|folder| {
        let at = file.find(folder)?;
        // The standard library has a "src/core", too.
        file.starts_with(env!("CARGO_MANIFEST_DIR").trim_end_matches("tests/e2e"))
            .then(|| &file[at + "src/".len()..])
            .or_else(|| (at == 0).then(|| &file["src/".len()..]))
    })
}

/// The path of an object as callgrind writes it.
fn path(file: PathBuf) -> String {
    fs::canonicalize(&file).unwrap_or(file).to_string_lossy().into_owned()
}

#[derive(Default)]
struct Names {
    objects: Compressed,
    files: Compressed,
    functions: Compressed,
}

/// Names are given once, as "(7) name", and then as "(7)".
#[derive(Default)]
struct Compressed(HashMap<String, String>);

impl Compressed {
    fn resolve(&mut self, value: &str) -> String {
        let (number, name) = value.split_once(' ').unwrap_or((value, ""));
        if name.is_empty() {
            return self.0.get(number).cloned().unwrap_or_default();
        }
        self.0.insert(number.to_owned(), name.to_owned());
        name.to_owned()
    }
}
