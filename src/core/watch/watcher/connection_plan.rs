//! How the connections are shared out.

use std::cmp::Reverse;
use std::time::Duration;

use super::budget::START;
use crate::model::Limit;
use crate::watch::overview_watch::{PAUSE_NAMES, VIEWS};

/// Fewest connections with which overviews pay, and fewest services.
const OVERVIEW_CONNECTIONS: usize = 6;
const OVERVIEW_SERVICES: usize = 6;
/// Most connections that read services in turn at a time.
const MAX_READERS: usize = 16;
/// How often a service is asked that no overview speaks for, at least.
const SWEEP: Duration = Duration::from_millis(4500);
/// Reads a second in a sweep without overviews: what 2,000 services need.
const SWEEP_RATE: f64 = 450.0;
/// Time for a sweep that an overview asks for, within these rates of reads a second.
const TRIGGERED_SWEEP: f64 = 3.5;
const MIN_TRIGGERED_RATE: f64 = 250.0;
const MAX_TRIGGERED_RATE: f64 = 600.0;

/// What there is to share out.
#[derive(Clone, Debug)]
pub(super) struct Demand {
    /// Connections that may be used now, and those that others leave.
    pub(super) budget: usize,
    pub(super) available: usize,
    /// Connections that may be used at most, and what bounds them.
    pub(super) most: (usize, Limit),
    /// Watches that can block.
    pub(super) watches: usize,
    /// Of each scope of an overview, the watches.
    pub(super) scopes: Vec<usize>,
}

/// Who gets what.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ConnectionPlan {
    pub(super) budget: usize,
    /// Each watch has a blocking query of its own.
    pub(super) all_block: bool,
    /// Most blocking queries of watches at a time.
    pub(super) polls: usize,
    /// Whether overviews speak for a scope.
    pub(super) overviews: Vec<bool>,
    /// Most reads at a time.
    pub(super) readers: usize,
    /// Between two reads of a service that no overview speaks for.
    pub(super) interval: Duration,
    /// Between the reads of a sweep.
    pub(super) spacing: Duration,
    /// Connections that would give each watch a blocking query.
    pub(super) needed: usize,
    /// What keeps them away, if they are out of reach.
    pub(super) limit: Option<Limit>,
    available: usize,
    watches: usize,
}

impl ConnectionPlan {
    pub(super) fn of(demand: &Demand) -> ConnectionPlan {
        let Demand { budget, available, most: (most, limit), watches, ref scopes } = *demand;
        let budget = budget.max(1);
        let count = watches as f64;
        let rate = (count / TRIGGERED_SWEEP).clamp(MIN_TRIGGERED_RATE, MAX_TRIGGERED_RATE);
        let fits = |budget: &usize| budget - reserve(*budget) >= watches;
        let needed = (watches.max(1)..).find(fits).unwrap_or(usize::MAX);
        let polls = budget - reserve(budget);
        let mut plan = ConnectionPlan {
            budget,
            all_block: true,
            polls,
            overviews: vec![false; scopes.len()],
            readers: budget,
            interval: SWEEP.max(Duration::from_secs_f64(count / SWEEP_RATE)),
            spacing: Duration::from_secs_f64(1.0 / rate),
            needed,
            limit: (needed > most).then_some(limit),
            available,
            watches,
        };
        if watches > polls {
            plan.trigger(scopes);
        }
        plan
    }

    /// There are too few connections: overviews say which services to read.
    fn trigger(&mut self, scopes: &[usize]) {
        self.all_block = false;
        self.readers = (self.budget / 4).clamp(1, MAX_READERS);
        let (mut left, mut uncovered) = (self.budget - self.readers, self.watches);
        let mut largest: Vec<usize> = (0..scopes.len()).collect();
        largest.sort_by_key(|&scope| Reverse(scopes[scope]));
        for scope in largest.into_iter().filter(|&scope| scopes[scope] >= OVERVIEW_SERVICES) {
            // Half of the connections are enough for overviews.
            let is_room = left >= VIEWS.len() + self.budget / 4;
            if self.budget < OVERVIEW_CONNECTIONS || !is_room {
                break;
            }
            left -= VIEWS.len();
            uncovered -= scopes[scope];
            self.overviews[scope] = true;
        }
        // Whom no overview can speak for may block, if all of these can.
        self.polls =
            if self.overviews.contains(&true) && uncovered <= left { uncovered } else { 0 };
    }

    /// Threads that the plan needs while `blocking` queries are under way.
    pub(super) fn threads(&self, blocking: usize) -> usize {
        let overviews = self.overviews.iter().filter(|on| **on).count() * VIEWS.len();
        let (own, spare) = match self.all_block {
            true => (self.watches, reserve(self.budget)),
            false => (self.polls + overviews, self.readers),
        };
        (own.max(blocking) + spare.max(1)).min(self.budget)
    }

    /// Connections that the engine should have.
    pub(super) fn wanted(&self) -> usize {
        if self.needed <= self.available { self.needed } else { START.min(self.available) }
    }

    /// Longest expected time until a change is seen where an overview speaks, but can't tell of
    /// whom.
    pub(super) fn triggered_delay(&self) -> Duration {
        let sweep = self.spacing.mul_f64(self.watches as f64);
        sweep + PAUSE_NAMES + Duration::from_millis(500)
    }

