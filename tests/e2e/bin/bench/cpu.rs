//! CPU time of the worker per request, under full load.

use std::process::Command;

use nginx_consul_e2e::nginx::Config;
use nginx_consul_e2e::process;

use crate::options::Options;
use crate::stage::{self, Stage};
use crate::table::{self, Table};
use crate::variants::Variant;

/// Clock ticks of `/proc/<pid>/stat` in a second; fixed on Linux.
pub(crate) const TICKS: f64 = 100.0;

/// Measures all variants in each round, every round beginning with another one, so that what
/// disturbs the machine disturbs them all. Ratios are taken within a round.
pub(crate) fn measure(stage: &Stage, options: &Options) -> [Table; 2] {
    let head = table::columns(&options.lengths());
    let caption = "CPU per request of the nginx worker, as a ratio to static round robin in the same round \
                   (static itself: µs); least–**median**–most";
    let mut costs = Table::new(caption, head.clone());
    let caption = "Requests per second, as a ratio to static round robin in the same round (static itself: k)";
    let mut rates = Table::new(caption, head);
    let columns: Vec<Vec<Vec<Sample>>> =
        options.lengths().into_iter().map(|length| rounds(stage, options, length)).collect();
    for (row, variant) in options.on_cpu().iter().enumerate() {
        let cell = |column: &Vec<Vec<Sample>>, of: fn(&Sample) -> f64, unit: f64| {
            let of_static = |round: &Vec<Sample>| if row == 0 { unit } else { of(&round[0]) };
            let values: Vec<f64> =
                column.iter().map(|round| of(&round[row]) / of_static(round)).collect();
            table::spread(&values, if row == 0 { 1 } else { 2 })
        };
        let title = || std::iter::once(variant.title());
        costs.row(title().chain(columns.iter().map(|c| cell(c, |s| s.cost, 1.0))));
        rates.row(title().chain(columns.iter().map(|c| cell(c, |s| s.rate, 1000.0))));
    }
    [costs, rates]
}

/// One run's result.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Microseconds of CPU per request.
    cost: f64,
    /// Requests per second.
    rate: f64,
}

/// For each round the samples of all variants, in their order.
fn rounds(stage: &Stage, options: &Options, length: usize) -> Vec<Vec<Sample>> {
    let variants = options.on_cpu();
    (0..options.rounds.get() as usize)
        .map(|round| {
            let count = variants.len();
            let mut samples = vec![Sample::default(); count];
            for step in 0..count {
                let at = (round + step) % count;
                let variant = variants[at];
                samples[at] = run(stage, options, variant, length);
                eprintln!(
                    "cpu: N = {length}, round {}, {}: {:.1} µs, {:.0}/s",
                    round + 1,
                    variant.name(),
                    samples[at].cost,
                    samples[at].rate
                );
            }
            samples
        })
        .collect()
}

fn run(stage: &Stage, options: &Options, variant: Variant, length: usize) -> Sample {
    let text = variant.configuration(stage, options.setup, length, 5);
    let nginx = Config::whole(&(stage::affinity("01") + &text)).start();
    let url = format!("http://{}/?key=1", nginx.address());
    // Connections to the backends are opened, and what is compiled at run time is.
    wrk(&url, 1);
    let worker = nginx.workers()[0];
    let before = process::cpu_ticks(worker);
    let (requests, rate) = wrk(&url, options.seconds.get());
    let ticks = process::cpu_ticks(worker) - before;
    Sample { cost: ticks as f64 / TICKS * 1e6 / requests, rate }
}

/// Loads `url`; returns how many requests were answered, and how many in a second.
pub(crate) fn wrk(url: &str, seconds: u32) -> (f64, f64) {
    let mut command = Command::new("taskset");
    command.args(["-c", if stage::has_two_cpus() { "1" } else { "0" }, "wrk"]);
    command.args(["-t1", "-c32", &format!("-d{seconds}s"), url]);
    let output = command.output().expect("taskset and wrk: scripts/deps bench");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(
        !text.contains("Non-2xx") && !text.contains("Socket errors"),
        "requests failed:\n{text}"
    );
    let figure = |mark: &str, word: usize| -> f64 {
        let line = text.lines().find(|line| line.contains(mark)).unwrap_or_default();
        let found = line.split_whitespace().nth(word).and_then(|w| w.parse().ok());
        found.unwrap_or_else(|| panic!("no {mark:?} in\n{text}"))
    };
    (figure("requests in", 0), figure("Requests/sec:", 1))
}
