//! Many instances, each at an address of its own: what a request costs, and how many of them need a
//! new connection to their instance.

mod contenders;
mod instructions;
mod peers;

use crate::cpu;
use crate::table::{self, Table};
use contenders::{Contender, Running};
use nginx_consul_e2e::process;
use peers::Peers;
use std::path::PathBuf;

/// What the command takes after `distinct`.
pub(crate) const USAGE: &str = "\
scripts/bench distinct [option]…
  --n N,N        numbers of instances (default 100,1000,5000)
  --rounds R     rounds of all contenders (default 5)
  --seconds S    length of one run (default 3)
  --only cpu|instructions
  --keep FOLDER  callgrind's files go there";

struct Options {
    numbers: Vec<usize>,
    rounds: usize,
    seconds: u32,
    cpu: bool,
    instructions: bool,
    keep: Option<PathBuf>,
}

fn parse(arguments: &[String]) -> Result<Options, String> {
    let mut options = Options {
        numbers: vec![100, 1000, 5000],
        rounds: 5,
        seconds: 3,
        cpu: true,
        instructions: true,
        keep: None,
    };
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return Err(format!("{}: without a value", pair[0])) };
        let number = |text: &str| match text.parse() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("{name}: {text:?}")),
        };
        match name.as_str() {
            "--n" => options.numbers = value.split(',').map(number).collect::<Result<_, _>>()?,
            "--rounds" => options.rounds = number(value)?,
            "--seconds" => options.seconds = number(value)? as u32,
            "--only" if value == "cpu" => options.instructions = false,
            "--only" if value == "instructions" => options.cpu = false,
            "--keep" => options.keep = Some(value.into()),
            _ => return Err(format!("{name} {value}: unknown")),
        }
    }
    Ok(options)
}

/// Measures as the arguments say; an error is for people.
pub(crate) fn run(arguments: &[String]) -> Result<Vec<Table>, String> {
    let options = parse(arguments)?;
    let peers = Peers::start(&options.numbers);
    let mut tables = Vec::new();
    if options.instructions {
        tables.push(instructions::measure(&peers, options.keep.as_deref()));
    }
    if options.cpu {
        tables.extend(measure(&peers, &options));
    }
    Ok(tables)
}

/// One run's result.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Microseconds of CPU per request.
    cost: f64,
    /// New connections to instances per request.
    connections: f64,
}

fn measure(peers: &Peers, options: &Options) -> [Table; 2] {
    let mut costs = Table::new(
        "CPU per request of the proxy's one process, as a ratio to static `keepalive 64` in the same \
         round (static itself: µs); least–**median**–most",
        table::columns(&options.numbers),
    );
    let caption = "New connections to instances per request, median";
    let mut connections = Table::new(caption, table::columns(&options.numbers));
    let columns: Vec<Vec<Vec<Sample>>> =
        options.numbers.iter().map(|&number| rounds(peers, options, number)).collect();
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
    (0..options.rounds).map(round).collect()
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
    let (requests, _) = cpu::wrk(&url, options.seconds);
    let ticks = process::cpu_ticks(running.pid()) - ticks;
    // The look at the counter is a connection too.
    let opened = peers.connections() - opened - 1;
    Sample {
        cost: ticks as f64 / cpu::TICKS * 1e6 / requests,
        connections: opened as f64 / requests,
    }
}
