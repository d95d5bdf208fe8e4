//! Where not each service can have a blocking query: overviews say which services to read.

use std::time::Instant;

use super::connection_plan::{ConnectionPlan, Demand};
use super::scheduler::{Entry, Scheduler};
use crate::model::Limit;
use crate::watch::overview_watch::{OverviewDiff, OverviewOutcome, OverviewWatch, VIEWS};
use crate::watch::plan::WatchedQuery;

/// Reads that a sweep may be ahead of its pace, after a time without any.
const CREDIT: u32 = 2000;

/// The services of one datacenter, seen through one token, and the overviews that speak for them.
pub(super) struct Scope {
    watched: WatchedQuery,
    is_active: bool,
    /// `None` while a thread has it.
    overviews: [Option<Box<OverviewWatch>>; VIEWS.len()],
    good: [bool; VIEWS.len()],
}

impl Scope {
    /// Whether overviews speak for it.
    pub(super) fn is_vouched(&self) -> bool {
        self.is_active && self.good == [true; VIEWS.len()]
    }
}

impl Scheduler {
    /// Number of the scope that this overview is about.
    pub(super) fn number_of_scope(&mut self, watched: WatchedQuery) -> usize {
        if let Some(number) = self.scopes.iter().position(|scope| scope.watched == watched) {
            return number;
        }
        self.scopes.push(Scope {
            watched,
            is_active: false,
            overviews: [const { None }; VIEWS.len()],
            good: [false; VIEWS.len()],
        });
        self.scopes.len() - 1
    }

    /// Whether one more overview may block: reads must not wait for the end of a query.
    fn may_block_overview(&self) -> bool {
        self.blocking + 1 < self.plan.budget
    }

    /// When each overview is due that no thread has, and that may run.
    pub(super) fn overviews_due(&self) -> impl Iterator<Item = Instant> {
        let may_block = self.may_block_overview();
        let all = self.scopes.iter().flat_map(|scope| scope.overviews.iter().flatten());
        all.filter(move |overview| may_block || !overview.will_block())
            .map(|overview| overview.due().unwrap_or(self.cursor))
    }

    /// The next overview to run.
    pub(super) fn take_overview(
        &mut self,
        now: Instant,
    ) -> Option<((usize, usize), Box<OverviewWatch>)> {
        let may_block = self.may_block_overview();
        let is_ready = |overview: &mut Box<OverviewWatch>| {
            overview.due().is_none_or(|due| due <= now) && (may_block || !overview.will_block())
        };
        self.scopes.iter_mut().enumerate().find_map(|(number, scope)| {
            let mut places = scope.overviews.iter_mut().enumerate();
            places.find_map(|(view, place)| Some(((number, view), place.take_if(is_ready)?)))
        })
    }

    /// Takes an overview back, with what came of it.
    pub(super) fn put_overview(
        &mut self,
        (number, view): (usize, usize),
        overview: Box<OverviewWatch>,
        outcome: OverviewOutcome,
        now: Instant,
    ) {
        let scope = &mut self.scopes[number];
        // It may have been under way for an earlier time.
        if !scope.is_active || scope.overviews[view].is_some() {
            return;
        }
        scope.overviews[view] = Some(overview);
        let was_vouched = scope.is_vouched();
        match outcome {
            OverviewOutcome::Idle => {}
            OverviewOutcome::Failed => {
                scope.good[view] = false;
                if was_vouched {
                    self.sweep(number, now);
                }
            }
            OverviewOutcome::Found(OverviewDiff { named, is_all }) => {
                scope.good[view] = true;
                let concerns = |entry: &Entry| {
                    let on = |node: &u64| entry.job.as_ref().is_none_or(|job| job.is_on(*node));
                    named.services.contains(&entry.name) || named.nodes.iter().any(on)
                };
                let ids = if named.is_empty() { Vec::new() } else { self.ids(number, concerns) };
                ids.into_iter().for_each(|id| self.read(id, now));
                if is_all {
                    self.sweep(number, now);
                }
            }
        }
    }

    /// The watches of a scope that are so.
    fn ids(&self, scope: usize, is_wanted: impl Fn(&Entry) -> bool) -> Vec<u64> {
        let of_scope = self.entries.iter().filter(|(_, entry)| entry.scope == Some(scope));
        of_scope.filter(|(_, entry)| is_wanted(entry)).map(|(id, _)| *id).collect()
    }

    /// Something may have changed, nobody knows where: reads all, at a bounded rate.
    fn sweep(&mut self, scope: usize, now: Instant) {
        let spacing = self.plan.spacing;
        self.cursor = self.cursor.max(now.checked_sub(spacing * CREDIT).unwrap_or(now));
        for id in self.ids(scope, |entry| !entry.is_swept) {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            let Some(job) = &mut entry.job else {
                entry.again |= !entry.is_blocking;
                continue;
            };
            entry.is_swept = true;
            self.cursor += spacing;
            job.watch.advance(self.cursor.max(now));
            self.requeue(id, now);
        }
    }

    /// Shares the connections out anew: at most `most`, less the `foreign` ones of other engines.
    pub(super) fn replan(&mut self, most: (usize, Limit), foreign: usize, now: Instant) {
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
        let available = most.0.saturating_sub(foreign);
        let budget = available.min(self.budget.allowed());
        self.plan = ConnectionPlan::of(&Demand { budget, available, most, watches, scopes });
        self.activate(now);
        self.assign(now);
    }

    /// Sets overviews to work, or ends them.
    fn activate(&mut self, now: Instant) {
        for (scope, &is_wanted) in self.scopes.iter_mut().zip(&self.plan.overviews) {
            if scope.is_active == is_wanted {
                continue;
            }
            scope.is_active = is_wanted;
            scope.good = [false; VIEWS.len()];
            for (place, view) in scope.overviews.iter_mut().zip(VIEWS) {
                let new = || Box::new(OverviewWatch::new(scope.watched.clone(), view, now));
                *place = is_wanted.then(new);
            }
        }
    }

    /// Decides who has a blocking query: all, or those that no overview can speak for.
    fn assign(&mut self, now: Instant) {
        let ConnectionPlan { all_block, polls, ref overviews, .. } = self.plan;
        let mut room = self.free_polls();
        let mut begin = Vec::new();
        for (&id, entry) in &mut self.entries {
            let is_covered = entry.scope.is_some_and(|scope| overviews[scope]);
            let has_place = all_block || polls > 0 && !is_covered;
            entry.is_polled = entry.can_block() && entry.settled <= now && has_place;
            if let (true, 1.., Some(job)) = (entry.is_polled, room, &mut entry.job) {
                room -= 1;
                job.watch.set_sweep(None);
                begin.push(id);
            }
        }
        begin.into_iter().for_each(|id| self.requeue(id, now));
    }
}
