//! A panic in the module, which is a defect of ours, costs no worker and ends nothing for good.
//!
//! Rust's clock panics if the system has none. A library that is loaded before all others takes the
//! clock from our module, in nginx's own thread only, as long as a file is there.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::{Agent, Backend, Config, wait};
use tempfile::TempDir;

use crate::native::library;
use crate::status::large;
use crate::support::{SOON, gateway, register, register_one, unique, until_served_by};

/// What takes the clock.
struct Clock {
    folder: TempDir,
}

impl Clock {
    fn new() -> Clock {
        Clock { folder: tempfile::tempdir().expect("a folder") }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("broken")
    }

    /// Has nginx live by it.
    fn of(&self, config: Config) -> Config {
        static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
        let source = include_str!("panics/clock.c");
        let library = LIBRARY.get_or_init(|| library("clock", source, &["-ldl".to_owned()]));
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(self.folder.path(), open).expect("an open folder");
        config
            .environment("LD_PRELOAD", library.display())
            .environment("BROKEN_CLOCK", self.file().display())
            .allow("panicked at")
    }

    fn break_it(&self) {
        fs::write(self.file(), "").expect("a file");
    }

    fn mend(&self) {
        fs::remove_file(self.file()).expect("the file");
    }
}

#[test]
fn housekeeping_goes_on_after_a_panic() {
    let (consul, service, clock) = (Agent::shared(), unique("web"), Clock::new());
    let backends = Backend::start_all(&["a", "b", "c"]);
    register(&consul, &service, &backends[..1]);
    let nginx = clock.of(gateway(&consul.url(), &service, "consul_dynamic %%SERVICE%%;")).start();
    let worker = nginx.worker_zero();
    clock.break_it();
    let line = nginx.wait_for_log("panicked at");
    for word in ["[alert]", "consul: panicked at ", ".rs:", "Err", "InvalidInput"] {
        assert!(line.contains(word), "no {word:?} in {line}");
    }
    // Lines of the watch threads are written by the same timer.
    register_one(&consul, &service, &backends[1]);
    nginx.wait_for_log("2 peers (+1 -0)");
    clock.mend();
    let said = nginx.logged("panicked at").len();
    register_one(&consul, &service, &backends[2]);
    nginx.wait_for_log("3 peers (+1 -0)");
    until_served_by(&nginx, "/", "a b c");
    assert_eq!(nginx.worker_zero(), worker);
    assert_eq!(nginx.logged("panicked at").len(), said, "after the clock was mended");
}

#[test]
fn a_panic_in_a_request_fails_that_request_and_is_logged_once_a_second() {
    let (consul, service, clock) = (Agent::shared(), unique("web"), Clock::new());
    let backends = Backend::start_all(&["a", "b"]);
    register(&consul, &service, &backends[..1]);
    let upstream = "least_conn; consul_dynamic %%SERVICE%%;";
    let nginx = clock.of(gateway(&consul.url(), &service, upstream)).start();
    assert_eq!(nginx.outcome("/"), "a");
    let (worker, start) = (nginx.workers(), Instant::now());
    clock.break_it();
    // New peers are made for the next request, which takes the time.
    register_one(&consul, &service, &backends[1]);
    wait::until_eq("the answer", SOON, "500", || nginx.outcome("/"));
    let mut requests = 1;
    let counts = || -> Vec<usize> {
        let lines = nginx.logged("panicked at");
        lines.iter().map(|line| count(line)).collect()
    };
    wait::until("lines with a count", SOON, || {
        requests += 1;
        assert_eq!(nginx.outcome("/"), "500");
        counts().iter().filter(|&&count| count > 0).count() >= 2
    });
    let most = start.elapsed() + Duration::from_secs(2);
    let counts = counts();
    assert!(counts.len() as u64 <= most.as_secs(), "{counts:?} in {most:?}");
    clock.mend();
    until_served_by(&nginx, "/", "a b");
    assert_eq!(nginx.workers(), worker);
}

#[test]
fn a_panic_while_a_status_is_written_fails_its_readers_and_the_next_are_answered() {
    let (path, clock) = ("/consul?format=json", Clock::new());
    let (_consul, config) = large::following("");
    let nginx = clock.of(config.set("BUFFER", "")).start();
    large::until_known(&nginx);
    let worker = nginx.workers();
    let reader = || {
        let mut connection = Connection::open(nginx.address()).expect("a connection");
        connection.send("GET", path, &[], b"").expect("sent");
        connection
    };
    let mut early: Vec<Connection> = (0..5).map(|_| reader()).collect();
    clock.break_it();
    let mut late: Vec<Connection> = (0..5).map(|_| reader()).collect();
    let status = |reader: &mut Connection| reader.receive().expect("an answer").status;
    let statuses: Vec<u16> = early.iter_mut().map(status).collect();
    assert!(statuses.iter().all(|status| [200, 500].contains(status)), "{statuses:?}");
    let statuses: Vec<u16> = late.iter_mut().map(status).collect();
    assert_eq!(statuses, [500; 5]);
    clock.mend();
    let answer = nginx.get(path);
    assert!(answer.status == 200 && answer.body.ends_with("]}]}\n"), "{}", answer.status);
    assert_eq!(nginx.workers(), worker);
}

/// `7` of a line that ends with `(7 more since the last such line)`.
fn count(line: &str) -> usize {
    let (before, _) = line.split_once(" more since the last such line)").expect("a count");
    before.rsplit('(').next().expect("a number").parse().expect("a number")
}
