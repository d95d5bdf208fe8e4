//! Groups of services that the same overview watches cover.

use std::time::Instant;

use crate::consul::endpoint::WatchedQuery;
use crate::watch::overview_watch::{OverviewWatch, VIEWS};

/// The place of an overview watch: the number of its scope, and of its view.
pub(super) type OverviewId = (usize, usize);

/// The services of one datacenter, read with one token, and the overview watches that cover them.
struct Scope {
    watched: WatchedQuery,
    is_active: bool,
    /// `None` while a thread has it.
    overviews: [Option<Box<OverviewWatch>>; VIEWS.len()],
    /// Whether the last request of each was answered.
    are_answered: [bool; VIEWS.len()],
}

impl Scope {
    fn is_covered(&self) -> bool {
        self.is_active && self.are_answered == [true; VIEWS.len()]
    }
}

/// All scopes, by number.
#[derive(Default)]
pub(super) struct Scopes(Vec<Scope>);

impl Scopes {
    /// The number of the scope with this overview query, which is added if it is new.
    pub(super) fn number_of(&mut self, watched: WatchedQuery) -> usize {
        if let Some(number) = self.0.iter().position(|scope| scope.watched == watched) {
            return number;
        }
        self.0.push(Scope {
            watched,
            is_active: false,
            overviews: [const { None }; VIEWS.len()],
            are_answered: [false; VIEWS.len()],
        });
        self.0.len() - 1
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the overview watches of a scope show the changes of its services.
    pub(super) fn is_covered(&self, number: usize) -> bool {
        self.0.get(number).is_some_and(Scope::is_covered)
    }

    /// Starts and ends overview watches.
    pub(super) fn activate(&mut self, are_wanted: &[bool], now: Instant) {
        for (scope, &is_wanted) in self.0.iter_mut().zip(are_wanted) {
            if scope.is_active == is_wanted {
                continue;
            }
            scope.is_active = is_wanted;
            scope.are_answered = [false; VIEWS.len()];
            for (overview, view) in scope.overviews.iter_mut().zip(VIEWS) {
                let new = || Box::new(OverviewWatch::new(scope.watched.clone(), view, now));
                *overview = is_wanted.then(new);
            }
        }
    }

    /// When each overview watch is due that no thread has; `None`: now. Those that would block count
    /// only if they may.
    pub(super) fn due(&self, may_block: bool) -> impl Iterator<Item = Option<Instant>> {
        let all = self.0.iter().flat_map(|scope| scope.overviews.iter().flatten());
        all.filter(move |overview| may_block || !overview.will_block())
            .map(|overview| overview.due())
    }

    /// Takes the next overview watch that is due.
    pub(super) fn take(
        &mut self,
        may_block: bool,
        now: Instant,
    ) -> Option<(OverviewId, Box<OverviewWatch>)> {
        let is_ready = |overview: &mut Box<OverviewWatch>| {
            overview.due().is_none_or(|due| due <= now) && (may_block || !overview.will_block())
        };
        self.0.iter_mut().enumerate().find_map(|(number, scope)| {
            let mut overviews = scope.overviews.iter_mut().enumerate();
            overviews.find_map(|(view, place)| Some(((number, view), place.take_if(is_ready)?)))
        })
    }

    /// Takes an overview watch back. `false`: it is not wanted any more, so its outcome does not
    /// count.
    pub(super) fn put(&mut self, (number, view): OverviewId, overview: Box<OverviewWatch>) -> bool {
        let scope = &mut self.0[number];
        // Meanwhile the scope may have been deactivated, and activated again.
        let is_wanted = scope.is_active && scope.overviews[view].is_none();
        if is_wanted {
            scope.overviews[view] = Some(overview);
        }
        is_wanted
    }

    /// Notes whether an overview watch was answered.
    pub(super) fn note_answered(&mut self, (number, view): OverviewId, is_answered: bool) {
        self.0[number].are_answered[view] = is_answered;
    }
}
