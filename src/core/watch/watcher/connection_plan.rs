//! Which queries get the connections: a blocking query for each service, or overview watches and
//! polling.

use std::cmp::Reverse;
use std::time::Duration;

use super::budget::START;
use crate::model::Limit;
use crate::watch::overview_watch::{PAUSE_NAMES, VIEWS};

/// Fewest connections and fewest services for which overview watches are used.
const OVERVIEW_CONNECTIONS: usize = 6;
const OVERVIEW_SERVICES: usize = 6;
/// Most connections that poll services at a time.
const MAX_READERS: usize = 16;
/// How often a service is read that no overview watch covers, at least.
const POLL: Duration = Duration::from_millis(4500);
/// Reads a second without overview watches: what 2,000 services need.
const POLL_RATE: f64 = 450.0;
/// Seconds for a read of all services that an overview watch asks for, within these rates of reads
/// a second.
const FULL_POLL: f64 = 3.5;
const MIN_TRIGGERED_RATE: f64 = 250.0;
const MAX_TRIGGERED_RATE: f64 = 600.0;

/// What the plan is made from.
#[derive(Clone, Debug)]
pub(super) struct Load {
    /// Connections that may be used now, and those that earlier watchers leave.
    pub(super) budget: usize,
    pub(super) available: usize,
    /// Connections that may be used at most, and what bounds them.
    pub(super) most: (usize, Limit),
    /// Queries that can block.
    pub(super) watches: usize,
    /// How many of them each scope has.
    pub(super) scopes: Vec<usize>,
}

/// Which queries get the connections.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ConnectionPlan {
    pub(super) budget: usize,
    /// Each query blocks.
    pub(super) all_block: bool,
    /// Most blocking queries about single services at a time.
    pub(super) blocking_queries: usize,
    /// Whether overview watches cover a scope.
    pub(super) overviews: Vec<bool>,
    /// Most reads at a time.
    pub(super) readers: usize,
    /// Time between two reads of a service that no overview watch covers.
    pub(super) poll_interval: Duration,
    /// Time between two reads of a full poll.
    pub(super) stagger: Duration,
    /// Connections that a blocking query for each service needs.
    pub(super) needed: usize,
    /// What limits the connections below that.
    pub(super) limit: Option<Limit>,
    available: usize,
    watches: usize,
}

impl ConnectionPlan {
    pub(super) fn of(load: &Load) -> ConnectionPlan {
        let Load { budget, available, most: (most, limit), watches, ref scopes } = *load;
        let budget = budget.max(1);
        let count = watches as f64;
        let rate = (count / FULL_POLL).clamp(MIN_TRIGGERED_RATE, MAX_TRIGGERED_RATE);
        let fits = |budget: &usize| budget - reserve(*budget) >= watches;
        let needed = (watches.max(1)..).find(fits).unwrap_or(usize::MAX);
        let blocking_queries = budget - reserve(budget);
        let mut plan = ConnectionPlan {
            budget,
            all_block: true,
            blocking_queries,
            overviews: vec![false; scopes.len()],
            readers: budget,
            poll_interval: POLL.max(Duration::from_secs_f64(count / POLL_RATE)),
            stagger: Duration::from_secs_f64(1.0 / rate),
            needed,
            limit: (needed > most).then_some(limit),
            available,
            watches,
        };
        if watches > blocking_queries {
            plan.use_overviews(scopes);
        }
        plan
    }

    /// There are too few connections: overview watches say which services to read.
    fn use_overviews(&mut self, scopes: &[usize]) {
        self.all_block = false;
        let scopes_at_a_time = scopes.len().min(self.budget / 2);
        self.readers = (self.budget / 4).max(scopes_at_a_time).clamp(1, MAX_READERS);
        let (mut left, mut uncovered) = (self.budget - self.readers, self.watches);
        let mut largest: Vec<usize> = (0..scopes.len()).collect();
        largest.sort_by_key(|&scope| Reverse(scopes[scope]));
        for scope in largest.into_iter().filter(|&scope| scopes[scope] >= OVERVIEW_SERVICES) {
            // At most about half of the connections are for overview watches.
            let is_room = left >= VIEWS.len() + self.budget / 4;
            if self.budget < OVERVIEW_CONNECTIONS || !is_room {
                break;
            }
            left -= VIEWS.len();
            uncovered -= scopes[scope];
            self.overviews[scope] = true;
        }
        // The services that no overview watch covers block, if all of them can.
        self.blocking_queries =
            if self.overviews.contains(&true) && uncovered <= left { uncovered } else { 0 };
    }

