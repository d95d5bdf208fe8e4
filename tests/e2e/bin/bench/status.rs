//! What reading the status takes from a worker's requests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::http::Connection;
use nginx_consul_e2e::nginx::{Config, Nginx};
use nginx_consul_e2e::wait;

use crate::options::Options;
use crate::stage::Stage;
use crate::table::{self, Table};
use crate::update::{SETTLED, event_loop};
use crate::variants::{self, Setup};

/// Instances of the service.
const LENGTHS: [usize; 3] = [100, 1000, 10_000];
/// Answers that are measured.
const TIMES: usize = 15;
/// Until all instances are known.
const PATIENCE: Duration = Duration::from_secs(30);
/// Names, and what asks for them.
const FORMATS: [(&str, &str); 4] = [
    ("JSON", "/consul?format=json"),
    ("Prometheus", "/consul?format=prometheus"),
    ("Prometheus, `metrics=service`", "/few?format=prometheus"),
    ("page", "/consul"),
];

/// What an answer took.
struct Cost {
    /// CPU time of the event loop, ms.
    cpu: f64,
    /// Longest that another request waited meanwhile, ms.
    wait: f64,
}

/// Measures each format at each length.
pub(crate) fn measure(stage: &Stage, options: &Options) -> Vec<Table> {
    let lengths: Vec<usize> = if options.quick { LENGTHS[..2].to_vec() } else { LENGTHS.to_vec() };
    lengths.iter().for_each(|&length| stage.register(Setup::Distinct, length));
    let caption = |what: &str| format!("{what}, ms; least–**median**–most of {TIMES} answers");
    let mut waits = Table::new(
        caption("Longest that another request of the worker waits while it answers with a status"),
        table::columns(&lengths),
    );
    let mut cpu = Table::new(
        caption("CPU time of the event loop for such an answer, in all"),
        table::columns(&lengths),
    );
    let running: Vec<Nginx> = lengths.iter().map(|&length| start(stage, length)).collect();
    for (name, path) in FORMATS {
        let costs: Vec<Vec<Cost>> = running.iter().map(|nginx| answers(nginx, path)).collect();
        let cells = |pick: fn(&Cost) -> f64| {
            let cell =
                |costs: &Vec<Cost>| table::spread(&costs.iter().map(pick).collect::<Vec<_>>(), 1);
            std::iter::once(name.to_owned()).chain(costs.iter().map(cell)).collect::<Vec<_>>()
        };
        eprintln!("status: {:?}, CPU {:?}", cells(|cost| cost.wait), cells(|cost| cost.cpu));
        waits.row(cells(|cost| cost.wait));
        cpu.row(cells(|cost| cost.cpu));
    }
    vec![waits, cpu]
}

/// nginx that follows a service of so many instances.
fn start(stage: &Stage, length: usize) -> Nginx {
    let service = stage.service(Setup::Distinct, length);
    let text = variants::following(stage, &service).replace(
        "location = /consul",
        "location = /few { consul_status metrics=service; }\n\
         location = /other { return 204; }\nlocation = /consul",
    );
    let nginx = Config::whole(&text).start();
    wait::until("all instances are known", PATIENCE, || {
        nginx.peers(&service).split(' ').count() == length
    });
    nginx
}

/// Asks for the status again and again, while another connection asks for something else.
fn answers(nginx: &Nginx, path: &str) -> Vec<Cost> {
    let worker = nginx.workers()[0];
    let mut client = Connection::open(nginx.address()).expect("a connection");
    let mut ask = || {
        let answer = client.get(path).expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.body);
    };
    ask();
    let answers = (0..TIMES).map(|_| {
        thread::sleep(SETTLED);
        let before = event_loop(worker);
        ask();
        thread::sleep(SETTLED);
        let cpu = (event_loop(worker) - before) as f64 / 1e6;
        Cost { cpu, wait: longest_wait(nginx, &mut ask) }
    });
    answers.collect()
}

/// Milliseconds that the slowest of the other requests takes while `ask` runs.
fn longest_wait(nginx: &Nginx, ask: &mut impl FnMut()) -> f64 {
    let mut other = Connection::open(nginx.address()).expect("a connection");
    other.get("/other").expect("an answer");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let others = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let start = Instant::now();
                other.get("/other").expect("an answer");
                longest = longest.max(start.elapsed());
            }
            longest
        });
        ask();
        done.store(true, Ordering::Relaxed);
        others.join().expect("the other requests").as_secs_f64() * 1000.0
    })
}
