//! Hours in minutes: two workers under steady load while services come and go without end, workers
//! are killed, Consul restarts, tokens change and nginx reloads. Ends with a table.
//!
//! `soak [minutes]`. Exits 0 only if nothing was lost but requests on killed workers, nothing has
//! grown and no event loop was held up.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nginx_consul_e2e::wait;

mod actors;
mod gauge;
mod report;
mod scene;

/// Churn, kills, reloads and Consul restarts under load, then a table
#[derive(Parser)]
#[command(bin_name = "scripts/soak")]
struct Options {
    /// How long the trouble lasts: 0.1 to 240
    #[arg(default_value = "1", value_parser = minutes)]
    minutes: Duration,
}

fn minutes(text: &str) -> Result<Duration, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number of minutes")?;
    let is_valid = (0.1..=240.0).contains(&minutes);
    is_valid.then(|| Duration::from_secs_f64(minutes * 60.0)).ok_or("not in 0.1 to 240".to_owned())
}

fn main() -> ExitCode {
    let Options { minutes: span } = Options::parse();
    if let Err(error) = ctrlc::set_handler(wait::interrupt) {
        eprintln!("cannot catch signals: {error}");
        return ExitCode::FAILURE;
    }
    // Unwinding stops whatever was started, by its pid.
    match catch_unwind(AssertUnwindSafe(|| actors::run(span))) {
        Ok(problems) if problems.is_empty() => {
            println!("\nAll is as it should be.");
            ExitCode::SUCCESS
        }
        Ok(problems) => {
            println!("\nNot as it should be:");
            problems.iter().for_each(|problem| println!("  {problem}"));
            ExitCode::FAILURE
        }
        Err(_) if wait::is_interrupted() => {
            println!("\nInterrupted; all of it was stopped.");
            ExitCode::from(130)
        }
        Err(_) => ExitCode::FAILURE,
    }
}
