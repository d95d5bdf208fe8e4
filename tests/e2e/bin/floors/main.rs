//! Checks that imports run down: `floors src/core/lib.rs …`.
//!
//! The head of a folder declares its modules from the ground up. A module imports from those that
//! are declared above it, and never from its own head. So no circle can close. Tests (items whose
//! `cfg` asks for `test`) are free.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

mod house;
mod imports;
mod rules;

use house::House;

/// Checks that modules import only from modules that are declared above them
#[derive(Parser)]
#[command(bin_name = "floors")]
struct Options {
    /// Root files of crates
    #[arg(required = true)]
    roots: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut is_sound = true;
    for root in options.roots {
        let house = House::read(&root);
        for fault in rules::faults(&house) {
            is_sound = false;
            println!("{fault}");
        }
    }
    if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
