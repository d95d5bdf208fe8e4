//! The initial fetch, in a child process of the master.
//!
//! The fetch needs threads, and a process that has had threads stays slower: the C library then
//! makes each system call a cancellation point, and workers inherit that.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use nginx_consul_core::model::Level;
use nginx_consul_core::table::Table;
use nginx_consul_core::watch::{Plan, Sink, first_answers};
use serde_json::Deserializer;

use super::fork::{self, End, SingleThread};
use nginx_consul_core::table_writer::TableWriter;

/// How much longer than the fetch the child may take, to start and to exit.
const GRACE: Duration = Duration::from_secs(1);

/// Fetches the sets of the targets `needed` for at most `timeout`, and publishes them. Log lines go
/// to `sink`.
pub(crate) fn ask(
    (plan, table): (&Arc<Plan>, Table<'static>),
    needed: &[usize],
    timeout: Duration,
    (single, sink): (SingleThread, &TableWriter),
) {
    let work = |out: &mut UnixStream| {
        // A writer of its own: the child publishes as itself, and it may be killed.
        let own = TableWriter::for_threads(table, plan);
        // The parent has logged targets without room already.
        own.take_lines();
        let shared: Arc<dyn Sink> = own.clone();
        first_answers(plan, &shared, needed, timeout);
        let lines = own.take_lines();
        let written = lines.iter().try_for_each(|line| serde_json::to_writer(&mut *out, line));
        u8::from(written.is_err())
    };
    let why = match fork::run(single, Some(timeout.saturating_add(GRACE)), work) {
        Ok(outcome) => {
            // It may have been killed while it was writing.
            let lines = Deserializer::from_slice(&outcome.output).into_iter().map_while(Result::ok);
            lines.for_each(|(level, line)| sink.log(level, line));
            match outcome.end {
                End::Status(0) | End::Unknown => return,
                End::Status(_) => "its process has failed".to_owned(),
                End::Signal(n) => format!("its process got signal {n}"),
                End::Late => format!("its process took over {timeout:?}"),
            }
        }
        Err(error) => format!("cannot start its process: {error}"),
    };
    sink.log(Level::Error, format!("initial fetch incomplete ({why}), starting without it"));
}
