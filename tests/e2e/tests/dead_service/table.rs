//! Every method, every way to fail, every setup: a healthy service beside a dead one.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::{
    Agent, Backend, Config, Failure, FaultyBackend, Instance, Load, Nginx, Tally, load, wait,
};

use crate::conf_errors::nginx_version;
use crate::keepalive::ALIVE;
use crate::support::{register_one, unique};

/// How many clients the dead service has, and how often each sends a request.
const CLIENTS: usize = 200;
const PERIOD: Duration = Duration::from_millis(600);
/// Clients of the healthy service.
const BESIDE: usize = 4;
const PACE: Duration = Duration::from_millis(20);
/// From the first client that was told of a failure until nothing of the time before is left: the
/// second after which a single instance is bounded, a try that began in that second, and some more
/// for a busy machine.
const SETTLING: Duration = Duration::from_millis(2500);
/// How long the healthy service is looked at.
const WINDOW: Duration = Duration::from_millis(2500);
/// Longest all of this may be put off by a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Answers of the healthy service that are looked at, at least.
const ENOUGH: usize = 50;
/// Cells at a time.
const PARALLEL: usize = 12;

/// A balancing method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Method {
    /// Its directive.
    line: &'static str,
    /// Whether it is nginx's own, which stands before `consul_dynamic`.
    is_nginxs: bool,
    /// Whether services that requests name can have it.
    takes_names: bool,
}

const fn ours(line: &'static str) -> Method {
    Method { line, is_nginxs: false, takes_names: true }
}

const fn nginxs(line: &'static str, takes_names: bool) -> Method {
    Method { line, is_nginxs: true, takes_names }
}

/// All that are accepted. Those of nginx that keep a table in the block serve no names.
const METHODS: [Method; 12] = [
    ours("consul_balance round_robin;"),
    ours("consul_balance random;"),
    ours("consul_balance least_conn;"),
    ours("consul_balance least_time;"),
    ours("consul_balance hash $request_id;"),
    ours("consul_balance hash $request_id consistent;"),
    nginxs("least_conn;", true),
    nginxs("ip_hash;", true),
    nginxs("hash $request_id;", false),
    nginxs("hash $request_id consistent;", false),
    nginxs("random;", false),
    nginxs("random two least_conn;", false),
];

fn methods() -> Vec<Method> {
    let mut methods = METHODS.to_vec();
    if nginx_version() >= (1, 29, 6) {
        methods.push(nginxs("least_conn; sticky cookie srv;", false));
    }
    methods
}

/// What surrounds the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setup {
    Plain,
    Keepalive,
    Named,
    OneInstance,
}

const SETUPS: [Setup; 4] = [Setup::Plain, Setup::Keepalive, Setup::Named, Setup::OneInstance];

#[derive(Clone, Copy, Debug)]
struct Cell {
    method: Method,
    failure: Failure,
    setup: Setup,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {:?} × {:?}", self.method.line, self.failure, self.setup)
    }
}

/// A dead service and a healthy one.
struct Services {
    dead: Vec<FaultyBackend>,
    healthy: Backend,
    names: [String; 2],
}

impl Services {
    fn start(consul: &Agent, instances: usize) -> Services {
        let dead: Vec<FaultyBackend> =
            (0..instances).map(|_| FaultyBackend::start("dead")).collect();
        let healthy = Backend::start("healthy");
        let names = [unique("dead"), unique("healthy")];
        for (n, backend) in dead.iter().enumerate() {
            let id = format!("{}-{n}", names[0]);
            consul.register(&Instance::new(&names[0], &id, backend.address()));
        }
        register_one(consul, &names[1], &healthy);
        Services { dead, healthy, names }
    }
}

/// The same with `server` lines alone.
fn stock(cell: Cell, services: &Services) -> Config {
    let lines = |addresses: &[std::net::SocketAddr]| -> String {
        addresses.iter().map(|a| format!("server {a} max_fails=1 fail_timeout=1s;")).collect()
    };
    let dead: Vec<_> = services.dead.iter().map(FaultyBackend::address).collect();
    let keepalive = if cell.setup == Setup::Keepalive { "keepalive 8;" } else { "" };
    Config::http(&format!(
        "upstream dead {{ {0} {1} {keepalive} }} upstream healthy {{ {0} {2} {keepalive} }}",
        cell.method.line,
        lines(&dead),
        lines(&[services.healthy.address()]),
    ))
    .without_module()
}

/// The services followed in Consul.
fn followed(cell: Cell, consul: &Agent, services: &Services) -> Config {
    let (before, after) =
        if cell.method.is_nginxs { (cell.method.line, "") } else { ("", cell.method.line) };
    let keepalive = if cell.setup == Setup::Keepalive { "consul_keepalive 8;" } else { "" };
    let upstream = |name: &str, service: &str| {
        let dynamic = format!("consul_dynamic {service} max_fails=1 fail_timeout=1s;");
        format!("upstream {name} {{ {before} {dynamic} {after} {keepalive} }}\n")
    };
    let upstreams = if cell.setup == Setup::Named {
        upstream("dead", "$arg_s").replace('}', "consul_allow_service dead-* healthy-*; }")
    } else {
        upstream("dead", &services.names[0]) + &upstream("healthy", &services.names[1])
    };
    Config::http(&format!("consul_server %%CONSUL%%;\n{upstreams}")).set("CONSUL", consul.url())
}

