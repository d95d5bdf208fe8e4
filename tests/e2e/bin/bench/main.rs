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
mod reload;
mod services;
mod stage;
mod status;
mod table;
mod update;
mod variants;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;
use nginx_consul_e2e::{nginx, wait};
use options::{Command, Options, Other, Part};
use stage::Stage;
use table::Table;

fn main() -> ExitCode {
    let command = Command::parse();
    if let Err(error) = ctrlc::set_handler(wait::interrupt) {
        eprintln!("bench: cannot catch signals: {error}");
        return ExitCode::FAILURE;
    }
    // Unwinding stops whatever was started, by its pid.
    match catch_unwind(AssertUnwindSafe(|| run(&command))) {
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
fn run(command: &Command) -> bool {
    let tables = match &command.other {
        None => return measure(&command.options),
        Some(Other::Services(options)) => services::run(options),
        Some(Other::Distinct(options)) => distinct::run(options),
    };
    tables.iter().for_each(Table::print);
    true
}

/// Each table is printed when it is whole. Says whether what is promised was kept.
fn measure(options: &Options) -> bool {
    let mut missed = false;
    let stage = Stage::start(options);
    println!("nginx {}, {:?} setup", stage::nginx_version(), options.setup);
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
    if options.has(Part::Reload) {
        let table = reload::measure(&stage, options);
        table.print();
        missed |= table.missed();
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
