//! Many instances, each at an address of its own: what a request costs, and how many of them need a
//! new connection to their instance.

mod contenders;
mod instructions;
mod peers;

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cpu;
use crate::table::{self, Table};
use contenders::{Contender, Running};
use nginx_consul_e2e::process;
use peers::Peers;

/// The options, with their defaults.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Numbers of instances
    #[arg(long = "n", value_name = "N", value_delimiter = ',', default_value = "100,1000,5000")]
    numbers: Vec<NonZeroU32>,
    /// Rounds of all contenders
    #[arg(long, default_value = "5")]
    rounds: NonZeroU32,
    /// Length of one run
    #[arg(long, default_value = "3")]
    seconds: NonZeroU32,
    /// What is measured
    #[arg(long = "only", value_delimiter = ',', default_value = "instructions,cpu")]
    parts: Vec<Part>,
    /// callgrind's files go there
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Cpu,
    Instructions,
}

/// Measures, and gives the tables.
pub(crate) fn run(options: &Options) -> Vec<Table> {
    let numbers: Vec<usize> = options.numbers.iter().map(|n| n.get() as usize).collect();
    let peers = Peers::start(&numbers);
    let mut tables = Vec::new();
    if options.parts.contains(&Part::Instructions) {
        tables.push(instructions::measure(&peers, options.keep.as_deref()));
    }
    if options.parts.contains(&Part::Cpu) {
        tables.extend(measure(&peers, options, &numbers));
    }
    tables
}

/// One run's result.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Microseconds of CPU per request.
    cost: f64,
    /// New connections to instances per request.
    connections: f64,
}

fn measure(peers: &Peers, options: &Options, numbers: &[usize]) -> [Table; 2] {
    let mut costs = Table::new(
        "CPU per request of the proxy's one process, as a ratio to static `keepalive 64` in the same \
         round (static itself: µs); least–**median**–most",
        table::columns(numbers),
    );
    let caption = "New connections to instances per request, median";
    let mut connections = Table::new(caption, table::columns(numbers));
    let columns: Vec<Vec<Vec<Sample>>> =
        numbers.iter().map(|&number| rounds(peers, options, number)).collect();
    for (row, contender) in Contender::ALL.iter().enumerate() {
        let title = || std::iter::once(contender.title());
        costs.row(title().chain(columns.iter().map(|column| {
            let base = |round: &Vec<Sample>| if row == 0 { 1.0 } else { round[0].cost };
            let values: Vec<f64> = column.iter().map(|r| r[row].cost / base(r)).collect();
            table::spread(&values, if row == 0 { 1 } else { 2 })
        })));
        connections.row(title().chain(columns.iter().map(|column| {
            let mut values: Vec<f64> = column.iter().map(|r| r[row].connections).collect();
            values.sort_by(f64::total_cmp);
            format!("{:.4}", values[values.len() / 2])
        })));
    }
    [costs, connections]
}

/// For each round the samples of all contenders; every round begins with another one.
fn rounds(peers: &Peers, options: &Options, number: usize) -> Vec<Vec<Sample>> {
    let all = Contender::ALL;
    let round = |round: usize| {
        let mut samples = vec![Sample::default(); all.len()];
        for step in 0..all.len() {
            let at = (round + step) % all.len();
            samples[at] = sample(peers, options, all[at], number);
            let Sample { cost, connections } = samples[at];
            eprintln!(
                "distinct: N = {number}, round {}, {}: {cost:.1} µs, {connections:.4} connections",
                round + 1,
                all[at].title()
            );
        }
        samples
    };
    (0..options.rounds.get() as usize).map(round).collect()
}

/// Until there is a connection to each where they are kept, or each was asked so often that they
/// are not.
fn warm_up(url: &str, peers: &Peers, number: usize) {
    let (mut asked, mut last) = (0.0, peers.connections());
    loop {
        let (requests, _) = cpu::wrk(url, 1);
        let opened = peers.connections();
        let share = (opened - last) as f64 / requests;
        asked += requests;
        if share < 0.001 || asked > 4.0 * number as f64 {
            return;
        }
        last = opened;
    }
}

fn sample(peers: &Peers, options: &Options, contender: Contender, number: usize) -> Sample {
    let running = Running::start(contender, peers, number);
    let url = format!("http://{}/", running.address());
    warm_up(&url, peers, number);
    let (ticks, opened) = (process::cpu_ticks(running.pid()), peers.connections());
    let (requests, _) = cpu::wrk(&url, options.seconds.get());
    let ticks = process::cpu_ticks(running.pid()) - ticks;
    // The look at the counter is a connection too.
    let opened = peers.connections() - opened - 1;
    Sample {
        cost: ticks as f64 / cpu::TICKS * 1e6 / requests,
        connections: opened as f64 / requests,
    }
}
