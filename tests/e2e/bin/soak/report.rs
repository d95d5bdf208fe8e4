//! The table at the end.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::gauge::{Counts, Stalls, Usage};

/// An event loop that is held up longer has waited for something. Less may be the machine, whose
/// processors the soak itself keeps busy.
const STALL: Duration = Duration::from_millis(500);

/// What private memory may grow by, in KiB: a tenth, and what an allocator holds back.
fn allowed(before: u64) -> u64 {
    before + before / 10 + 2048
}

/// What was measured.
pub(crate) struct Result<'a> {
    pub(crate) counts: &'a Counts,
    pub(crate) stalls: Stalls,
    pub(crate) before: Usage,
    pub(crate) after: Usage,
    pub(crate) lasted: Duration,
    pub(crate) clients: usize,
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn row(name: &str, value: impl std::fmt::Display) {
    println!("  {name:<34} {value}");
}

/// Prints the table.
pub(crate) fn print(result: &Result) {
    let Result { counts, before, after, stalls, .. } = result;
    let seconds = result.lasted.as_secs_f64();
    let rate = |n: u64| format!("{n} ({:.0}/s)", n as f64 / seconds);
    println!();
    row("requests", rate(get(&counts.requests)));
    row("  failed", get(&counts.failed));
    row("  sent again over a new connection", get(&counts.again));
    row("  lost with killed workers", get(&counts.killed));
    row("registrations, deregistrations", rate(get(&counts.changes)));
    row("  refused while Consul restarted", get(&counts.changes_refused));
    row("workers killed", get(&counts.kills));
    row("reloads", get(&counts.reloads));
    row("Consul restarts", get(&counts.restarts));
    row("token rotations", get(&counts.rotations));
    row("peers lost", format!("{} in {} looks", get(&counts.lost), get(&counts.looks)));
    let pair = |a: u64, b: u64| format!("{a} -> {b}");
    row("memory of the master, KiB", pair(before.memory[0], after.memory[0]));
    row("memory of the workers, KiB", pair(before.memory[1], after.memory[1]));
    row("zone in use, bytes", pair(before.zone, after.zone));
    row("processes", pair(before.processes as u64, after.processes as u64));
    row("threads", pair(before.threads as u64, after.threads as u64));
    row("descriptors", pair(before.descriptors as u64, after.descriptors as u64));
    row(
        "event loop held up",
        format!(
            "max {:.1} ms, 99.9 % below {:.1} ms ({} probes of {} workers)",
            stalls.quantile(1.0).as_secs_f64() * 1e3,
            stalls.quantile(0.999).as_secs_f64() * 1e3,
            stalls.latencies.len(),
            stalls.workers
        ),
    );
}

/// What is not as it should be.
pub(crate) fn problems(result: &Result) -> Vec<String> {
    let Result { counts, before, after, .. } = result;
    let mut problems = Vec::new();
    let mut demand = |holds: bool, what: String| {
        if !holds {
            problems.push(what);
        }
    };
    let failures = counts.failures.lock().unwrap_or_else(PoisonError::into_inner);
    demand(failures.is_empty(), format!("requests failed: {}", failures.join("; ")));
    let most = get(&counts.kills) * result.clients as u64;
    demand(
        get(&counts.killed) <= most,
        "more requests lost than killed workers can have had".into(),
    );
    demand(get(&counts.lost) == 0, "peers were lost".into());
    demand(get(&counts.looks) > 0, "the status page was never seen".into());
    let few = result.lasted.as_secs() * 20;
    demand(get(&counts.requests) > few * 5, "too few requests to mean anything".into());
    demand(get(&counts.changes) > few, "too few changes to mean anything".into());
    for (who, n) in [("master", 0), ("workers", 1)] {
        let (was, is) = (before.memory[n], after.memory[n]);
        demand(is <= allowed(was), format!("memory of the {who} grew from {was} to {is} KiB"));
    }
    demand(
        after.zone <= before.zone,
        format!("{} bytes of the zone leaked", after.zone.saturating_sub(before.zone)),
    );
    demand(after.processes == before.processes, "processes are left over".into());
    demand(after.threads <= before.threads, "threads are left over".into());
    demand(after.descriptors <= before.descriptors + 8, "descriptors are left over".into());
    let stall = result.stalls.quantile(1.0);
    demand(stall < STALL, format!("an event loop was held up for {stall:?}"));
    problems
}
