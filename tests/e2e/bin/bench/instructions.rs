//! User-space instructions per request, counted by callgrind: the one figure that a busy machine
//! leaves alone.

use crate::callgrind::Counted;
use crate::options::Options;
use crate::stage::Stage;
use crate::table::{self, Table};
use crate::variants::Variant;

/// No poll of the recipe shall fall into a run.
const NEVER: u32 = 36_000;
/// Clients, each with its own key where one is needed.
const CLIENTS: usize = 8;

/// Instructions per request.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Of the event loop.
    all: f64,
    /// From nginx into our module, until it returns.
    picking: f64,
}

/// Measures each variant at each length.
pub(crate) fn measure(stage: &Stage, options: &Options) -> [Table; 2] {
    let caption = "User-space instructions per request (callgrind), in thousands; in brackets the \
                   difference to the same method over `server` lines";
    let mut all = Table::new(caption, table::columns(&options.lengths()));
    let caption = "Of these in the module, for picking: its `init`, `get`, `free` and what the end \
                   of the request runs, including what they call, in instructions";
    let mut picking = Table::new(caption, table::columns(&options.lengths()));
    let mut measured: Vec<(Variant, Vec<Cost>)> = Vec::new();
    for variant in options.variants() {
        let costs: Vec<Cost> = options
            .lengths()
            .into_iter()
            .map(|length| per_request(stage, options, variant, length))
            .collect();
        let twin = variant.static_twin();
        let twin = measured.iter().find(|(other, _)| Some(*other) == twin);
        let cells = costs.iter().enumerate().map(|(i, cost)| {
            let versus = twin.map(|(_, twin)| cost.all / twin[i].all * 100.0 - 100.0);
            let versus = versus.map_or_else(String::new, |percent| format!(" ({percent:+.1} %)"));
            format!("{:.1}{versus}", cost.all / 1000.0)
        });
        let title = || std::iter::once(variant.title());
        all.row(title().chain(cells));
        if variant.is_dynamic() {
            picking.row(title().chain(costs.iter().map(|cost| format!("{:.0}", cost.picking))));
        }
        measured.push((variant, costs));
    }
    [all, picking]
}

fn per_request(stage: &Stage, options: &Options, variant: Variant, length: usize) -> Cost {
    let requests = match (variant.is_slow(), options.quick) {
        (true, _) if length >= 1000 => 80,
        (true, _) => 400,
        (false, true) => 800,
        (false, false) => 2400,
    };
    let text = variant.configuration(stage, options.setup, length, NEVER);
    let nginx = Counted::start(&text, options.worker.into());
    let mut clients = nginx.connect(CLIENTS);
    let mut ask = |n: usize| {
        let answer = clients[n % CLIENTS].get(&format!("/?key={}", n % CLIENTS));
        let answer = answer.unwrap_or_else(|error| panic!("{error}\n{}", nginx.told()));
        assert_eq!(answer.status, 200, "{}", nginx.told());
    };
    // Opens the connections to the backends, and has Lua compile what it compiles.
    (0..20 * CLIENTS).for_each(&mut ask);
    nginx.switch(true);
    (0..requests).for_each(&mut ask);
    nginx.switch(false);
    drop(clients);
    let name = variant.name();
    let keep = options.keep.as_ref().map(|folder| folder.join(format!("{name}-{length}")));
    let counts = nginx.end(keep.as_deref());
    // What is called once for each request; timers are not.
    let picking: u64 = counts
        .into_module
        .values()
        .filter(|(calls, _)| *calls * 2 > requests as u64)
        .map(|(_, cost)| cost)
        .sum();
    let per = |count: u64| count as f64 / requests as f64;
    let cost = Cost { all: per(counts.total), picking: per(picking) };
    let Cost { all, picking } = cost;
    eprintln!("instructions: N = {length}, {name}: {all:.0}, of which {picking:.0} in the module");
    // Files that run with each request; timers don't.
    let files: Vec<&str> = counts
        .files
        .iter()
        .filter(|(_, cost)| **cost >= requests as u64)
        .map(|(file, _)| file.as_str())
        .collect();
    // A release build has no debug information unless CARGO_PROFILE_RELEASE_STRIP is "none".
    if !files.is_empty() {
        eprintln!("  {} files of ours: {}", files.len(), files.join(", "));
    }
    if variant.is_dynamic() {
        assert!(picking > 0.0, "nothing was picked by the module: {:?}", counts.into_module);
    }
    cost
}
