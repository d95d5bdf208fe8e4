//! Many services: how late changes are seen, and what following them costs, with the default
//! connections and with one for each service.

mod changes;
mod scene;
mod stall;

use std::thread;
use std::time::{Duration, Instant};

use crate::table::Table;
use changes::{Changes, Kind};
use scene::{Agents, Scene};

/// What the command takes after `services`.
pub(crate) const USAGE: &str = "\
scripts/bench services [option]…
  --n N,N        numbers of services, of 5 instances each (default 50,500,2000)
  --seconds S    length of each measurement (default 30)
  --only few|default|raised
                 only with 16 connections, with 64, or with one for each service
  --agent local|remote
                 only with an agent on 127.0.0.1, or only with one on ::1";

/// `consul_connections`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Few,
    Default,
    Raised,
}

/// Changes a second while delays are measured, and while stalls are.
const FEW: u32 = 10;
const MANY: u32 = 200;
/// Until all is as it stays.
const SETTLING: Duration = Duration::from_secs(6);

struct Options {
    numbers: Vec<usize>,
    length: Duration,
    limits: Vec<Limit>,
    agents: Vec<Agents>,
}

fn parse(arguments: &[String]) -> Result<Options, String> {
    let mut options = Options {
        numbers: vec![50, 500, 2000],
        length: Duration::from_secs(30),
        limits: vec![Limit::Few, Limit::Default, Limit::Raised],
        agents: vec![Agents::Local, Agents::Remote],
    };
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return Err(format!("{}: without a value", pair[0])) };
        let number = |text: &str| text.parse().map_err(|_| format!("{name}: {text:?}"));
        match name.as_str() {
            "--n" => options.numbers = value.split(',').map(number).collect::<Result<_, _>>()?,
            "--seconds" => options.length = Duration::from_secs(number(value)? as u64),
            "--only" if value == "few" => options.limits = vec![Limit::Few],
            "--only" if value == "default" => options.limits = vec![Limit::Default],
            "--only" if value == "raised" => options.limits = vec![Limit::Raised],
            "--agent" if value == "local" => options.agents = vec![Agents::Local],
            "--agent" if value == "remote" => options.agents = vec![Agents::Remote],
            _ => return Err(format!("{name} {value}: unknown")),
        }
    }
    Ok(options)
}

/// Measures, and gives the tables or what is wrong with the options.
pub(crate) fn run(arguments: &[String]) -> Result<Vec<Table>, String> {
    let options = parse(arguments)?;
    let [mut delays, mut costs, mut stalls] = tables();
    let of_agent = |agent| options.limits.iter().map(move |limit| (agent, *limit));
    for &services in &options.numbers {
        for (agent, limit) in options.agents.iter().copied().flat_map(of_agent) {
            let connections = match limit {
                Limit::Few => 16,
                Limit::Default => 64,
                Limit::Raised => services + 100,
            };
            let place = if agent == Agents::Local { "" } else { ", ::1" };
            let name = format!("{services}, {connections}{place}");
            eprintln!("services: {name}");
            let scene = Scene::start(services, connections, agent);
            thread::sleep(SETTLING);
            let idle = costs_of(&scene, options.length / 2, || ());
            let mut changes = Changes::new(&scene);
            let busy = costs_of(&scene, options.length, || changes.run(FEW, options.length));
            let seen = changes.delays();
            let (health, address) = (seen.spread(Kind::Health), seen.spread(Kind::Address));
            delays.row([
                name.clone(),
                health,
                address,
                scene.modes(),
                format!("{:.2}", scene.first_sync.as_secs_f64()),
            ]);
            costs.row(row_of_costs(&name, &scene, &busy, &idle));
            let (quiet, stirred, made) =
                stall::measure(&scene, &mut changes, MANY, options.length / 2);
            stalls.row([name, quiet, stirred, format!("{made:.0}")]);
        }
    }
    Ok(vec![delays, costs, stalls])
}

/// The tables, empty.
fn tables() -> [Table; 3] {
    let columns = |head: &[&str]| head.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let delays = Table::new(
        format!(
            "Many services of 5 instances, {FEW} changes a second (80 % of health, 20 % of a port \
             or address): change to first request that knows, median/p95/most"
        ),
        columns(&["services, connections", "health, ms", "address, ms", "mode", "first sync, s"]),
    );
    let costs = Table::new(
        format!("What that costs: with {FEW} changes a second, and with none"),
        columns(&[
            "services, connections",
            "connections used",
            "requests/s",
            "KiB/s",
            "agent CPU, %",
            "worker 0's threads, % CPU",
            "worker 0, MiB",
            "another worker, MiB",
            "zone per service, KiB",
        ]),
    );
    let stalls = Table::new(
        format!("Answer of worker 0's event loop, ms, p99.9/most: with {MANY} changes a second"),
        columns(&["services, connections", "without changes", "with changes", "changes/s made"]),
    );
    [delays, costs, stalls]
}

/// What was used in some time.
struct Costs {
    seconds: f64,
    requests: f64,
    bytes: f64,
    agent: f64,
    watch: f64,
    connections: usize,
}

fn costs_of(scene: &Scene, length: Duration, during: impl FnOnce()) -> Costs {
    let start = Instant::now();
    let before = scene.used();
    during();
    thread::sleep((start + length).saturating_duration_since(Instant::now()));
    let after = scene.used();
    let seconds = start.elapsed().as_secs_f64();
    let [requests, bytes, agent, watch] = std::array::from_fn(|i| after[i] - before[i]);
    Costs { seconds, requests, bytes, agent, watch, connections: scene.proxy.open() }
}

fn row_of_costs(name: &str, scene: &Scene, busy: &Costs, idle: &Costs) -> Vec<String> {
    let both = |of: &dyn Fn(&Costs) -> f64, digits: usize| {
        format!("{:.digits$}, {:.digits$}", of(busy), of(idle))
    };
    let [zero, other] = scene.memory();
    vec![
        name.to_owned(),
        both(&|costs| costs.connections as f64, 0),
        both(&|costs| costs.requests / costs.seconds, 0),
        both(&|costs| costs.bytes / 1024.0 / costs.seconds, 0),
        both(&|costs| costs.agent / costs.seconds, 1),
        both(&|costs| costs.watch / costs.seconds, 1),
        format!("{zero:.1}"),
        format!("{other:.1}"),
        format!("{:.2}", scene.zone_per_service()),
    ]
}
