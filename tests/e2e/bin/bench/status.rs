//! What reading the status takes from a worker's requests.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

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

/// What an answer took, ms.
struct Cost {
    /// CPU time of the event loop, in all.
    cpu: f64,
    /// The most of it between two answers to another connection.
    go: f64,
}

/// One of the two.
type Pick = fn(&Cost) -> f64;

/// Measures each format at each length.
pub(crate) fn measure(stage: &Stage, options: &Options) -> Vec<Table> {
    let lengths: Vec<usize> = if options.quick { LENGTHS[..2].to_vec() } else { LENGTHS.to_vec() };
    lengths.iter().for_each(|&length| stage.register(Setup::Distinct, length));
    let captions: [(&str, Pick); 2] = [
        ("CPU time of a worker's event loop for an answer with the status, in all", |c| c.cpu),
        ("The most CPU time of that in one go, between two answers to other requests", |c| c.go),
    ];
    let mut tables = captions.map(|(what, _)| {
        let caption = format!("{what}, ms; least–**median**–most of {TIMES} answers");
        Table::new(caption, table::columns(&lengths))
    });
    let running: Vec<Nginx> = lengths.iter().map(|&length| start(stage, length)).collect();
    for (name, path) in FORMATS {
        let costs: Vec<Vec<Cost>> = running.iter().map(|nginx| answers(nginx, path)).collect();
        for (table, (what, pick)) in tables.iter_mut().zip(captions) {
            let spread =
                |costs: &Vec<Cost>| table::spread(&costs.iter().map(pick).collect::<Vec<_>>(), 1);
            let cells: Vec<String> = costs.iter().map(spread).collect();
            eprintln!("status: {name}: {what}: {} ms", cells.join(", "));
            table.row(std::iter::once(name.to_owned()).chain(cells));
        }
    }
    tables.into()
}

/// nginx that follows a service of so many instances.
fn start(stage: &Stage, length: usize) -> Nginx {
    let service = stage.service(Setup::Distinct, length);
    let text = variants::following(&stage.consul_url(), &service).replace(
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
        Cost { cpu, go: longest_go(nginx, worker, &mut ask) }
    });
    answers.collect()
}

/// Asks on another connection while `ask` runs, one request after the other: the most that the event
/// loop ran between two answers, in ms.
fn longest_go(nginx: &Nginx, worker: u32, ask: &mut impl FnMut()) -> f64 {
    let mut other = Connection::open(nginx.address()).expect("a connection");
    let (begun, done) = (Barrier::new(2), AtomicBool::new(false));
    thread::scope(|scope| {
        let others = scope.spawn(|| {
            other.get("/other").expect("an answer");
            let (mut most, mut ran) = (0, event_loop(worker));
            begun.wait();
            loop {
                let is_last = done.load(Ordering::Relaxed);
                other.get("/other").expect("an answer");
                let now = event_loop(worker);
                most = most.max(now - ran);
                ran = now;
                if is_last {
                    return most as f64 / 1e6;
                }
            }
        });
        begun.wait();
        ask();
        done.store(true, Ordering::Relaxed);
        others.join().expect("the other requests")
    })
}
