//! Who may block, and who is read: follows the outcome of overview watches, and shares the
//! connections out anew.

use std::time::Instant;

use super::connection_plan::{ConnectionPlan, Load};
use super::scheduler::Scheduler;
use super::scopes::OverviewId;
use super::task::Entry;
use crate::model::Limit;
use crate::watch::overview_watch::{OverviewDiff, OverviewOutcome, OverviewWatch};

/// Reads that a full poll may be ahead of its pace, after a time without any.
const CREDIT: u32 = 2000;

impl Scheduler {
    /// Takes an overview watch back, and reads the services that its outcome names.
    pub(super) fn put_overview(
        &mut self,
        id: OverviewId,
        overview: Box<OverviewWatch>,
        outcome: OverviewOutcome,
        now: Instant,
    ) {
        let (scope, _) = id;
        if !self.scopes.put(id, overview) {
            return;
        }
        match outcome {
            OverviewOutcome::Idle => {}
            OverviewOutcome::Failed => {
                let was_covered = self.scopes.is_covered(scope);
                self.scopes.note_answered(id, false);
                if was_covered {
                    self.poll_all(scope, now);
                }
            }
            OverviewOutcome::Changed(OverviewDiff { named, is_unattributed }) => {
                self.scopes.note_answered(id, true);
                let has_changed = |entry: &Entry| {
                    let on =
                        |node: &u64| entry.query.as_ref().is_none_or(|query| query.is_on(*node));
                    named.services.contains(&entry.name) || named.nodes.iter().any(on)
                };
                let ids = if named.is_empty() { Vec::new() } else { self.ids(scope, has_changed) };
                ids.into_iter().for_each(|id| self.read(id, now));
                if is_unattributed {
                    self.poll_all(scope, now);
                }
            }
        }
    }

    /// The subscriptions of a scope that match.
    fn ids(&self, scope: usize, matches: impl Fn(&Entry) -> bool) -> Vec<u64> {
        let of_scope = self.entries.iter().filter(|(_, entry)| entry.scope == Some(scope));
        of_scope.filter(|(_, entry)| matches(entry)).map(|(id, _)| *id).collect()
    }

    /// Any service of a scope may have changed: reads all of them, at a limited rate.
    fn poll_all(&mut self, scope: usize, now: Instant) {
        let stagger = self.plan.stagger;
        let earliest = now.checked_sub(stagger * CREDIT).unwrap_or(now);
        self.full_poll_until = self.full_poll_until.max(earliest);
        for id in self.ids(scope, |entry| !entry.is_in_full_poll) {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            let Some(query) = &mut entry.query else {
                entry.read_when_back |= !entry.is_blocking;
                continue;
            };
            entry.is_in_full_poll = true;
            self.full_poll_until += stagger;
            query.rules.poll_by(self.full_poll_until.max(now));
            self.requeue(id, now);
        }
    }

    /// Shares the connections out anew: at most `most`, less the `earlier` ones of other watchers.
    pub(super) fn replan(&mut self, most: (usize, Limit), earlier: usize, now: Instant) {
        let most = match self.budget.refused(now).filter(|refused| *refused <= most.0) {
            Some(refused) => (refused - 1, Limit::Refused),
            None => most,
        };
        let mut scopes = vec![0; self.scopes.len()];
        let mut watches = 0;
        for entry in self.entries.values().filter(|entry| entry.can_block()) {
            watches += 1;
            entry.scope.into_iter().for_each(|scope| scopes[scope] += 1);
        }
        let available = most.0.saturating_sub(earlier);
        let budget = available.min(self.budget.allowed());
        self.plan = ConnectionPlan::of(&Load { budget, available, most, watches, scopes });
        self.scopes.activate(&self.plan.overviews, now);
        self.assign_blocking_queries(now);
    }

    /// Gives a blocking query to all services, or to those that no overview watch covers.
    fn assign_blocking_queries(&mut self, now: Instant) {
        let mut room = self.free_blocking_queries();
        let mut begin = Vec::new();
        for (&id, entry) in &mut self.entries {
            entry.shall_block = self.plan.lets_block(entry);
            if let (true, 1.., Some(query)) = (entry.shall_block, room, &mut entry.query) {
                room -= 1;
                query.rules.set_poll_interval(None);
                begin.push(id);
            }
        }
        begin.into_iter().for_each(|id| self.requeue(id, now));
    }
}

impl ConnectionPlan {
    /// Whether a subscription is to have a blocking query.
    pub(super) fn lets_block(&self, entry: &Entry) -> bool {
        let of = entry.scope.and_then(|scope| self.overviews.get(scope));
        let is_covered = of.is_some_and(|is_covered| *is_covered);
        entry.can_block() && (self.all_block || self.blocking_queries > 0 && !is_covered)
    }
}
