//! From a valid answer to the sets of peers in the sink, unless a removal has to be confirmed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::plan::{Followed, Target};
use super::sink::{Published, Sink};
use super::snapshot::{self, HostNames};
use super::warnings::Warnings;
use crate::consul::blocking;
use crate::consul::endpoint::WatchedQuery;
use crate::consul::query::ReadFrom;
use crate::consul::removal::{Decision, OnEmpty, Policy, RemovalGuard};
use crate::model::{Consistency, Instances, Level, Peer, PeerSet, Pending, Skipped};
use crate::resolve::Resolve;

/// Longest `wait` while a host name has no address.
const WAIT_UNRESOLVED: Duration = Duration::from_secs(5);
/// With `consistency=stale`: time after `consul_max_stale` at which a server that is cut off from
/// its leader has noticed.
const CUT_OFF: Duration = Duration::from_secs(1);
/// The same if `consul_max_stale` is off: twice Consul's heartbeat timeout.
const UNBOUNDED: Duration = Duration::from_secs(10);

/// Publishes the answers to one query, and remembers which removals wait for confirmation.
#[derive(Default)]
pub(super) struct Publisher {
    /// Of the query, in log lines.
    name: String,
    warnings: Warnings,
    names: HostNames,
    guards: HashMap<usize, RemovalGuard>,
    /// Index and digest of the newest answer.
    latest: Option<(u64, u128)>,
    pub(super) last: LastPublication,
}

/// The last publication: its number, and the server whose answer it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LastPublication {
    count: u64,
    pub(super) server: usize,
}

/// The sets of an answer, and for each whether to publish it.
pub(super) struct Prepared {
    index: u64,
    sets: Vec<(Followed, PeerSet, Decision)>,
    max_wait: Option<Duration>,
}

impl Prepared {
    /// Whether enough reads agree on a removal.
    pub(super) fn is_confirmed(&self) -> bool {
        self.sets.iter().any(|(.., decision)| matches!(decision, Decision::Confirmed { .. }))
    }

    /// When to read again, if a removal waits for that.
    pub(super) fn read_again_at(&self) -> Option<Instant> {
        let again = |decision: &Decision| match decision {
            Decision::Hold { again, .. } => *again,
            _ => None,
        };
        self.sets.iter().filter_map(|(.., decision)| again(decision)).min()
    }

    /// The targets, each with the removal that the answer asks for and that is not confirmed yet.
    pub(super) fn targets(&self) -> impl Iterator<Item = (&Followed, Option<Pending>)> {
        self.sets.iter().map(|(followed, _, decision)| match decision {
            Decision::Hold { pending, .. } => (followed, Some(*pending)),
            _ => (followed, None),
        })
    }

    /// The longest `wait` that the host names in the answer allow.
    pub(super) fn max_wait(&self) -> Option<Duration> {
        self.max_wait
    }
}

impl Publisher {
    /// The publisher of a query with this name in log lines.
    pub(super) fn new(name: String) -> Self {
        Publisher { name, ..Publisher::default() }
    }

    /// One that logs changes only: a later watcher logs the warnings.
    pub(super) fn quiet() -> Self {
        Publisher { warnings: Warnings::quiet(), ..Publisher::default() }
    }

    /// Whether an answer from a copy of the state is older than the newest answer.
    pub(super) fn is_outdated(&self, index: u64, digest: u128) -> bool {
        blocking::is_outdated(self.latest, index, digest)
    }

    /// Notes a published answer of a server: index, digest and whether it is a copy's.
    pub(super) fn note(&mut self, (index, digest, is_copy): (u64, u128, bool), server: usize) {
        let before = self.latest.filter(|_| is_copy).map_or(0, |(index, _)| index);
        self.latest = Some((index.max(before), digest));
        self.last = LastPublication { count: self.last.count + 1, server };
    }

    /// Where a read has to come from: a copy of the state can't confirm a removal.
    pub(super) fn from(&self) -> ReadFrom {
        match self.guards.values().any(RemovalGuard::is_waiting) {
            true => ReadFrom::Server,
            false => ReadFrom::Anywhere,
        }
    }

    /// Makes the sets of an answer (index, instances, whether it may confirm a removal), and decides
    /// about each.
    pub(super) fn prepare(
        &mut self,
        watched: &WatchedQuery,
        targets: &[Followed],
        (index, instances, may_confirm): (u64, &Instances, bool),
        resolver: &dyn Resolve,
        sink: &dyn Sink,
    ) -> Prepared {
        let who = (&*self.name, watched.query.source);
        self.warnings.log_skipped(who, &instances.skipped, "skipped", sink);
        self.warnings.log_skipped(who, &instances.flawed, "ignored", sink);
        let max_wait = self.resolve(watched, instances, resolver, sink);
        if self.guards.len() > targets.len() {
            self.guards.retain(|number, _| targets.iter().any(|t| t.number == *number));
        }
        let mut sets = Vec::with_capacity(targets.len());
        for followed in targets {
            let target = &followed.target;
            let (set, excluded) = snapshot::peers(&instances.good, &target.selection, &self.names);
            let who = (&*self.name, watched.query.source);
            self.warnings.log_skipped(who, &excluded, "skipped", sink);
            self.warnings.log_skipped(who, &own_listeners(&set, sink), "used", sink);
            let decision = self.decide(followed, &set, may_confirm, sink);
            sets.push((followed.clone(), set, decision));
        }
        Prepared { index, sets, max_wait }
    }

