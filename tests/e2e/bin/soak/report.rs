//! The table at the end.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::actors::{CHANGES, KILLS, RELOADS, RESTARTS, ROTATIONS};
use crate::gauge::{Counts, Stalls, Usage};
use crate::scene::SERVICES;

/// An event loop that is held up longer than that beyond what the machine does to a backend has
/// waited for something.
const STALL: Duration = Duration::from_millis(500);

/// What a service's history of changes, which fills up with them, takes in the zone at most, in bytes.
const HISTORY: u64 = 1024 + 8;

/// Threads that a worker 0 may have for Consul: `consul_connections` and the one that keeps them.
const WATCHING: usize = 64 + 1;

/// What private memory may grow by, in KiB: a tenth, and what an allocator holds back.
fn allowed(before: u64) -> u64 {
    before + before / 10 + 2048
}

/// What was measured.
pub(crate) struct Result<'a> {
    pub(crate) counts: &'a Counts,
    pub(crate) stalls: Stalls,
    /// The same of a backend, which waits for nothing but the machine.
    pub(crate) machine: Stalls,
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
    let Result { counts, before, after, stalls, machine, .. } = result;
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
    row("requests in flight", pair(before.in_flight, after.in_flight));
    row("processes", pair(before.processes as u64, after.processes as u64));
    row("threads", pair(before.threads as u64, after.threads as u64));
    row("descriptors", pair(before.descriptors as u64, after.descriptors as u64));
    for (name, stalls) in [("event loop held up", stalls), ("backend held up", machine)] {
        let (max, most) = (stalls.quantile(1.0), stalls.quantile(0.999));
        let probes = stalls.latencies.len();
        row(name, format!("max {max:.1?}, 99.9 % below {most:.1?} ({probes} probes)"));
    }
    row("workers probed", stalls.workers);
}

/// What is not as it should be.
pub(crate) fn problems(result: &Result) -> Vec<String> {
    let mut problems = Vec::new();
    let mut demand = |holds: bool, what: String| {
        if !holds {
            problems.push(what);
        }
    };
    traffic(result, &mut demand);
    upheaval(result, &mut demand);
    usage(result, &mut demand);
    let stall = result.stalls.quantile(1.0);
    demand(!result.stalls.latencies.is_empty(), "the event loops were never probed".into());
    let machine = result.machine.quantile(1.0);
    demand(
        stall < STALL + machine,
        format!("an event loop was held up for {stall:?}, a backend for {machine:?}"),
    );
    problems
}

fn traffic(result: &Result, demand: &mut impl FnMut(bool, String)) {
    let counts = result.counts;
    let failures = counts.failures.lock().unwrap_or_else(PoisonError::into_inner);
    let failed = get(&counts.failed);
    demand(failed == 0, format!("{failed} failures: {}", failures.join("; ")));
    // Each client has one request under way.
    let (killed, most) = (get(&counts.killed), get(&counts.kills) * result.clients as u64);
    demand(killed <= most, format!("{killed} requests lost, killed workers had {most} at most"));
    let (lost, looks) = (get(&counts.lost), get(&counts.looks));
    demand(lost == 0, format!("peers were lost: {lost} in {looks} looks"));
    demand(looks > 0, "the status page was never seen".into());
    let requests = get(&counts.requests);
    let few = result.lasted.as_secs() * 100;
    demand(requests > few, format!("{requests} requests are too few to mean anything"));
}

/// Half of each trouble that was meant is enough, for the machine may be slow.
fn upheaval(result: &Result, demand: &mut impl FnMut(bool, String)) {
    let counts = result.counts;
    let half = |span: Duration| (result.lasted.as_secs_f64() / span.as_secs_f64() / 2.0) as u64;
    for (what, counter, span) in [
        // As fast as Consul is, which shares the machine.
        ("registrations and deregistrations", &counts.changes, CHANGES * 5),
        ("killed workers", &counts.kills, KILLS),
        ("reloads", &counts.reloads, RELOADS),
        ("Consul restarts", &counts.restarts, RESTARTS),
        ("token rotations", &counts.rotations, ROTATIONS),
    ] {
        let (seen, least) = (get(counter), half(span));
        demand(seen >= least, format!("{seen} {what}, {least} are the least to mean anything"));
    }
}

fn usage(result: &Result, demand: &mut impl FnMut(bool, String)) {
    let Result { before, after, .. } = result;
    for (who, n) in [("master", 0), ("workers", 1)] {
        let (was, is) = (before.memory[n], after.memory[n]);
        demand(is <= allowed(was), format!("memory of the {who} grew from {was} to {is} KiB"));
    }
    let leaked = after.zone.saturating_sub(before.zone + HISTORY * SERVICES as u64);
    demand(leaked == 0, format!("{leaked} bytes of the zone leaked"));
    demand(after.in_flight == 0, format!("{} requests are still in flight", after.in_flight));
    let mut grown = |what: &str, was: usize, is: usize, spare: usize| {
        demand(is <= was + spare, format!("{what} grew from {was} to {is}"));
    };
    grown("processes", before.processes, after.processes, 0);
    // A thread more that asks Consul has a connection more.
    let spare = (before.processes + WATCHING).saturating_sub(before.threads);
    grown("threads", before.threads, after.threads, spare);
    grown("descriptors", before.descriptors, after.descriptors, spare);
}

#[cfg(test)]
mod tests;