    /// The same where none does.
    pub(super) fn sweep_delay(&self) -> Duration {
        self.interval + Duration::from_millis(500)
    }

    /// What the operator should know.
    pub(super) fn notice(&self) -> String {
        let ConnectionPlan { watches, budget, needed, .. } = *self;
        if self.all_block {
            return format!("{watches} services, each has a blocking query of its own");
        }
        let seconds = |delay: Duration| format!("{:.1}s", delay.as_secs_f64());
        let sweep = seconds(self.sweep_delay());
        let how = if self.overviews.contains(&true) {
            format!(
                "queries about all services say which to read: health at once, the rest within \
                 {}, or {sweep} where those queries fail",
                seconds(self.triggered_delay())
            )
        } else {
            format!("they are read in turn and see changes within {sweep}")
        };
        let limit =
            self.limit.map_or("connections of earlier workers that are still to end", Limit::what);
        format!(
            "more services than consul_connections: {watches} services, {budget} connections, a \
             blocking query for each needs {needed} (limited by {limit}); {how}"
        )
    }
}

/// Connections that blocking queries leave free: for reads, also those of the next engine after a
/// reload.
fn reserve(budget: usize) -> usize {
    if budget < 2 { 0 } else { (budget / 8).clamp(1, MAX_READERS) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(budget: usize, watches: usize, scopes: &[usize]) -> ConnectionPlan {
        let (most, available) = ((budget.max(1), Limit::Configured), budget);
        ConnectionPlan::of(&Demand { budget, available, most, watches, scopes: scopes.to_vec() })
    }

    #[test]
    fn what_fits_blocks_and_leaves_an_eighth_free() {
        for (budget, most) in [(0, 1), (1, 1), (2, 1), (8, 7), (64, 56), (2100, 2084)] {
            let all = plan(budget, most, &[most]);
            assert!(all.all_block && all.polls == most && !all.overviews[0], "{all:?}");
            assert_eq!((all.limit, all.threads(0)), (None, budget.max(1)));
            let more = plan(budget, most + 1, &[most]);
            assert!(!more.all_block && more.limit == Some(Limit::Configured), "{more:?}");
            assert!(more.needed > budget && plan(more.needed, most + 1, &[]).all_block, "{more:?}");
            assert!(!plan(more.needed - 1, most + 1, &[]).all_block || budget == 0, "{more:?}");
        }
    }

    #[test]
    fn never_more_than_the_budget() {
        for budget in 1..200 {
            for watches in [0, 1, 5, 50, 5000] {
                let plan = plan(budget, watches, &[watches / 2, watches / 3, 2.min(watches)]);
                let overviews = plan.overviews.iter().filter(|on| **on).count() * VIEWS.len();
                assert!(plan.polls + overviews <= budget, "{plan:?}");
                assert!(plan.threads(0) >= 1 && plan.threads(500) <= budget, "{plan:?}");
                if !plan.all_block {
                    assert!(plan.polls + overviews + plan.readers <= budget, "{plan:?}");
                    assert!(plan.readers >= 1);
                }
            }
        }
    }

    #[test]
    fn overviews_take_the_large_scopes_and_at_most_half_of_the_connections() {
        assert_eq!(plan(64, 2000, &[2, 1000, 900]).overviews, [false, true, true]);
        assert_eq!(plan(5, 2000, &[2000]).overviews, [false]);
        let many = plan(64, 2000, &[20; 100]);
        assert_eq!(many.overviews.iter().filter(|on| **on).count(), 10);
    }

    #[test]
    fn whom_no_overview_speaks_for_blocks_if_all_of_these_can() {
        assert_eq!(plan(64, 140, &[100, 3]).polls, 40);
        assert_eq!(plan(64, 200, &[100, 3]).polls, 0);
        assert_eq!(plan(5, 10, &[10]).polls, 0);
    }

    #[test]
    fn more_than_can_be_had_is_not_wanted() {
        let most = (900, Limit::Configured);
        let few = Demand { budget: 64, available: 900, most, watches: 800, scopes: vec![800] };
        let plan = ConnectionPlan::of(&few);
        assert_eq!((plan.limit, plan.wanted()), (None, 816));
        // After a reload, until the connections of before have ended.
        let plan = ConnectionPlan::of(&Demand { available: 100, ..few.clone() });
        assert_eq!((plan.limit, plan.wanted()), (None, 64));
        let many = ConnectionPlan::of(&Demand { watches: 1000, scopes: vec![1000], ..few });
        assert_eq!((many.limit, many.wanted()), (Some(Limit::Configured), 64));
    }

    #[test]
    fn delays_keep_below_five_seconds_up_to_two_thousand_and_grow_then() {
        for watches in [100, 500, 2000] {
            let plan = plan(64, watches, &[watches]);
            assert!(plan.triggered_delay() <= Duration::from_secs(5), "{plan:?}");
            assert!(plan.sweep_delay() <= Duration::from_secs(5), "{plan:?}");
        }
        let many = plan(64, 10_000, &[10_000]);
        assert!(many.triggered_delay() > Duration::from_secs(15));
        assert!(many.sweep_delay() > Duration::from_secs(20));
    }
}
