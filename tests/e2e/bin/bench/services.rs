//! Many services: how late changes are seen, and what following them costs, with the default
//! connections and with one for each service.

mod changes;
mod scene;
mod stall;

use std::num::NonZeroU32;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use crate::table::Table;
use changes::{Changes, Kind};
use scene::{Agents, Scene};

/// `consul_connections`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Limit {
    /// 16
    Few,
    /// 64
    Default,
    /// One for each service
    Raised,
}

/// Changes a second while delays are measured, and while stalls are.
const FEW: u32 = 10;
const MANY: u32 = 200;
/// Until all is as it stays.
const SETTLING: Duration = Duration::from_secs(6);

/// The options, with their defaults.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Numbers of services, of 5 instances each
    #[arg(long = "n", value_name = "N", value_delimiter = ',', default_value = "50,500,2000")]
    numbers: Vec<NonZeroU32>,
    /// Length of each measurement
    #[arg(long, default_value = "30")]
    seconds: NonZeroU32,
    /// consul_connections
    #[arg(long = "only", value_delimiter = ',', default_value = "few,default,raised")]
    limits: Vec<Limit>,
    /// Where the agent is
    #[arg(long = "agent", value_delimiter = ',', default_value = "local,remote")]
    agents: Vec<Agents>,
}

/// Measures, and gives the tables.
pub(crate) fn run(options: &Options) -> Vec<Table> {
    let length = Duration::from_secs(options.seconds.get().into());
    let [mut delays, mut costs, mut stalls] = tables();
    let of_agent = |agent| options.limits.iter().map(move |limit| (agent, *limit));
    for services in options.numbers.iter().map(|number| number.get() as usize) {
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
            let idle = costs_of(&scene, length / 2, || ());
            let mut changes = Changes::new(&scene);
            let busy = costs_of(&scene, length, || changes.run(FEW, length));
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
            let (quiet, stirred, made) = stall::measure(&scene, &mut changes, MANY, length / 2);
            stalls.row([name, quiet, stirred, format!("{made:.0}")]);
        }
    }
    vec![delays, costs, stalls]
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
