//! What a request costs with static upstreams, with the Lua recipe and with ours, what a change
//! costs, and how fast a new instance is served. Everything is measured in one run, interleaved, on stock nginx.

mod callgrind;
mod cpu;
mod distinct;
mod instructions;
mod memory;
mod options;
mod propagation;
mod services;
mod stage;
mod status;
mod table;
mod update;
mod variants;

use nginx_consul_e2e::nginx;
use options::{Options, Part};
use stage::Stage;
use table::Table;

fn main() {
    if std::env::args().any(|argument| argument == "--help") {
        println!("{}\n\n{}\n\n{}", options::USAGE, services::USAGE, distinct::USAGE);
        return;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("services", rest)) = arguments.split_first().map(|(first, rest)| (&**first, rest))
    {
        match services::run(rest) {
            Ok(tables) => tables.iter().for_each(Table::print),
            Err(problem) => refuse(&problem, services::USAGE),
        }
        return;
    }
    if let Some(("distinct", rest)) = arguments.split_first().map(|(first, rest)| (&**first, rest))
    {
        match distinct::run(rest) {
            Ok(tables) => tables.iter().for_each(Table::print),
            Err(problem) => refuse(&problem, distinct::USAGE),
        }
        return;
    }
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => refuse(&problem, options::USAGE),
    };
    let stage = Stage::start(&options);
    println!("nginx {}, {} setup", stage::nginx_version(), options.setup.name());
    println!("module {}\n", nginx::module().display());
    let mut tables = Vec::new();
    if options.has(Part::Instructions) {
        tables.extend(instructions::measure(&stage, &options));
    }
    if options.has(Part::Memory) {
        tables.push(memory::measure(&stage, &options));
    }
    if options.has(Part::Update) {
        tables.push(update::measure(&stage, &options));
    }
    if options.has(Part::Propagation) {
        tables.push(propagation::measure(&stage, &options));
    }
    if options.has(Part::Status) {
        tables.extend(status::measure(&stage, &options));
    }
    if options.has(Part::Cpu) {
        tables.extend(cpu::measure(&stage, &options));
    }
    tables.iter().for_each(Table::print);
}

fn refuse(problem: &str, usage: &str) -> ! {
    eprintln!("bench: {problem}\n\n{usage}");
    std::process::exit(2);
}
