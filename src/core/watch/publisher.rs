//! From a believable answer to the sink, by way of each target's policy.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use super::log_labels::{query_name, target_name};
use super::plan::{Followed, WatchedQuery};
use super::{Published, Sink, Target};
use crate::consul::blocking;
use crate::consul::instances::{Instances, Skipped};
use crate::consul::query::ReadFrom;
use crate::consul::removal::{Decision, OnEmpty, Policy, RemovalGuard};
use crate::model::{Consistency, Level, PeerSet, Pending, Source};
use crate::resolve::{Names, Resolve};
use crate::snapshot;
use crate::text::quote;

/// Longest `wait` while a host name has no address.
const WAIT_UNRESOLVED: Duration = Duration::from_secs(5);
/// How many warnings about skipped instances one watch ever logs, and at most per answer.
const MAX_WARNINGS: usize = 1000;
const MAX_WARNINGS_PER_ANSWER: usize = 10;

/// Hands answers to the sink, and remembers what it has warned of and what waits.
#[derive(Default)]
pub(super) struct Publisher {
    quiet: bool,
    names: Names,
    warned: HashSet<u64>,
    refused: HashSet<u64>,
    guards: HashMap<usize, RemovalGuard>,
    /// Index and digest of the newest answer.
    latest: Option<(u64, u128)>,
    pub(super) last: Last,
}

/// The last publication: its number, and the server whose answer it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Last {
    count: u64,
    pub(super) server: usize,
}

/// An answer with what is to become of it.
pub(super) struct Prepared {
    index: u64,
    sets: Vec<(Followed, PeerSet, Decision)>,
    limit: Option<Duration>,
}

/// Time after `consul_max_stale` at which a server that was cut off from its leader has said so.
const CUT_OFF: Duration = Duration::from_secs(1);
/// The same where `consul_max_stale` is off: twice Consul's heartbeat timeout.
const UNBOUNDED: Duration = Duration::from_secs(10);

/// The policy of a target. A server that is cut off may lack what the others have agreed on, and
/// answers stale queries for a while before it notices: it can't confirm an empty answer sooner.
fn policy_of(target: &Target) -> Policy {
    let mut policy = target.policy;
    if let (OnEmpty::Confirm(confirm), Consistency::Stale) =
        (&mut policy.on_empty, target.query.consistency)
    {
        let noticed = target.timing.max_stale.map_or(UNBOUNDED, |bound| bound + CUT_OFF);
        confirm.over = confirm.over.max(noticed);
    }
    policy
}

impl Prepared {
    /// Whether peers leave because enough reads agree.
    pub(super) fn is_confirmed(&self) -> bool {
        self.sets.iter().any(|(.., verdict)| matches!(verdict, Decision::Confirmed { .. }))
    }

    /// When to read again, if something waits for that.
    pub(super) fn again(&self) -> Option<Instant> {
        let again = |verdict: &Decision| match verdict {
            Decision::Hold { again, .. } => *again,
            _ => None,
        };
        self.sets.iter().filter_map(|(.., verdict)| again(verdict)).min()
    }

    /// The targets, and what the answer would remove from each, but does not yet.
    pub(super) fn targets(&self) -> impl Iterator<Item = (&Followed, Option<Pending>)> {
        self.sets.iter().map(|(followed, _, verdict)| match verdict {
            Decision::Hold { pending, .. } => (followed, Some(*pending)),
            _ => (followed, None),
        })
    }

    /// The longest `wait` that the host names in the answer allow.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.limit
    }
}

impl Publisher {
    /// One that logs nothing but changes: somebody else will.
    pub(super) fn quiet() -> Self {
        Publisher { quiet: true, ..Publisher::default() }
    }

    /// Whether an answer from a copy of the state is older than what is known.
    pub(super) fn is_outdated(&self, index: u64, digest: u128) -> bool {
        blocking::is_outdated(self.latest, index, digest)
    }

    /// Takes note of a published answer of a server: index, digest and whether it is a copy's.
    pub(super) fn note(&mut self, (index, digest, is_copy): (u64, u128, bool), server: usize) {
        let before = self.latest.filter(|_| is_copy).map_or(0, |(index, _)| index);
        self.latest = Some((index.max(before), digest));
        self.last = Last { count: self.last.count + 1, server };
    }

    /// Where a read has to come from: no copy of the state confirms a removal that waits.
    pub(super) fn from(&self) -> ReadFrom {
        match self.guards.values().any(RemovalGuard::is_waiting) {
            true => ReadFrom::Server,
            false => ReadFrom::Anywhere,
        }
    }

    /// Makes the sets of the targets of a watch and judges them. An answer from a copy of the state
    /// can't confirm what another one has said.
    pub(super) fn prepare(
        &mut self,
        watched: &WatchedQuery,
        targets: &[Followed],
        (index, instances, may_confirm): (u64, &Instances, bool),
        resolver: &dyn Resolve,
        sink: &dyn Sink,
    ) -> Prepared {
        self.warn(watched, &instances.skipped, "skipped", sink);
        self.warn(watched, &instances.flawed, "ignored", sink);
        let limit = self.resolve(watched, instances, resolver, sink);
        if self.guards.len() > targets.len() {
            self.guards.retain(|number, _| targets.iter().any(|t| t.number == *number));
        }
        let mut sets = Vec::with_capacity(targets.len());
        for followed in targets {
            let Followed { number, target, .. } = followed;
            let (set, excluded) = snapshot::peers(&instances.good, &target.selection, &self.names);
            self.warn(watched, &excluded, "skipped", sink);
            let verdict = self.judge((*number, target), &set, may_confirm, sink);
            sets.push((followed.clone(), set, verdict));
        }
        Prepared { index, sets, limit }
    }

