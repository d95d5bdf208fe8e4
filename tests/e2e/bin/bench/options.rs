//! The command line.

use crate::variants::{Setup, Variant};

/// What the command takes.
pub(crate) const USAGE: &str = "\
scripts/bench [option]…
  --quick           two short rounds at N = 3 and 1000: a look, no figures to quote
  --rounds R        rounds of the CPU measurement (default 5)
  --seconds S       length of one of its runs (default 3)
  --n N,N           list lengths (default 3,100,1000,5000)
  --only NAME,…     variants: static random lua-seed lua-cached round_robin consul-random least_conn
  --part NAME,…     instructions, cpu, propagation (default: all)
  --setup hot|distinct
                    hot: N entries over 8 sockets, connections to them reused (default)
                    distinct: N addresses, so nearly each request opens a connection";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// User-space instructions per request.
    Instructions,
    /// CPU time per request.
    Cpu,
    /// Registration to first request.
    Propagation,
}

/// The options, with their defaults.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    pub(crate) seconds: u32,
    pub(crate) lengths: Vec<usize>,
    pub(crate) variants: Vec<Variant>,
    pub(crate) parts: Vec<Part>,
    pub(crate) setup: Setup,
}

impl Options {
    /// Reads the arguments; the error is for people.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let arguments: Vec<String> = arguments.collect();
        let quick = arguments.iter().any(|a| a == "--quick");
        let mut options = Options {
            quick,
            rounds: if quick { 2 } else { 5 },
            seconds: if quick { 1 } else { 3 },
            lengths: if quick { vec![3, 1000] } else { vec![3, 100, 1000, 5000] },
            variants: Vec::new(),
            parts: vec![Part::Instructions, Part::Cpu, Part::Propagation],
            setup: Setup::Hot,
        };
        let mut only: Option<Vec<Variant>> = None;
        let mut rest = arguments.iter();
        while let Some(name) = rest.next() {
            if name == "--quick" {
                continue;
            }
            let value = rest.next().ok_or(format!("{name}: unknown, or without a value"))?;
            match name.as_str() {
                "--rounds" => options.rounds = number(name, value)?,
                "--seconds" => options.seconds = number(name, value)?,
                "--n" => options.lengths = list(value, |item| number(name, item))?,
                "--only" => only = Some(list(value, variant)?),
                "--part" => options.parts = list(value, part)?,
                "--setup" => options.setup = setup(value)?,
                _ => return Err(format!("unknown option {name}")),
            }
        }
        let wanted = |v: &Variant| {
            v.has(options.setup)
                // Static is what the others are compared with.
                && (*v == Variant::Static || only.as_ref().is_none_or(|only| only.contains(v)))
        };
        options.variants = Variant::ALL.into_iter().filter(wanted).collect();
        Ok(options)
    }

    /// Whether to measure this.
    pub(crate) fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }
}

fn list<T>(value: &str, item: impl FnMut(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    value.split(',').map(item).collect()
}

fn number<T: std::str::FromStr + PartialOrd + From<u8>>(
    name: &str,
    value: &str,
) -> Result<T, String> {
    let number = value.parse().ok().filter(|n| *n >= T::from(1));
    number.ok_or_else(|| format!("{name} takes a number from 1 on, not {value:?}"))
}

fn variant(name: &str) -> Result<Variant, String> {
    let found = Variant::ALL.into_iter().find(|v| v.name() == name);
    found.ok_or_else(|| format!("no variant {name:?}"))
}

fn part(name: &str) -> Result<Part, String> {
    match name {
        "instructions" => Ok(Part::Instructions),
        "cpu" => Ok(Part::Cpu),
        "propagation" => Ok(Part::Propagation),
        _ => Err(format!("no part {name:?}")),
    }
}

fn setup(name: &str) -> Result<Setup, String> {
    match name {
        "hot" => Ok(Setup::Hot),
        "distinct" => Ok(Setup::Distinct),
        _ => Err(format!("no setup {name:?}")),
    }
}
