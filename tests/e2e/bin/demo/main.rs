//! The main job, told as a story with measured figures: stock nginx follows a real Consul.
//!
//! `demo [--cluster] [--keep]`. Exits 0 only if each step was seen.

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use nginx_consul_e2e::wait;

mod consul;
mod stage;
mod steps;
mod story;

/// The main job, told as a story with measured figures: stock nginx follows a real Consul
#[derive(Parser)]
#[command(bin_name = "scripts/demo")]
struct Options {
    /// A cluster instead of one agent: a server, two agents that joined it, and a client agent with
    /// leave_on_terminate and retry-join
    #[arg(long)]
    cluster: bool,
    /// Leave all of it running at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let Options { cluster, keep } = Options::parse();
    if let Err(error) = ctrlc::set_handler(wait::interrupt) {
        eprintln!("cannot catch signals: {error}");
        return ExitCode::FAILURE;
    }
    set_hook(Box::new(|what| eprintln!("\ndemo failed: {what}")));
    let start = Instant::now();
    // Unwinding stops whatever was started, by its pid.
    let result = catch_unwind(AssertUnwindSafe(|| steps::run(cluster, keep)));
    match result {
        Ok(()) => {
            println!("\nEvery step was seen, in {:.0} s.", start.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(_) if wait::is_interrupted() => {
            println!("\nInterrupted; all of it was stopped.");
            ExitCode::from(130)
        }
        Err(_) => ExitCode::FAILURE,
    }
}
