//! What the change of one instance takes from a worker's event loop.

use std::fs;
use std::thread;
use std::time::Duration;

use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::nginx::{Config, Nginx};
use nginx_consul_e2e::wait;

use crate::options::Options;
use crate::stage::Stage;
use crate::table::{self, Table};
use crate::variants::{Setup, Variant};

/// List lengths.
const LENGTHS: [usize; 3] = [100, 1000, 10_000];
/// Changes of a list with ours, with nginx's own methods, and where one of those takes long.
const OURS: usize = 25;
const OVER: usize = 9;
const LONG: usize = 3;
/// For Consul's answer, the watch thread's work and the publication.
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests after a change: the first one takes it up, the second one runs what it left undone.
const REQUESTS: usize = 2;
/// For what follows an answer to the client.
pub(crate) const SETTLED: Duration = Duration::from_millis(5);
/// nginx's own methods rest after a change, 20 times as long as it took: longer than that.
const REST: f64 = 25.0;

/// Measures each variant of ours at each length.
pub(crate) fn measure(stage: &Stage, options: &Options) -> Table {
    let caption = format!(
        "CPU time that the change of one instance takes from a worker's event loop, ms; \
         least–**median**–most of {OURS} changes ({OVER} with nginx's own methods, {LONG} over 10,000)"
    );
    let lengths: Vec<usize> = if options.quick { LENGTHS[..2].to_vec() } else { LENGTHS.to_vec() };
    let mut table = Table::new(caption, table::columns(&lengths));
    lengths.iter().for_each(|&length| stage.register(Setup::Distinct, length));
    for variant in options.variants().into_iter().filter(|v| v.is_dynamic()) {
        let cells = lengths.iter().map(|&length| {
            let times = match variant.static_twin() {
                None => OURS,
                // Their rests take minutes.
                Some(_) if length > 1000 => LONG,
                Some(_) => OVER,
            };
            let costs = changes(stage, variant, length, times);
            let cell = table::spread(&costs, 2);
            eprintln!("update: N = {length}, {}: {cell} ms", variant.name());
            cell
        });
        table.row(std::iter::once(variant.title()).chain(cells.collect::<Vec<_>>()));
    }
    table
}

/// Milliseconds of each change.
fn changes(stage: &Stage, variant: Variant, length: usize, times: usize) -> Vec<f64> {
    let text = variant.configuration(stage, Setup::Distinct, length, 5);
    let mut nginx = Config::whole(&text).start();
    let service = variant.service(stage, Setup::Distinct, length);
    let worker = nginx.workers()[0];
    let mut rested = 0;
    let mut rest = || {
        let spent = Duration::from_nanos(event_loop(worker) - rested);
        thread::sleep(if variant.static_twin().is_some() { spent.mul_f64(REST) } else { SETTLED });
        rested = event_loop(worker);
    };
    let mut client = Connection::open(nginx.address()).expect("a connection");
    (0..10).for_each(|_| ask(&mut client));
    let (mut plain, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..times {
        rest();
        plain.extend((0..5).map(|_| cost(worker, &mut client)));
        rest();
        let seen = reports(&nginx, &service);
        // One in the middle, most likely not the one that requests go to.
        stage.move_instance(&service, length / 2);
        wait::until("the worker has said that the instances changed", PATIENCE, || {
            reports(&nginx, &service) > seen
        });
        thread::sleep(SETTLED);
        costs.push((0..REQUESTS).map(|_| cost(worker, &mut client)).sum::<f64>());
    }
    plain.sort_by(f64::total_cmp);
    let usual = plain[plain.len() / 2] * REQUESTS as f64;
    nginx.quit();
    costs.iter().map(|cost| (cost - usual).max(0.0)).collect()
}

/// How many changes of the service are in the log.
pub(crate) fn reports(nginx: &Nginx, service: &str) -> usize {
    nginx.logged(&format!("service \"{service}\": ")).len()
}

/// Milliseconds that the worker's event loop runs for a request.
fn cost(worker: u32, client: &mut Connection) -> f64 {
    let before = event_loop(worker);
    ask(client);
    thread::sleep(SETTLED);
    (event_loop(worker) - before) as f64 / 1e6
}

pub(crate) fn ask(client: &mut Connection) {
    let answer = client.get("/?key=1").expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// Nanoseconds that the worker's first thread, its event loop, has run.
pub(crate) fn event_loop(worker: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{worker}/task/{worker}/schedstat"));
    let text = text.expect("schedstat, which Linux has when CONFIG_SCHED_INFO is set");
    text.split(' ').next().and_then(|n| n.parse().ok()).expect("a time in schedstat")
}
