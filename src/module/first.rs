//! The first answers, asked for in a child of the master.
//!
//! Asking takes threads, and a process that has had some is slower for good: the C library then
//! makes each system call one that could be cancelled, and a worker inherits that.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use nginx_consul_core::sync::{Level, Plan, Sink, first_answers};
use nginx_consul_core::table::Table;

use crate::child::{self, End};
use crate::log::Line;
use crate::sink::TableSink;

/// How long the child may take beyond the time it has for asking: for its start, and to end.
const GRACE: Duration = Duration::from_secs(1);

/// Asks for what the targets `needed` need, for `timeout` at most, and publishes what comes. What
/// there is to be said goes to `sink`.
///
/// # Safety
///
/// As for [`child::run`].
pub(crate) unsafe fn ask(
    plan: &Arc<Plan>,
    table: Table<'static>,
    needed: &[usize],
    timeout: Duration,
    sink: &TableSink,
) {
    let work = |out: &mut File| {
        // Another one: in the table it is the child who publishes, and it may be killed.
        let own = TableSink::new(table, plan);
        // What there is no room for is said already.
        own.take_lines();
        let shared: Arc<dyn Sink> = own.clone();
        first_answers(plan, &shared, needed, timeout);
        let lines: Vec<u8> = own.take_lines().iter().flat_map(encode).collect();
        u8::from(out.write_all(&lines).is_err())
    };
    // SAFETY: the caller's promise.
    let outcome = unsafe { child::run(Some(timeout.saturating_add(GRACE)), work) };
    let why = match outcome {
        Ok(outcome) => {
            for line in decode(&outcome.told) {
                sink.log(line.level, line.text);
            }
            match outcome.end {
                End::Status(0) | End::Unknown => return,
                End::Status(_) => "the process that asks for them has failed".to_owned(),
                End::Signal(n) => format!("the process that asks for them got signal {n}"),
                End::Late => format!("the process that asks for them took over {timeout:?}"),
            }
        }
        Err(error) => format!("no process to ask for them: {error}"),
    };
    sink.log(Level::Error, format!("first answers may be missing ({why}), going on"));
}

const LEVELS: [Level; 4] = [Level::Error, Level::Warn, Level::Notice, Level::Info];

/// A line as the child writes it: level, length, text.
fn encode(line: &Line) -> Vec<u8> {
    let level = LEVELS.iter().position(|level| *level == line.level).unwrap_or(0);
    let mut bytes = vec![level as u8];
    bytes.extend((line.text.len() as u32).to_ne_bytes());
    bytes.extend(line.text.as_bytes());
    bytes
}

/// The whole lines of what the child has written; it may have been killed while it did.
fn decode(mut told: &[u8]) -> Vec<Line> {
    let mut lines = Vec::new();
    while let Some((head, rest)) = told.split_first_chunk::<5>() {
        let [level, length @ ..] = *head;
        let length = u32::from_ne_bytes(length) as usize;
        let Some((text, rest)) = rest.split_at_checked(length) else { break };
        let level = LEVELS.get(usize::from(level)).copied().unwrap_or(Level::Error);
        lines.push(Line { level, text: String::from_utf8_lossy(text).into_owned() });
        told = rest;
    }
    lines
}
