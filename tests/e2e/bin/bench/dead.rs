//! A healthy service beside a dead one: ours beside stock `server` lines.

use std::fmt;
use std::time::{Duration, Instant};

use nginx_consul_e2e::consul::Instance;
use nginx_consul_e2e::nginx::{Config, Nginx};
use nginx_consul_e2e::{Backend, Failure, FaultyBackend, Load, wait};

use crate::options::Options;
use crate::stage::Stage;
use crate::table::{self, Table};

/// Clients of the dead service, and how often each sends a request.
const CLIENTS: usize = 200;
const PERIOD: Duration = Duration::from_millis(200);
/// Clients of the healthy service, and what each lets pass between two requests.
const BESIDE: usize = 4;
const PACE: Duration = Duration::from_millis(2);
/// From the first client that was told of a failure until the first tries have failed, and a second.
const SETTLING: Duration = Duration::from_millis(2500);
/// Longest anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Two equal p99 differ by so much from run to run: a share, and milliseconds.
const NOISE: (f64, f64) = (1.25, 2.0);
/// Two equal shares of failures do, in percent.
const NOISE_OF_FAILURES: f64 = 5.0;

/// What surrounds the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setup {
    /// Two instances.
    Two,
    /// Two, and connections are kept.
    Keepalive,
    /// Two of a service that requests name; stock nginx has `server` lines for it.
    Named,
    /// nginx's own `least_conn` over two.
    LeastConn,
    /// One instance.
    One,
}

/// What is measured: the setup in which the failure tells most, and the others in one failure.
const CELLS: [(Setup, Failure); 10] = [
    (Setup::Two, Failure::Refuses),
    (Setup::Two, Failure::DropsPackets),
    (Setup::Two, Failure::Silent),
    (Setup::Two, Failure::SlowHeader),
    (Setup::Two, Failure::SlowBody),
    (Setup::Keepalive, Failure::Silent),
    (Setup::Named, Failure::Silent),
    (Setup::LeastConn, Failure::Silent),
    (Setup::One, Failure::DropsPackets),
    (Setup::One, Failure::Silent),
];

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Setup::Two => "two instances",
            Setup::Keepalive => "two, connections kept",
            Setup::Named => "two, `consul_dynamic $arg_s`",
            Setup::LeastConn => "two, `least_conn`",
            Setup::One => "one instance",
        })
    }
}

/// How a failure is told to people.
fn failure(failure: Failure) -> &'static str {
    match failure {
        Failure::Refuses => "refuses",
        Failure::DropsPackets => "drops packets",
        Failure::Silent => "never answers",
        Failure::SlowHeader => "header at 1 byte/s",
        Failure::SlowBody => "body at 1 byte/s",
    }
}

/// What the healthy service's clients had.
struct Run {
    /// Milliseconds.
    p99: f64,
    /// Percent of the requests.
    failures: f64,
}

/// Measures each cell, ours and stock in turns.
pub(crate) fn measure(stage: &Stage, options: &Options) -> Table {
    let head =
        ["", "stock p99, ms", "ours p99, ms", "ratio", "stock failures, %", "ours failures, %"];
    let head = head.into_iter().chain(["no worse than stock"]).map(str::to_owned);
    let caption = format!(
        "A healthy service beside a dead one with {CLIENTS} clients, one worker with 256 connections: \
         its p99, and its requests that failed; least–**median**–most of {} rounds of {} s. \"No worse\" \
         is by the medians, where noise is {:.0} % or {:.0} ms of the p99, and {:.0} of 100 failures",
        options.rounds,
        options.seconds,
        (NOISE.0 - 1.0) * 100.0,
        NOISE.1,
        NOISE_OF_FAILURES,
    );
    let mut table = Table::new(caption, head);
    for (number, (setup, how)) in CELLS.into_iter().enumerate() {
        let mut cell = Cell::start(stage, number, setup, how);
        let length = Duration::from_secs(options.seconds.get().into());
        let (mut ours, mut stock) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds.get() {
            stock.push(cell.run(&cell.stock(), length));
            ours.push(cell.run(&cell.ours(stage), length));
        }
        let row = row(&format!("{setup}, {}", failure(how)), &stock, &ours);
        eprintln!("dead: {}", row.join(", "));
        table.row(row);
    }
    table
}

fn row(name: &str, stock: &[Run], ours: &[Run]) -> [String; 7] {
    let p99 = |runs: &[Run]| runs.iter().map(|run| run.p99).collect::<Vec<_>>();
    let failures = |runs: &[Run]| runs.iter().map(|run| run.failures).collect::<Vec<_>>();
    let ratio = table::median_of(&p99(ours)) / table::median_of(&p99(stock));
    [
        name.to_owned(),
        table::spread(&p99(stock), 1),
        table::spread(&p99(ours), 1),
        format!("{ratio:.2}"),
        table::spread(&failures(stock), 1),
        table::spread(&failures(ours), 1),
        if is_no_worse(&median(ours), &median(stock)) { "yes" } else { "**no**" }.to_owned(),
    ]
}

fn median(runs: &[Run]) -> Run {
    let of = |value: fn(&Run) -> f64| table::median_of(&runs.iter().map(value).collect::<Vec<_>>());
    Run { p99: of(|run| run.p99), failures: of(|run| run.failures) }
}

