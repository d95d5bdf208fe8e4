//! Memory for each instance: of the zone, and of each worker.

use std::fs;
use std::time::Duration;

use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::nginx::{Config, Nginx};
use nginx_consul_e2e::wait;
use serde_json::Value;

use crate::options::Options;
use crate::stage::Stage;
use crate::table::Table;
use crate::update;
use crate::variants::{Setup, Variant};

/// A list, and by how much another one is longer.
const FEW: usize = 100;
const MORE: usize = 10_000;
/// Instances that move first: what a worker has freed of the sets before, it keeps for the next.
const MOVES: usize = 5;
/// Requests after each.
const REQUESTS: usize = 50;
/// Until the worker that is wanted takes a connection.
const PATIENCE: Duration = Duration::from_secs(20);

/// Compares what two lengths of a service take.
pub(crate) fn measure(stage: &Stage, options: &Options) -> Table {
    [FEW, FEW + MORE].iter().for_each(|&length| stage.register(Setup::Distinct, length));
    let caption = format!(
        "Bytes for each instance, {FEW} instances compared with {MORE} more: of the zone, and of a \
         worker after {MOVES} changes of one instance, each with {REQUESTS} requests"
    );
    let mut table = Table::new(caption, ["", "zone", "worker"].map(str::to_owned));
    for variant in options.variants().into_iter().filter(|v| v.is_dynamic()) {
        let (few, many) = (used(stage, variant, FEW), used(stage, variant, FEW + MORE));
        let each =
            |pick: fn(&Used) -> f64| format!("{:.0}", (pick(&many) - pick(&few)) / MORE as f64);
        let (zone, worker) = (each(|used| used.zone), each(|used| used.worker));
        eprintln!("memory: {}: {zone} bytes of the zone, {worker} of a worker", variant.name());
        table.row([variant.title(), zone, worker]);
    }
    table
}

/// Bytes.
struct Used {
    zone: f64,
    worker: f64,
}

/// What is in use with that many instances.
fn used(stage: &Stage, variant: Variant, length: usize) -> Used {
    let text = variant.configuration(stage, Setup::Distinct, length, 5);
    let text = text.replace("worker_processes 1;", "worker_processes 2;");
    let mut nginx = Config::whole(&text).workers(2).start();
    let service = variant.service(stage, Setup::Distinct, length);
    // The other one has the watch threads, with Consul's answers.
    let zero = nginx.worker_zero();
    let worker = nginx.workers().into_iter().find(|&pid| pid != zero).expect("another worker");
    let mut client = client_of(worker, &nginx);
    for n in 0..MOVES {
        let seen = update::reports(&nginx, &service);
        stage.move_instance(&service, length / 2 + n);
        wait::until("the instances changed", PATIENCE, || update::reports(&nginx, &service) > seen);
        (0..REQUESTS).for_each(|_| update::ask(&mut client));
    }
    let worker = private(worker);
    let answer = nginx.get("/consul?format=json");
    let status: Value = serde_json::from_str(&answer.body).expect("the status");
    let peers = status["services"][0]["peers"].as_array().map_or(0, Vec::len);
    assert_eq!(peers, length, "peers of the service");
    let zone = status["zone"]["used"].as_f64().expect("zone.used");
    nginx.quit();
    Used { zone, worker }
}

/// A connection that this worker took: it runs for each of several requests.
fn client_of(worker: u32, nginx: &Nginx) -> Connection {
    wait::until_some("the worker takes a connection", PATIENCE, || {
        let mut client = Connection::open(nginx.address()).expect("a connection");
        let runs = |client: &mut Connection| {
            let before = update::event_loop(worker);
            update::ask(client);
            std::thread::sleep(update::SETTLED);
            update::event_loop(worker) > before
        };
        (0..5).all(|_| runs(&mut client)).then_some(client)
    })
}

/// Bytes that no other process has; what the master read before it forked is shared.
fn private(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let kilobytes = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("its line");
        line.trim().trim_end_matches(" kB").parse().expect("kilobytes")
    };
    ["Private_Dirty:", "Private_Clean:", "Swap:"].map(kilobytes).iter().sum::<f64>() * 1024.0
}
