//! From the watch threads into the shared table.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::address::Listeners;
use crate::clock::{Clock, age};
use crate::model::{self, Connections, Level, PeerSet, ServiceName};
use crate::on_demand::{ServiceStore, ServiceTarget};
use crate::process::ProcessId;
use crate::state::{Saved, Version};
use crate::table::{Claim, Full, LookupResult, PeerSnapshot, Table};
use crate::watch::{Plan, Published, Report, Sink};
use parking_lot::{Mutex, RwLock};

use super::lines::{Line, Lines};
use super::numbers::TargetNumbers;
use super::planned::Planned;

/// Writes the watcher's answers into the table, and keeps its log lines for the event loop.
pub struct TableWriter {
    /// `None` once closed.
    table: RwLock<Option<Table<'static>>>,
    planned: Vec<Planned>,
    numbers: RwLock<TargetNumbers>,
    me: ProcessId,
    /// Targets whose last set did not fit into the zone, and the error.
    refused: Mutex<HashMap<usize, String>>,
    lines: Mutex<Lines>,
    listeners: OnceLock<Listeners>,
}

impl TableWriter {
    /// Finds or makes the entries of the plan's targets, for an event loop. An entry that there is no
    /// room for now, or that another publisher keeps from being made, is made with the target's first
    /// answer.
    pub fn new(table: Table<'static>, plan: &Plan) -> Arc<TableWriter> {
        let me = ProcessId::own();
        let planned = plan.targets.iter().enumerate().map(|(target, of)| {
            let scope = model::service_scope(&of.query.service, of.query.datacenter.as_deref());
            Planned::new(plan.key(target), scope)
        });
        let sink = TableWriter {
            table: RwLock::new(Some(table)),
            planned: planned.collect(),
            numbers: RwLock::default(),
            me,
            refused: Mutex::default(),
            lines: Mutex::default(),
            listeners: OnceLock::new(),
        };
        for (planned, target) in sink.planned.iter().zip(&plan.targets) {
            match planned.claim(table, me) {
                Ok(()) => {}
                Err(Full::Busy | Full::Superseded) => break,
                Err(e) => {
                    let service = &target.query.service;
                    let line =
                        format!("service \"{service}\": {e}, increase the size in \"consul_zone\"");
                    sink.log(Level::Error, line);
                }
            }
        }
        Arc::new(sink)
    }

    /// As [`TableWriter::new`]; threads write from then on.
    pub fn for_threads(table: Table<'static>, plan: &Plan) -> Arc<TableWriter> {
        let writer = TableWriter::new(table, plan);
        *writer.table.write() = Some(table.for_threads());
        writer
    }

    /// Whether a set did not fit into the zone.
    pub fn is_short_of_room(&self) -> bool {
        !self.refused.lock().is_empty()
    }

    /// Says where this nginx listens, once.
    pub fn set_listeners(&self, listeners: Listeners) {
        let _ = self.listeners.set(listeners);
    }

    /// Ends all access to the zone; waits for threads that are using it.
    pub fn close(&self) {
        *self.table.write() = None;
    }

    /// The lines so far.
    pub fn take_lines(&self) -> Vec<Line> {
        self.lines.lock().take()
    }

    /// The process that this sink writes as.
    pub fn me(&self) -> ProcessId {
        self.me
    }