/// A worker with room for the clients and little more, and a server with a path for each service;
/// one block has both services if requests name them.
fn serving(cell: Cell, config: Config) -> Nginx {
    let other = if cell.setup == Setup::Named { "dead" } else { "healthy" };
    let config = config
        .more(&format!(
            "server {{ listen 127.0.0.1:%%PORT%%; {ALIVE}
                 location /dead {{ proxy_pass http://dead;
                     proxy_connect_timeout 900ms; proxy_read_timeout 900ms; }}
                 location /healthy {{ proxy_pass http://{other}; }} }}"
        ))
        .workers(1)
        .connections(256)
        .log_level("warn");
    // Until the first tries have failed, for stock nginx too.
    config.allow("worker_connections are not enough").start()
}

/// What the clients saw.
#[derive(Debug)]
struct Seen {
    healthy: Tally,
    dead: Tally,
    recovers: bool,
}

impl Seen {
    fn failures(&self) -> usize {
        self.healthy.total() - self.healthy.of("healthy")
    }

    /// What is wrong; empty if nothing is.
    fn problems(&self) -> String {
        let mut problems = Vec::new();
        let bad = load::failures(&self.healthy, &["healthy"]);
        if !bad.is_empty() {
            problems.push(format!("the healthy service failed ({bad})"));
        }
        if self.healthy.total() < ENOUGH {
            problems.push("the healthy service was hardly served".to_owned());
        }
        if !self.recovers {
            problems.push("the dead service is not served when it has recovered".to_owned());
        }
        problems.join(", ")
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "healthy service: {}; dead service: {}", self.healthy, self.dead)
    }
}

/// Has a service die under its clients, and looks at the one beside it.
fn watch(cell: Cell, nginx: &Nginx, services: &mut Services) -> Seen {
    let [dead, healthy] = ["dead", "healthy"]
        .map(|path| format!("/{path}?s={}", services.names[usize::from(path == "healthy")]));
    wait::until("both services are served", PATIENCE, || {
        nginx.outcome(&dead) == "dead" && nginx.outcome(&healthy) == "healthy"
    });
    services.dead.iter_mut().for_each(|backend| backend.fail(cell.failure));
    let clients = Load::start_every(nginx.address(), &dead, CLIENTS, PERIOD);
    let beside = Load::start_paced(nginx.address(), &healthy, BESIDE, false, PACE);
    let first = wait::until_some("a client is told of a failure", PATIENCE, || {
        clients.seen("502").or(clients.seen("504")).map(|seen| seen.first)
    });
    wait::until("the first tries have failed", PATIENCE, || first.elapsed() > SETTLING);
    clients.open_window();
    beside.open_window();
    let opened = Instant::now();
    wait::until("the window is over", PATIENCE + WINDOW, || {
        let is_enough = beside.window().total() >= ENOUGH || opened.elapsed() > PATIENCE;
        is_enough && opened.elapsed() > WINDOW
    });
    let (healthy, dead_seen) = (beside.window(), clients.window());
    services.dead.iter_mut().for_each(FaultyBackend::recover);
    let recovered = Instant::now();
    let mut recovers = false;
    while !recovers && recovered.elapsed() < PATIENCE {
        recovers = nginx.try_get(&dead).is_ok_and(|answer| answer.outcome() == "dead");
        wait::pause();
    }
    clients.stop();
    beside.finish();
    clients.finish();
    Seen { healthy, dead: dead_seen, recovers }
}

/// What is wrong with a cell.
fn run(cell: Cell, consul: &Agent) -> Result<(), String> {
    let mut services =
        Services::start(consul, if cell.setup == Setup::OneInstance { 1 } else { 2 });
    let seen = {
        let nginx = serving(cell, followed(cell, consul, &services));
        watch(cell, &nginx, &mut services)
    };
    let problems = seen.problems();
    if problems.is_empty() {
        return Ok(());
    }
    // nginx's own methods decide in each worker who is out, as with `server` lines; the bound on a
    // single instance is ours.
    if !cell.method.is_nginxs || cell.setup == Setup::OneInstance {
        return Err(format!("{problems}\n    {seen}"));
    }
    let theirs = {
        let nginx = serving(Cell { setup: Setup::Plain, ..cell }, stock(cell, &services));
        watch(cell, &nginx, &mut services)
    };
    if seen.recovers && seen.failures() <= theirs.failures() {
        return Ok(());
    }
    Err(format!("{problems}\n    {seen}\n    with server lines: {theirs}"))
}

/// A table that can be run in parts: `DEAD_CELLS=Silent` runs the cells with this in their name.
fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for method in methods() {
        for setup in SETUPS {
            for failure in Failure::BEFORE_THE_HEADER {
                if setup != Setup::Named || method.takes_names {
                    cells.push(Cell { method, failure, setup });
                }
            }
        }
    }
    let only = std::env::var("DEAD_CELLS").unwrap_or_default();
    cells.retain(|cell| cell.to_string().contains(&only));
    cells
}

#[test]
fn a_healthy_service_never_fails_beside_a_dead_one() {
    let consul = Agent::shared();
    let all = cells();
    let (queue, problems) =
        (Mutex::new(VecDeque::from(all.clone())), Mutex::new(Vec::<String>::new()));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while let Some(cell) = next() {
                    let result = catch_unwind(AssertUnwindSafe(|| run(cell, &consul)));
                    let problem = match result {
                        Ok(Ok(())) => continue,
                        Ok(Err(problem)) => problem,
                        Err(panic) => panic
                            .downcast_ref::<String>()
                            .map_or("panicked".to_owned(), |text| format!("panicked: {text}")),
                    };
                    let mut problems = problems.lock().unwrap_or_else(PoisonError::into_inner);
                    problems.push(format!("{cell}: {problem}"));
                }
            });
        }
    });
    let mut problems = problems.into_inner().unwrap_or_else(PoisonError::into_inner);
    problems.sort_unstable();
    assert!(
        problems.is_empty(),
        "{} of {} cells:\n{}",
        problems.len(),
        all.len(),
        problems.join("\n")
    );
}
