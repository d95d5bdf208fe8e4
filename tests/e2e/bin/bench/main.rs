//! What a request costs with static upstreams, with the Lua recipe and with ours, what a change
//! costs, and how fast a new instance is served. Everything is measured in one run, interleaved, on stock nginx.

mod callgrind;
mod cpu;
mod dead;
mod distinct;
mod instructions;
mod memory;
mod options;
mod propagation;
mod quiet;
mod services;
mod stage;
mod status;
mod table;
mod update;
mod variants;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use nginx_consul_e2e::{nginx, wait};
use options::{Options, Part};
use stage::Stage;
use table::Table;

fn main() -> ExitCode {
    if let Err(error) = ctrlc::set_handler(wait::interrupt) {
        eprintln!("bench: cannot catch signals: {error}");
        return ExitCode::FAILURE;
    }
    // Unwinding stops whatever was started, by its pid.
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("bench: a promise was missed");
            ExitCode::FAILURE
        }
        Err(_) if wait::is_interrupted() => {
            eprintln!("bench: interrupted; all of it was stopped");
            ExitCode::from(130)
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// Whether what is promised was kept, where anything is.
fn run() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (first, rest) = match arguments.split_first() {
        Some((first, rest)) => (first.as_str(), rest),
        None => ("", &[][..]),
    };
    match first {
        _ if arguments.iter().any(|argument| argument == "--help") => {
            println!("{}\n\n{}\n\n{}", options::USAGE, services::USAGE, distinct::USAGE);
        }
        "services" => match services::run(rest) {
            Ok(tables) => tables.iter().for_each(Table::print),
            Err(problem) => refuse(&problem, services::USAGE),
        },
        "distinct" => match distinct::run(rest) {
            Ok(tables) => tables.iter().for_each(Table::print),
            Err(problem) => refuse(&problem, distinct::USAGE),
        },
        _ => match Options::parse(arguments.into_iter()) {
            Ok(options) => return measure(&options),
            Err(problem) => refuse(&problem, options::USAGE),
        },
    }
    true
}

/// Each table is printed when it is whole. Says whether what is promised was kept.
fn measure(options: &Options) -> bool {
    let mut missed = false;
    let stage = Stage::start(options);
    println!("nginx {}, {} setup", stage::nginx_version(), options.setup.name());
    println!("module {}\n", nginx::module().display());
    if options.has(Part::Instructions) {
        instructions::measure(&stage, options).iter().for_each(Table::print);
    }
    if options.has(Part::Memory) {
        memory::measure(&stage, options).print();
    }
    if options.has(Part::Update) {
        update::measure(&stage, options).print();
    }
    if options.has(Part::Propagation) {
        for table in [propagation::measure(&stage, options), quiet::measure(&stage, options)] {
            table.print();
            missed |= table.missed();
        }
    }
    if options.has(Part::Status) {
        status::measure(&stage, options).iter().for_each(Table::print);
    }
    if options.has(Part::Cpu) {
        cpu::measure(&stage, options).iter().for_each(Table::print);
    }
    if options.has(Part::Dead) {
        dead::measure(&stage, options).print();
    }
    !missed
}

fn refuse(problem: &str, usage: &str) -> ! {
    eprintln!("bench: {problem}\n\n{usage}");
    std::process::exit(2);
}