    /// Threads that the plan needs while `blocking` queries and `reads` are under way.
    pub(super) fn threads(&self, blocking: usize, reads: usize) -> usize {
        let overviews = self.overviews.iter().filter(|on| **on).count() * VIEWS.len();
        let (own, spare) = match self.all_block {
            true => (self.watches, reserve(self.budget)),
            false => (self.blocking_queries + overviews, self.readers),
        };
        (own.max(blocking) + spare.max(reads).max(1)).min(self.budget)
    }

    /// Connections that the watcher should have.
    pub(super) fn wanted(&self) -> usize {
        if self.needed <= self.available { self.needed } else { START.min(self.available) }
    }

    /// Longest expected time until a change is seen that an overview watch can't attribute to a
    /// service.
    pub(super) fn triggered_delay(&self) -> Duration {
        let full_poll = self.stagger.mul_f64(self.watches as f64);
        full_poll + PAUSE_NAMES + Duration::from_millis(500)
    }

    /// Longest expected time until a change is seen without overview watches.
    pub(super) fn poll_delay(&self) -> Duration {
        self.poll_interval + Duration::from_millis(500)
    }

    /// The log line about the plan.
    pub(super) fn notice(&self) -> String {
        let ConnectionPlan { watches, budget, needed, .. } = *self;
        if self.all_block {
            return format!("each of {watches} services has its own blocking query");
        }
        let seconds = |delay: Duration| format!("{:.1}s", delay.as_secs_f64());
        let polled = seconds(self.poll_delay());
        let how = if self.overviews.contains(&true) {
            format!(
                "overview watches show changes of health at once and others within {}; if they \
                 fail, all within {polled}",
                seconds(self.triggered_delay())
            )
        } else {
            format!("every service is polled, changes are seen within {polled}")
        };
        let limit = self
            .limit
            .map_or("connections of earlier workers that have not ended yet", Limit::what);
        format!(
            "more services than consul_connections: {watches} services, {budget} connections, a \
             blocking query for each needs {needed} (limited by {limit}); {how}"
        )
    }
}

/// Connections that blocking queries leave free: for reads, also those of the next watcher after a
/// reload.
fn reserve(budget: usize) -> usize {
    if budget < 2 { 0 } else { (budget / 8).clamp(1, MAX_READERS) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(budget: usize, watches: usize, scopes: &[usize]) -> ConnectionPlan {
        let (most, available) = ((budget.max(1), Limit::Configured), budget);
        ConnectionPlan::of(&Load { budget, available, most, watches, scopes: scopes.to_vec() })
    }

    #[test]
    fn what_fits_blocks_and_leaves_an_eighth_free() {
        for (budget, most) in [(0, 1), (1, 1), (2, 1), (8, 7), (64, 56), (2100, 2084)] {
            let all = plan(budget, most, &[most]);
            assert!(all.all_block && all.blocking_queries == most && !all.overviews[0], "{all:?}");
            assert_eq!((all.limit, all.threads(0, 0)), (None, budget.max(1)));
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
                assert!(plan.blocking_queries + overviews <= budget, "{plan:?}");
                assert!(plan.threads(0, 0) >= 1 && plan.threads(500, 500) <= budget, "{plan:?}");
                if !plan.all_block {
                    assert!(plan.blocking_queries + overviews + plan.readers <= budget, "{plan:?}");
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
    fn services_that_no_overview_covers_block_if_all_of_them_can() {
        assert_eq!(plan(64, 140, &[100, 3]).blocking_queries, 40);
        assert_eq!(plan(64, 200, &[100, 3]).blocking_queries, 0);
        assert_eq!(plan(5, 10, &[10]).blocking_queries, 0);
    }

    #[test]
    fn more_than_can_be_had_is_not_wanted() {
        let most = (900, Limit::Configured);
        let few = Load { budget: 64, available: 900, most, watches: 800, scopes: vec![800] };
        let plan = ConnectionPlan::of(&few);
        assert_eq!((plan.limit, plan.wanted()), (None, 816));
        // After a reload, until the connections of before have ended.
        let plan = ConnectionPlan::of(&Load { available: 100, ..few.clone() });
        assert_eq!((plan.limit, plan.wanted()), (None, 64));
        let many = ConnectionPlan::of(&Load { watches: 1000, scopes: vec![1000], ..few });
        assert_eq!((many.limit, many.wanted()), (Some(Limit::Configured), 64));
    }

    #[test]
    fn delays_keep_below_five_seconds_up_to_two_thousand_and_grow_then() {
        for watches in [100, 500, 2000] {
            let plan = plan(64, watches, &[watches]);
            assert!(plan.triggered_delay() <= Duration::from_secs(5), "{plan:?}");
            assert!(plan.poll_delay() <= Duration::from_secs(5), "{plan:?}");
        }
        let many = plan(64, 10_000, &[10_000]);
        assert!(many.triggered_delay() > Duration::from_secs(15));
        assert!(many.poll_delay() > Duration::from_secs(20));
    }
}
