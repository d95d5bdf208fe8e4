//! User-space instructions per request, counted by callgrind: the one figure that a busy machine
//! leaves alone.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::nginx;
use nginx_consul_e2e::process::Process;
use nginx_consul_e2e::{ports, wait};
use rustix::process::Signal;

use crate::options::Options;
use crate::stage::Stage;
use crate::table::{self, Table};
use crate::variants::Variant;

/// nginx under valgrind takes its time to start and to end.
const PATIENCE: Duration = Duration::from_secs(120);
/// No poll of the recipe shall fall into a run.
const NEVER: u32 = 36_000;

/// Measures each variant at each length.
pub(crate) fn measure(stage: &Stage, options: &Options) -> Table {
    let caption = "User-space instructions per request (callgrind), in thousands";
    let mut table = Table::new(caption, table::columns(&options.lengths));
    for &variant in &options.variants {
        let cells = options.lengths.iter().map(|&length| {
            let count = per_request(stage, options, variant, length);
            eprintln!("instructions: N = {length}, {}: {count:.0}", variant.name());
            format!("{:.1}", count / 1000.0)
        });
        table.row(std::iter::once(variant.title()).chain(cells.collect::<Vec<_>>()));
    }
    table
}

/// The difference between a short and a long run: start and end are the same in both.
fn per_request(stage: &Stage, options: &Options, variant: Variant, length: usize) -> f64 {
    let (few, many) = match (variant.is_slow(), options.quick) {
        (true, _) if length >= 1000 => (50, 150),
        (true, _) => (200, 700),
        (false, true) => (500, 2500),
        (false, false) => (1000, 5000),
    };
    let run = |requests| count(stage, options, variant, length, requests);
    let (short, long) = thread::scope(|scope| {
        let short = scope.spawn(|| run(few));
        let long = run(many);
        (short.join().expect("the short run"), long)
    });
    (long - short) / f64::from(many - few)
}

/// Instructions of a whole run with so many requests.
fn count(stage: &Stage, options: &Options, variant: Variant, length: usize, requests: u32) -> f64 {
    let folder = tempfile::tempdir().expect("a folder");
    let port = ports::free();
    let text = variant.configuration(stage, options.setup, length, NEVER);
    let text = text.replace("%%PORT%%", &port.to_string());
    let file = folder.path().join("nginx.conf");
    fs::write(&file, format!("{text}\nmaster_process off;\n")).expect("nginx.conf");
    let out = folder.path().join("callgrind.out");
    let mut command = Command::new("valgrind");
    command.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", out.display()));
    command.arg(nginx::binary()).arg("-p").arg(folder.path()).arg("-c").arg(&file);
    command.args(["-e", "error.log"]).stdin(Stdio::null());
    let log = fs::File::create(folder.path().join("valgrind.log")).expect("valgrind.log");
    let mut process = Process::spawn(command.stdout(Stdio::null()).stderr(log));
    let told = || {
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap_or_default();
        format!("{}\n{}", read("error.log"), read("valgrind.log"))
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    wait::until("nginx listens under valgrind", PATIENCE, || {
        assert!(process.exited().is_none(), "nginx ended under valgrind:\n{}", told());
        TcpStream::connect(address).is_ok()
    });
    let mut connection = Connection::open(address).expect("a connection");
    for _ in 0..requests {
        let answer = connection.get("/").unwrap_or_else(|error| panic!("{error}\n{}", told()));
        assert_eq!(answer.status, 200, "{}", told());
    }
    drop(connection);
    process.signal(Signal::TERM);
    let status = process.wait(PATIENCE);
    assert!(status.is_some_and(|s| s.success()), "nginx under valgrind: {status:?}\n{}", told());
    let text = fs::read_to_string(&out).expect("callgrind.out");
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    total.and_then(|n| n.trim().parse().ok()).expect("totals in callgrind.out")
}
