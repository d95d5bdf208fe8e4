//! The command line.

use std::path::PathBuf;

use crate::variants::{Setup, Variant};

/// What the command takes.
pub(crate) const USAGE: &str = "\
scripts/bench [option]…
  --quick           two short rounds at N = 3 and 1000: a look, no figures to quote
  --rounds R        rounds of the CPU measurement (default 3)
  --seconds S       length of one of its runs (default 2)
  --n N,N           list lengths (default 3,100,1000,5000)
  --only NAME,…     of the variants static:, lua:, ours: and over: (nginx's methods over Consul) those
                    with that method, group or whole name: least_conn, ours, over:hash_consistent …
                    (default: all; cpu takes only static:round_robin, static:random, lua and ours)
  --part NAME,…     instructions, memory, update, propagation, status, cpu (default: these), and dead,
                    a healthy service beside a dead one, which takes ten minutes; propagation is
                    judged: the exit status tells whether its promises were kept
  --worker 0|1      whose instructions are counted: those of worker 0, which follows Consul and so
                    has threads, or of another one (default 1)
  --keep FOLDER     callgrind's files go there, for callgrind_annotate
  --setup hot|distinct
                    hot: nearly all weight on 8 of N, connections to them reused (default)
                    distinct: N addresses, so nearly each request opens a connection";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// User-space instructions per request.
    Instructions,
    /// CPU time per request.
    Cpu,
    /// Registration to first request, and what a watch costs while nothing changes.
    Propagation,
    /// What a change takes from the event loop.
    Update,
    /// Shared memory.
    Memory,
    /// What an answer with the status takes from other requests.
    Status,
    /// What a dead service takes from another one.
    Dead,
}

impl Part {
    /// All, by name.
    pub(crate) const ALL: [(&str, Part); 7] = [
        ("instructions", Part::Instructions),
        ("memory", Part::Memory),
        ("update", Part::Update),
        ("propagation", Part::Propagation),
        ("status", Part::Status),
        ("cpu", Part::Cpu),
        ("dead", Part::Dead),
    ];

    /// Those that are measured unless told.
    fn by_default() -> impl Iterator<Item = Part> {
        Part::ALL.into_iter().map(|(_, part)| part).filter(|&part| part != Part::Dead)
    }
}

/// The options, with their defaults.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    pub(crate) seconds: u32,
    pub(crate) lengths: Vec<usize>,
    pub(crate) variants: Vec<Variant>,
    /// Those whose CPU time is measured.
    pub(crate) on_cpu: Vec<Variant>,
    pub(crate) parts: Vec<Part>,
    pub(crate) setup: Setup,
    /// Whose instructions are counted.
    pub(crate) worker: usize,
    /// Where callgrind's files go.
    pub(crate) keep: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments; the error is for people.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let arguments: Vec<String> = arguments.collect();
        let quick = arguments.iter().any(|a| a == "--quick");
        let mut options = Options {
            quick,
            rounds: if quick { 2 } else { 3 },
            seconds: if quick { 1 } else { 2 },
            lengths: if quick { vec![3, 1000] } else { vec![3, 100, 1000, 5000] },
            variants: Vec::new(),
            on_cpu: Vec::new(),
            parts: Part::by_default().collect(),
            setup: Setup::Hot,
            worker: 1,
            keep: None,
        };
        let mut only: Option<Vec<String>> = None;
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
                "--only" => only = Some(list(value, named)?),
                "--part" => options.parts = list(value, part)?,
                "--worker" => options.worker = worker(value)?,
                "--keep" => options.keep = Some(value.into()),
                "--setup" => options.setup = setup(value)?,
                _ => return Err(format!("unknown option {name}")),
            }
        }
        // The base is what the others are compared with.
        let wanted = |v: &Variant| {
            let named = only.as_ref().is_none_or(|only| only.iter().any(|n| v.is_named(n)));
            v.has(options.setup) && (*v == Variant::BASE || named)
        };
        options.variants = Variant::all().into_iter().filter(wanted).collect();
        let mut on_cpu = options.variants.clone();
        on_cpu.retain(|v| {
            let others = matches!(v, Variant::Static("round_robin" | "random") | Variant::Ours(_));
            only.is_some() || others || v.is_lua()
        });
        options.on_cpu = on_cpu;
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

fn named(name: &str) -> Result<String, String> {
    let known = Variant::all().iter().any(|v| v.is_named(name));
    if known { Ok(name.to_owned()) } else { Err(format!("no variant {name:?}")) }
}

fn part(name: &str) -> Result<Part, String> {
    let found = Part::ALL.into_iter().find(|(known, _)| *known == name);
    found.map(|(_, part)| part).ok_or_else(|| format!("no part {name:?}"))
}

fn worker(value: &str) -> Result<usize, String> {
    match value {
        "0" => Ok(0),
        "1" => Ok(1),
        _ => Err(format!("--worker takes 0 or 1, not {value:?}")),
    }
}

fn setup(name: &str) -> Result<Setup, String> {
    match name {
        "hot" => Ok(Setup::Hot),
        "distinct" => Ok(Setup::Distinct),
        _ => Err(format!("no setup {name:?}")),
    }
}
