//! How the connections are shared out.

use std::time::Duration;

use crate::sync::lookout::{PAUSE_NAMES, VIEWS};

/// Fewest connections with which a lookout pays, and fewest services.
const LOOKOUT_CONNECTIONS: usize = 6;
const LOOKOUT_SERVICES: usize = 6;
/// Most connections that read services in turn at a time.
const MAX_READERS: usize = 16;
/// How often a service that no lookout speaks for is asked, at least.
const SWEEP: Duration = Duration::from_millis(4500);
/// Reads a second in a sweep without lookouts: what 2,000 services need.
const SWEEP_RATE: f64 = 450.0;
/// Time for a sweep that a lookout asks for, within these rates of reads a second.
const GATED_SWEEP: f64 = 3.5;
const MIN_GATED_RATE: f64 = 250.0;
const MAX_GATED_RATE: f64 = 600.0;
/// How often a service is read that a lookout speaks for, whatever it says.
pub(super) const GATED: Duration = Duration::from_secs(60);
/// Length of the blocking queries of services that may lose them to others.
pub(super) const HOT_WAIT: Duration = Duration::from_secs(10);

/// What there is to share out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Demand {
    /// Connections that may be used.
    pub(super) budget: usize,
    /// Watches that can block.
    pub(super) watches: usize,
    /// Of each scope of a lookout, the watches.
    pub(super) scopes: Vec<usize>,
}

/// Who gets what.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Share {
    pub(super) budget: usize,
    /// Each watch has a blocking query of its own.
    pub(super) all_block: bool,
    /// Most blocking queries of watches.
    pub(super) polls: usize,
    /// Whether lookouts speak for a scope.
    pub(super) lookouts: Vec<bool>,
    /// Most reads at a time.
    pub(super) readers: usize,
    /// Between two reads of a service that no lookout speaks for.
    pub(super) interval: Duration,
    /// Between the reads of a sweep that a lookout asks for.
    pub(super) spacing: Duration,
    watches: usize,
}

impl Share {
    pub(super) fn of(demand: &Demand) -> Share {
        let Demand { budget, watches, ref scopes } = *demand;
        let budget = budget.max(1);
        let count = watches as f64;
        let rate = (count / GATED_SWEEP).clamp(MIN_GATED_RATE, MAX_GATED_RATE);
        let mut share = Share {
            budget,
            all_block: true,
            // What is left is for reads, also those of the next engine after a reload.
            polls: budget - reserve(budget),
            lookouts: vec![false; scopes.len()],
            readers: budget,
            interval: SWEEP.max(Duration::from_secs_f64(count / SWEEP_RATE)),
            spacing: Duration::from_secs_f64(1.0 / rate),
            watches,
        };
        if watches <= share.polls {
            return share;
        }
        share.all_block = false;
        share.readers = (budget / 4).clamp(1, MAX_READERS);
        share.polls = budget - share.readers;
        if budget >= LOOKOUT_CONNECTIONS {
            let mut largest: Vec<usize> = (0..scopes.len()).collect();
            largest.sort_by_key(|&scope| std::cmp::Reverse(scopes[scope]));
            for scope in largest.into_iter().filter(|&s| scopes[s] >= LOOKOUT_SERVICES) {
                // Half of the connections are enough for looking out.
                if share.polls < VIEWS.len() || share.polls - VIEWS.len() < budget / 4 {
                    break;
                }
                share.polls -= VIEWS.len();
                share.lookouts[scope] = true;
            }
        }
        share
    }

    /// Longest expected time until a change is seen where a lookout speaks, but can't tell of whom.
    pub(super) fn gated_delay(&self) -> Duration {
        let sweep = self.spacing.mul_f64(self.watches as f64);
        sweep + PAUSE_NAMES + Duration::from_millis(500)
    }

    /// The same where none does.
    pub(super) fn sweep_delay(&self) -> Duration {
        self.interval + Duration::from_millis(500)
    }

    /// What the operator should know: `blocking` have a query of their own now.
    pub(super) fn notice(&self, blocking: usize) -> String {
        let Share { watches, budget, .. } = *self;
        if self.all_block {
            return format!("{watches} services, each has a blocking query of its own");
        }
        let seconds = |delay: Duration| format!("{:.1}s", delay.as_secs_f64());
        let sweep = seconds(self.sweep_delay());
        let how = if self.lookouts.contains(&true) {
            format!(
                "queries about all services say which to read: health at once, the rest within \
                 {}, or {sweep} where those queries fail",
                seconds(self.gated_delay())
            )
        } else {
            format!("they are read in turn and see changes within {sweep}")
        };
        format!(
            "more services than consul_connections: {watches} services, {budget} connections, \
             {blocking} blocking queries; {how}"
        )
    }
}

/// Connections that blocking queries leave free.
fn reserve(budget: usize) -> usize {
    if budget < 2 { 0 } else { (budget / 8).clamp(1, MAX_READERS) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(budget: usize, watches: usize, scopes: &[usize]) -> Share {
        Share::of(&Demand { budget, watches, scopes: scopes.to_vec() })
    }

    #[test]
    fn what_fits_blocks_and_leaves_an_eighth_free() {
        for (budget, most) in [(0, 1), (1, 1), (2, 1), (8, 7), (64, 56), (2100, 2084)] {
            let all = share(budget, most, &[most]);
            assert!(all.all_block && all.polls == most && !all.lookouts[0], "{all:?}");
            assert!(!share(budget, most + 1, &[most]).all_block);
        }
    }

    #[test]
    fn never_more_than_the_budget() {
        for budget in 1..200 {
            for watches in [0, 1, 5, 50, 5000] {
                let share = share(budget, watches, &[watches / 2, watches / 3, 2]);
                let lookouts = share.lookouts.iter().filter(|on| **on).count() * VIEWS.len();
                assert!(share.polls + lookouts <= budget, "{share:?}");
                if !share.all_block {
                    assert!(share.polls + lookouts + share.readers <= budget, "{share:?}");
                    assert!(share.readers >= 1);
                }
            }
        }
    }

    #[test]
    fn lookouts_take_the_large_scopes_and_at_most_half_of_the_connections() {
        assert_eq!(share(64, 2000, &[2, 1000, 900]).lookouts, [false, true, true]);
        assert_eq!(share(5, 2000, &[2000]).lookouts, [false]);
        let many = share(64, 2000, &[20; 100]);
        assert_eq!(many.lookouts.iter().filter(|on| **on).count(), 10);
        assert!(many.polls >= 16, "{many:?}");
    }

    #[test]
    fn delays_keep_below_five_seconds_up_to_two_thousand_and_grow_then() {
        for watches in [100, 500, 2000] {
            let share = share(64, watches, &[watches]);
            assert!(share.gated_delay() <= Duration::from_secs(5), "{share:?}");
            assert!(share.sweep_delay() <= Duration::from_secs(5), "{share:?}");
        }
        let many = share(64, 10_000, &[10_000]);
        assert!(many.gated_delay() > Duration::from_secs(15));
        assert!(many.sweep_delay() > Duration::from_secs(20));
    }
}