    /// Runs `f` on the table, if the sink is open.
    pub fn with_table<T>(&self, f: impl FnOnce(Table<'static>) -> T) -> Option<T> {
        let table = self.table.read();
        (*table).map(f)
    }

    /// Publishes a set of the state file for a target without data; `false` if the target has data
    /// by now.
    ///
    /// # Errors
    ///
    /// The zone is full.
    pub fn restore(&self, target: usize, saved: &Saved) -> Result<bool, String> {
        let published = self.with(target, |table, entry, key| {
            if table.has_data(entry) {
                return Ok(false);
            }
            let now = Clock::now();
            let change = table.publish((entry, key), &saved.peers, now, self.me)?;
            if change.is_some() {
                table.note_restored(entry, saved.index, now.monotonic_at(saved.last_good_ms));
            }
            Ok(change.is_some())
        });
        published.unwrap_or(Ok(false)).map_err(full)
    }

    /// The version of the target's set, for the state file.
    pub fn version(&self, target: usize) -> Option<Version> {
        self.with(target, |table, entry, _| {
            table.has_data(entry).then(|| Version {
                generation: table.generation(entry),
                last_good: table.last_good(entry),
            })
        })?
    }

    /// The target's set and the index of its answer.
    pub fn image(&self, target: usize) -> Option<(PeerSnapshot, u64)> {
        self.with(target, |table, entry, key| {
            Some((table.read(entry, key)?, table.freshness(entry).index))
        })?
    }

    /// The number of the target of this key that has this entry.
    pub fn number_of(&self, entry: usize, key: u128) -> Option<usize> {
        let planned = self.planned.iter().position(|p| p.key == key && p.is_at(entry));
        planned.or_else(|| self.numbers.read().find(entry, key))
    }

    /// The targets of services that requests have named: number, key and service.
    pub fn named_targets(&self) -> Vec<(usize, u128, ServiceName)> {
        let held = self.with_table(|table| {
            let entry = |entry| Some((entry, table.key(entry), table.service_name(entry)?));
            (0..table.entry_capacity()).filter_map(entry).collect::<Vec<_>>()
        });
        let mut held = held.unwrap_or_default();
        let mut numbers = self.numbers.write();
        for (number, key, _) in &mut held {
            *number = numbers.number(*number, *key, self.planned.len());
        }
        held
    }

    /// Runs `f` on the target's entry, if it has one and the sink is open.
    fn with<T>(
        &self,
        target: usize,
        f: impl FnOnce(Table<'static>, usize, u128) -> T,
    ) -> Option<T> {
        let table = self.table.read();
        let table = (*table)?;
        if let Some(planned) = self.planned.get(target) {
            return Some(f(table, planned.entry(table)?, planned.key));
        }
        let (entry, key) = self.numbers.read().get(target)?;
        (table.key(entry) == key).then(|| f(table, entry, key))
    }
}

fn full(full: Full) -> String {
    match full {
        Full::Busy | Full::Superseded => full.to_string(),
        _ => format!("{full}, increase the size in \"consul_zone\""),
    }
}

impl Sink for TableWriter {
    fn listens_on(&self, address: SocketAddr) -> bool {
        self.listeners.get().is_some_and(|listeners| listeners.accept(address))
    }

    fn publish(&self, target: usize, set: &PeerSet, _: u64) -> Published {
        let planned = self.planned.get(target);
        let claimed =
            planned.and_then(|planned| self.with_table(|table| planned.claim(table, self.me)));
        let published = match claimed {
            Some(Err(full)) => Some(Err(full)),
            _ => self.with(target, |table, entry, key| {
                table.publish((entry, key), set, Clock::now(), self.me)
            }),
        };
        match published {
            // The worker 0 of the newer configuration publishes it.
            Some(Err(Full::Superseded)) => Published::Unchanged,
            Some(Err(full)) => {
                let why = self::full(full);
                self.refused.lock().insert(target, why.clone());
                Published::Refused(why)
            }
            published => {
                self.refused.lock().remove(&target);
                let Some(Ok(Some(change))) = published else { return Published::Unchanged };
                Published::Changed {
                    peers: set.peers().len(),
                    added: change.joined_total,
                    removed: change.left_total,
                    changed: change.changed_total,
                }
            }
        }
    }

    fn report(&self, target: usize, report: &Report<'_>) {
        // From then on the state is what the newer configuration's worker 0 sees.
        if self.is_superseded() {
            return;
        }
        self.with(target, |table, entry, _| match *report {
            Report::Good { index, server, mode, pending } => {
                table.note_good(entry, index, server, mode, Clock::now().monotonic);
                table.note_confirmed(entry, self.me);
                table.note_pending(entry, pending);
                // The answer was valid, but did not fit into the zone.
                if let Some(why) = self.refused.lock().get(&target) {
                    table.note_failure(entry, why, 0, server);
                }
            }
            Report::Ignored { reason } => table.count_refusal(entry, reason),
            Report::Failed { server, reason, error, failures, retry_in } => {
                table.count_refusal(entry, reason);
                table.note_failure(entry, error, u64::from(failures), server);
                let retry_in = u64::try_from(retry_in.as_millis()).unwrap_or(0);
                table.note_retry(entry, Clock::now().monotonic.saturating_add(retry_in));
            }
        });
    }

    fn log(&self, level: Level, text: String) {
        self.lines.lock().push((level, text));
    }

    fn published_identities(&self, target: usize) -> HashSet<u64> {
        let image = self.with(target, |table, entry, key| table.read(entry, key)).flatten();
        image.map_or_else(HashSet::new, |image| {
            image.records.iter().map(|record| record.identity).collect()
        })
    }

    fn has_data(&self, target: usize) -> bool {
        self.with(target, |table, entry, _| table.has_data(entry)).unwrap_or(false)
    }

    fn watcher_starts(&self) -> bool {
        self.with_table(|table| table.take_over_connections(self.me, Clock::now().monotonic))
            .unwrap_or(true)
    }

    fn note_connections(&self, connections: Connections) {
        self.with_table(|table| table.note_connections(connections, self.me));
    }

    fn earlier_connections(&self) -> usize {
        self.with_table(|table| table.earlier_connections(self.me, Clock::now().monotonic))
            .unwrap_or(0)
    }
}

impl ServiceStore for TableWriter {
    fn add(&self, service: &ServiceName, of: &ServiceTarget) -> Result<usize, String> {
        let datacenter = of.target.query.datacenter.as_deref();
        let scope = model::service_scope(&service.name, datacenter);
        let claim = Claim { key: of.key, scope, named: Some((service, Clock::now().monotonic)) };
        let claimed = self.with_table(|table| table.claim(claim, self.me));
        let entry = claimed.ok_or_else(|| "nginx ends".to_owned())?.map_err(full)?;
        Ok(self.numbers.write().number(entry, of.key, self.planned.len()))
    }

    fn remove(&self, target: usize) {
        self.with(target, |table, entry, key| table.release(entry, key, self.me));
        self.refused.lock().remove(&target);
        self.numbers.write().remove(target);
    }

    fn lacks_room(&self, target: usize) -> bool {
        self.refused.lock().contains_key(&target)
    }

    fn unused_for(&self, target: usize) -> Duration {
        let used = self.with(target, |table, entry, _| table.last_used(entry));
        used.map_or(Duration::MAX, |used| Duration::from_millis(age(used, Clock::now().monotonic)))
    }

    fn record_lookup(&self, key: u128, result: LookupResult, valid: Duration) {
        self.with_table(|table| {
            let now = Clock::now().monotonic;
            table.note_lookup_result(key, result, (now, valid), self.me);
        });
    }

    fn forget_lookup(&self, key: u128) {
        self.with_table(|table| table.forget_lookup_result(key, self.me));
    }

    fn is_in_step(&self, target: usize) -> bool {
        let is_in_step = |table: Table<'static>, entry, _| {
            table.failures(entry) == 0 && table.freshness(entry).confirmed
        };
        self.with(target, is_in_step).unwrap_or(false)
    }

    fn note_unreachable(&self, target: usize, error: &str) {
        self.with(target, |table, entry, _| {
            if !table.has_data(entry) {
                table.note_failure(entry, error, 1, 0);
            }
        });
    }

    fn is_superseded(&self) -> bool {
        self.with_table(|table| table.is_superseded()).unwrap_or(true)
    }

    fn services(&self) -> Vec<(ServiceName, usize)> {
        let targets = self.named_targets().into_iter();
        targets.map(|(number, _, service)| (service, number)).collect()
    }
}

#[cfg(test)]
mod tests;
