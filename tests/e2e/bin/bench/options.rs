//! The command line.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::variants::{Setup, Variant};
use crate::{distinct, services};

/// Cost of a request and speed of a change, against static upstreams and Lua.
#[derive(Debug, Parser)]
#[command(bin_name = "scripts/bench", args_conflicts_with_subcommands = true)]
pub(crate) struct Command {
    #[command(subcommand)]
    pub(crate) other: Option<Other>,
    #[command(flatten)]
    pub(crate) options: Options,
}

/// Measurements with a scene of their own.
#[derive(Debug, Subcommand)]
pub(crate) enum Other {
    /// Many services: how late changes are seen, and what following them costs
    Services(services::Options),
    /// Many instances, each at an address of its own, beside HAProxy and Envoy
    Distinct(distinct::Options),
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// User-space instructions per request
    Instructions,
    /// Shared memory
    Memory,
    /// What a change takes from the event loop
    Update,
    /// Registration to first request, and what a watch costs while nothing changes; judged: the exit
    /// status tells whether its promises were kept
    Propagation,
    /// A change right after a reload; judged
    Reload,
    /// What an answer with the status takes from other requests
    Status,
    /// CPU time per request
    Cpu,
    /// A healthy service beside a dead one; takes ten minutes
    Dead,
}

/// The options, with their defaults.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Two short rounds at N = 3 and 1000: a look, no figures to quote
    #[arg(long)]
    pub(crate) quick: bool,
    /// Rounds of the measurements of CPU time and of a dead service
    #[arg(long, default_value = "3", default_value_if("quick", "true", "2"))]
    pub(crate) rounds: NonZeroU32,
    /// Length of one of their runs
    #[arg(long, default_value = "2", default_value_if("quick", "true", "1"))]
    pub(crate) seconds: NonZeroU32,
    /// List lengths [default: 3,100,1000,5000]
    #[arg(long = "n", value_name = "N", value_delimiter = ',')]
    lengths: Option<Vec<NonZeroU32>>,
    /// Of the variants static:, lua:, ours: and over: (nginx's methods over Consul) those with this
    /// method, group or whole name: least_conn, ours, over:hash_consistent … [default: all; cpu takes
    /// only static:round_robin, static:random, lua and ours]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = variant)]
    only: Option<Vec<String>>,
    /// What is measured
    #[arg(
        long = "part",
        value_delimiter = ',',
        default_value = "instructions,memory,update,propagation,reload,status,cpu"
    )]
    parts: Vec<Part>,
    /// Whose instructions are counted: those of worker 0, which follows Consul and so has threads, or
    /// of another one
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
    pub(crate) worker: u8,
    /// callgrind's files go there, for callgrind_annotate
    #[arg(long, value_name = "FOLDER")]
    pub(crate) keep: Option<PathBuf>,
    /// Where the N list entries point
    #[arg(long, value_enum, default_value_t = Setup::Hot)]
    pub(crate) setup: Setup,
}

impl Options {
    /// Whether to measure this.
    pub(crate) fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    /// Lengths of the lists.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        match &self.lengths {
            Some(lengths) => lengths.iter().map(|length| length.get() as usize).collect(),
            None if self.quick => vec![3, 1000],
            None => vec![3, 100, 1000, 5000],
        }
    }

    /// The variants to measure, first the one that the others are compared with.
    pub(crate) fn variants(&self) -> Vec<Variant> {
        let named = |v: &Variant| {
            self.only.as_ref().is_none_or(|only| only.iter().any(|name| v.is_named(name)))
        };
        let wanted = |v: &Variant| v.has(self.setup) && (*v == Variant::BASE || named(v));
        Variant::all().into_iter().filter(wanted).collect()
    }

    /// Those whose CPU time is measured.
    pub(crate) fn on_cpu(&self) -> Vec<Variant> {
        let few = |v: &Variant| {
            let others = matches!(v, Variant::Static("round_robin" | "random") | Variant::Ours(_));
            self.only.is_some() || others || v.is_lua()
        };
        self.variants().into_iter().filter(few).collect()
    }
}

fn variant(name: &str) -> Result<String, String> {
    let known = Variant::all().iter().any(|v| v.is_named(name));
    known.then(|| name.to_owned()).ok_or_else(|| "no such variant".to_owned())
}