/// Where stock fails more requests, those that are left to it are no measure of ours.
fn is_no_worse(ours: &Run, stock: &Run) -> bool {
    let is_as_good = ours.failures <= stock.failures + NOISE_OF_FAILURES.min(stock.failures);
    let is_as_quick = ours.p99 <= (stock.p99 * NOISE.0).max(stock.p99 + NOISE.1);
    is_as_good && (is_as_quick || ours.failures < stock.failures)
}

/// A dead service and a healthy one.
struct Cell {
    setup: Setup,
    failure: Failure,
    dead: Vec<FaultyBackend>,
    healthy: Backend,
    /// The dead service's name and the healthy one's.
    names: [String; 2],
}

impl Cell {
    fn start(stage: &Stage, number: usize, setup: Setup, failure: Failure) -> Cell {
        let instances = if setup == Setup::One { 1 } else { 2 };
        let dead: Vec<FaultyBackend> =
            (0..instances).map(|_| FaultyBackend::start("dead")).collect();
        let healthy = Backend::start("healthy");
        let names = [format!("dead-{number}"), format!("healthy-{number}")];
        for (n, backend) in dead.iter().enumerate() {
            let id = format!("{}-{n}", names[0]);
            stage.consul().register(&Instance::new(&names[0], &id, backend.address()));
        }
        stage.consul().register(&Instance::new(&names[1], &names[1], healthy.address()));
        Cell { setup, failure, dead, healthy, names }
    }

    fn method(&self) -> &'static str {
        if self.setup == Setup::LeastConn { "least_conn;" } else { "" }
    }

    fn stock(&self) -> Config {
        let keepalive = if self.setup == Setup::Keepalive { "keepalive 8;" } else { "" };
        let server = |address| format!("server {address} max_fails=1 fail_timeout=1s;");
        let dead: String = self.dead.iter().map(|b| server(b.address())).collect();
        let healthy = server(self.healthy.address());
        let method = self.method();
        serving(
            &format!(
                "upstream dead {{ {method} {dead} {keepalive} }}
                 upstream healthy {{ {method} {healthy} {keepalive} }}"
            ),
            "healthy",
        )
        .without_module()
    }

    fn ours(&self, stage: &Stage) -> Config {
        let keepalive = if self.setup == Setup::Keepalive { "consul_keepalive 8;" } else { "" };
        let method = self.method();
        let upstream = |name: &str, service: &str| {
            let dynamic = format!("consul_dynamic {service} max_fails=1 fail_timeout=1s;");
            format!("upstream {name} {{ {method} {dynamic} {keepalive} }}\n")
        };
        let server = format!("consul_server {};\n", stage.consul_url());
        if self.setup == Setup::Named {
            return serving(&(server + &upstream("dead", "$arg_s")), "dead");
        }
        let [dead, healthy] = &self.names;
        serving(&(server + &upstream("dead", dead) + &upstream("healthy", healthy)), "healthy")
    }

    /// Has the service die under its clients; what those of the other one had since the first tries
    /// have failed.
    fn run(&mut self, config: &Config, length: Duration) -> Run {
        self.dead.iter_mut().for_each(FaultyBackend::recover);
        let nginx: Nginx = config.clone().start();
        let [dead, healthy] = [("dead", 0), ("healthy", 1)]
            .map(|(path, service)| format!("/{path}?s={}", self.names[service]));
        wait::until("both services are served", PATIENCE, || {
            nginx.outcome(&dead) == "dead" && nginx.outcome(&healthy) == "healthy"
        });
        self.dead.iter_mut().for_each(|backend| backend.fail(self.failure));
        let clients = Load::start_every(nginx.address(), &dead, CLIENTS, PERIOD);
        let beside = Load::start_paced(nginx.address(), &healthy, BESIDE, false, PACE);
        let first = wait::until_some("a client is told of a failure", PATIENCE, || {
            // A body that is cut short is an error of its own.
            (clients.failures() > 0).then(Instant::now)
        });
        wait::until("the first tries have failed", PATIENCE, || first.elapsed() > SETTLING);
        beside.open_timed_window();
        let opened = Instant::now();
        wait::until("the time is over", PATIENCE + length, || opened.elapsed() > length);
        let (seen, mut times) = (beside.window(), beside.times());
        self.dead.iter_mut().for_each(FaultyBackend::recover);
        clients.stop();
        beside.finish();
        clients.finish();
        times.sort_unstable();
        let p99 = times.get(times.len() * 99 / 100).map_or(f64::NAN, Duration::as_secs_f64);
        let failed = seen.total() - seen.of("healthy");
        Run { p99: p99 * 1000.0, failures: 100.0 * failed as f64 / seen.total().max(1) as f64 }
    }
}

/// nginx with a path for each service; `other` is the upstream of the healthy one.
fn serving(upstreams: &str, other: &str) -> Config {
    let server = format!(
        "server {{ listen 127.0.0.1:%%PORT%%;
             proxy_http_version 1.1; proxy_set_header Connection \"\";
             location /dead {{ proxy_pass http://dead;
                 proxy_connect_timeout 900ms; proxy_read_timeout 900ms; }}
             location /healthy {{ proxy_pass http://{other}; }} }}"
    );
    let config =
        Config::http(upstreams).more(&server).workers(1).connections(256).log_level("crit");
    config.allow("worker_connections are not enough")
}