    /// Puts in force what is to be; `false` if a set was refused.
    pub(super) fn publish(&mut self, prepared: &Prepared, sink: &dyn Sink) -> bool {
        let index = prepared.index;
        let mut all = true;
        for (followed, set, verdict) in &prepared.sets {
            let Followed { number, target, .. } = followed;
            if followed.is_gone() {
                continue;
            }
            let name = || target_name(&target.query, &target.selection);
            match verdict {
                Decision::Hold { .. } => continue,
                Decision::Publish { .. } => {}
                Decision::Confirmed { pending: Pending { removals, confirmed, .. }, after } => {
                    if let Some(guard) = self.guards.get_mut(number) {
                        guard.settled();
                    }
                    let line = format!(
                        "{}: {} confirmed by {} within {after:.1?}",
                        name(),
                        count(*removals, "removal"),
                        count((*confirmed).into(), "more read"),
                    );
                    sink.log(Level::Warn, line);
                }
            }
            match sink.publish(*number, set, index) {
                Published::Unchanged => {}
                Published::Changed { peers, added, removed, changed } => {
                    let s = if peers == 1 { "" } else { "s" };
                    let others = if changed == 0 { String::new() } else { format!(" ~{changed}") };
                    let line = format!(
                        "{}: {peers} peer{s} (+{added} -{removed}{others}), index {index}",
                        name()
                    );
                    sink.log(Level::Notice, line);
                    self.refused.clear();
                }
                Published::Refused(reason) => {
                    all = false;
                    if !self.quiet
                        && self.refused.len() < MAX_WARNINGS
                        && self.refused.insert(hash(&(number, &reason)))
                    {
                        sink.log(Level::Error, format!("{}: {reason}, the old peers stay", name()));
                    }
                }
            }
        }
        all
    }

    fn resolve(
        &mut self,
        watched: &WatchedQuery,
        instances: &Instances,
        resolver: &dyn Resolve,
        sink: &dyn Sink,
    ) -> Option<Duration> {
        let budget = watched.endpoint.connect_timeout;
        let unresolved =
            self.names.refresh(&instances.good, resolver, (budget, watched.timing.resolve));
        for (host, error) in &unresolved {
            let of = instances.good.iter().filter(|instance| instance.host == *host);
            let skipped: Vec<_> = of
                .map(|instance| Skipped {
                    node: instance.node.clone(),
                    id: instance.id.clone(),
                    reason: format!("cannot resolve \"{host}\" ({error})"),
                })
                .collect();
            self.warn(watched, &skipped, "skipped", sink);
        }
        match (unresolved.is_empty(), self.names.is_empty()) {
            (false, _) => Some(WAIT_UNRESOLVED),
            // The addresses change without Consul.
            (true, false) => Some(watched.timing.resolve),
            (true, true) => None,
        }
    }

    fn judge(
        &mut self,
        (number, target): (usize, &Target),
        set: &PeerSet,
        may_confirm: bool,
        sink: &dyn Sink,
    ) -> Decision {
        let guard = self.guards.entry(number).or_default();
        if !target.policy.looks_at(set.peers().len()) && !guard.is_waiting() {
            return Decision::Publish { ended: None };
        }
        let held = sink.held(number);
        let next = set.peers().iter().map(|peer| peer.identity).collect();
        let verdict = guard.judge(&policy_of(target), (&held, &next), may_confirm, Instant::now());
        if !self.quiet {
            if let Some(line) = told(target, &verdict, held.len()) {
                sink.log(Level::Warn, line);
            }
        }
        verdict
    }

    /// `verb`: what becomes of the instances, or of the parts that can't be used.
    fn warn(&mut self, watched: &WatchedQuery, skipped: &[Skipped], verb: &str, sink: &dyn Sink) {
        if self.quiet {
            return;
        }
        let name = query_name(&watched.query);
        let warned = &mut self.warned;
        let is_new = |one: &&Skipped| warned.len() < MAX_WARNINGS && warned.insert(hash(one));
        let new: Vec<&Skipped> = skipped.iter().filter(is_new).collect();
        for skipped in new.iter().take(MAX_WARNINGS_PER_ANSWER) {
            let (id, node) = (quote(&skipped.id), quote(&skipped.node));
            let reason = &skipped.reason;
            let who = match watched.query.source {
                Source::Kv => format!("key \"{id}\""),
                _ => format!("instance \"{id}\" on node \"{node}\""),
            };
            let line = format!("{name}: {who} {verb}: {reason}");
            sink.log(Level::Warn, line);
        }
        let more = new.len().saturating_sub(MAX_WARNINGS_PER_ANSWER);
        if more > 0 {
            sink.log(Level::Warn, format!("{name}: {more} more instances {verb}"));
        }
    }
}

/// What the log says of a removal that begins to wait, or that is off.
fn told(target: &Target, verdict: &Decision, held: usize) -> Option<String> {
    let name = target_name(&target.query, &target.selection);
    match verdict {
        Decision::Hold { pending: Pending { removals, of, .. }, is_new: true, .. } => {
            Some(match of {
                0 => format!(
                    "{name}: the answer lacks {removals} of {held} peers, which stay (consul_empty \
                     keep)"
                ),
                reads => format!(
                    "{name}: the answer lacks {removals} of {held} peers, which stay until {} agree",
                    count((*reads).into(), "more read")
                ),
            })
        }
        Decision::Publish { ended: Some((pending, after)) } => Some(format!(
            "{name}: {} not confirmed, peers are listed again after {after:.1?}",
            count(pending.removals, "removal"),
        )),
        _ => None,
    }
}

fn count(number: u32, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}

fn hash(value: &impl Hash) -> u64 {
    let mut h = DefaultHasher::new();
    value.hash(&mut h);
    h.finish()
}

#[cfg(test)]
mod tests;