    /// Publishes what was decided so; `false` if the sink refused a set.
    pub(super) fn publish(&mut self, prepared: &Prepared, sink: &dyn Sink) -> bool {
        let index = prepared.index;
        let mut all = true;
        for (followed, set, decision) in &prepared.sets {
            let Followed { number, name, .. } = followed;
            let is_held = matches!(decision, Decision::Hold { .. });
            if is_held || followed.is_gone() {
                continue;
            }
            if let Decision::Confirmed { pending, after } = decision {
                if let Some(guard) = self.guards.get_mut(number) {
                    guard.settle();
                }
                let line = format!(
                    "{name}: {} confirmed by {} within {after:.1?}",
                    count(pending.removals, "removal"),
                    count(pending.confirmed.into(), "more read"),
                );
                sink.log(Level::Warn, line);
            }
            match sink.publish(*number, set, index) {
                Published::Unchanged => {}
                Published::Changed { peers, added, removed, changed } => {
                    let s = if peers == 1 { "" } else { "s" };
                    let others = if changed == 0 { String::new() } else { format!(" ~{changed}") };
                    let line = format!(
                        "{name}: {peers} peer{s} (+{added} -{removed}{others}), index {index}"
                    );
                    sink.log(Level::Notice, line);
                    self.warnings.on_published();
                }
                Published::Refused(reason) => {
                    all = false;
                    self.warnings.log_refused(*number, name, &reason, sink);
                }
            }
        }
        all
    }

    /// Looks up the host names of an answer; gives the longest `wait` that they allow.
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
            let who = (&*self.name, watched.query.source);
            self.warnings.log_skipped(who, &skipped, "skipped", sink);
        }
        match (unresolved.is_empty(), self.names.is_empty()) {
            (false, _) => Some(WAIT_UNRESOLVED),
            // Their addresses change without an answer of Consul.
            (true, false) => Some(watched.timing.resolve),
            (true, true) => None,
        }
    }

    /// Whether the set of a target may be published, or removes too many peers.
    fn decide(
        &mut self,
        Followed { number, target, name, .. }: &Followed,
        set: &PeerSet,
        may_confirm: bool,
        sink: &dyn Sink,
    ) -> Decision {
        let guard = self.guards.entry(*number).or_default();
        if !target.policy.restricts(set.peers().len()) && !guard.is_waiting() {
            return Decision::Publish { ended: None };
        }
        let held = sink.published_identities(*number);
        let next = set.peers().iter().map(|peer| peer.identity).collect();
        let decision =
            guard.decide(&policy_of(target), (&held, &next), may_confirm, Instant::now());
        if !self.warnings.is_quiet() {
            if let Some(line) = removal_line(name, &decision, held.len()) {
                sink.log(Level::Warn, line);
            }
        }
        decision
    }
}

/// Peers at which this nginx itself listens.
fn own_listeners(set: &PeerSet, sink: &dyn Sink) -> Vec<Skipped> {
    let own = set.peers().iter().filter(|peer| sink.listens_on(peer.addr));
    let warning = |peer: &Peer| Skipped {
        node: peer.node.clone(),
        id: peer.id.clone(),
        reason: format!("this nginx itself listens on {}, requests may go in a circle", peer.addr),
    };
    own.map(warning).collect()
}

/// The policy of a target. A server that is cut off may lack what the others have agreed on, and
/// answers stale queries for a while before it notices: it can't confirm an empty answer sooner.
fn policy_of(target: &Target) -> Policy {
    let mut policy = target.policy;
    if let (OnEmpty::Confirm(confirm), Consistency::Stale) =
        (&mut policy.on_empty, target.query.consistency)
    {
        let noticed = target.timing.max_stale.map_or(UNBOUNDED, |limit| limit + CUT_OFF);
        confirm.over = confirm.over.max(noticed);
    }
    policy
}

/// The line about a removal that begins to wait for confirmation, or that is cancelled.
fn removal_line(name: &str, decision: &Decision, held: usize) -> Option<String> {
    match decision {
        Decision::Hold { pending: Pending { removals, of, .. }, is_new: true, .. } => {
            Some(match of {
                0 => format!(
                    "{name}: {removals} of {held} peers are missing from the answer, kept \
                     (consul_empty keep)"
                ),
                reads => format!(
                    "{name}: {removals} of {held} peers are missing from the answer, kept until \
                     confirmed by {}",
                    count((*reads).into(), "more read")
                ),
            })
        }
        Decision::Publish { ended: Some((pending, after)) } => Some(format!(
            "{name}: {} cancelled after {after:.1?}, the peers are listed again",
            count(pending.removals, "removal"),
        )),
        _ => None,
    }
}

/// `1 peer`, `2 peers`.
fn count(number: u32, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
