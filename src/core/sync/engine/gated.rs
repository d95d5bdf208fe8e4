//! Reads that lookouts ask for, and who has a blocking query.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::board::{Board, NO_ROOM};
use super::entry::Again;
use super::share::{Demand, Share};
use crate::sync::lookout::{Finding, Looked, Lookout, More, Scope, VIEWS};

/// Reads that a sweep may be ahead of its pace, after a time without any.
const CREDIT: u32 = 2000;
/// Pause between sweeps for lookouts that woke and saw nothing.
const PERHAPS: Duration = Duration::from_secs(15);

/// The lookouts of all scopes.
#[derive(Default)]
pub(super) struct Scopes {
    all: Vec<State>,
    queue: BTreeSet<(Instant, usize, usize)>,
}

struct State {
    scope: Scope,
    is_active: bool,
    /// `None` while a thread has it.
    lookouts: [Option<Box<Lookout>>; VIEWS.len()],
    good: [bool; VIEWS.len()],
    /// One of them has failed since all were good.
    has_failed: bool,
    /// When the last sweep was asked for by a lookout that saw nothing.
    perhaps: Option<Instant>,
    /// A lookout that saw nothing waits for a sweep.
    doubts: bool,
}

impl Scopes {
    /// Number of a scope.
    pub(super) fn number(&mut self, scope: Scope) -> usize {
        if let Some(number) = self.all.iter().position(|state| state.scope == scope) {
            return number;
        }
        self.all.push(State {
            scope,
            is_active: false,
            lookouts: [const { None }; VIEWS.len()],
            good: [false; VIEWS.len()],
            has_failed: false,
            perhaps: None,
            doubts: false,
        });
        self.all.len() - 1
    }

    /// Whether lookouts speak for a scope.
    pub(super) fn is_vouched(&self, scope: usize) -> bool {
        self.all
            .get(scope)
            .is_some_and(|state| state.is_active && state.good == [true; VIEWS.len()])
    }

    /// Whether lookouts speak for a scope, or are about to for all that is known.
    fn is_hopeful(&self, scope: usize) -> bool {
        self.all.get(scope).is_some_and(|state| state.is_active && !state.has_failed)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.queue.first().map(|(due, ..)| *due)
    }

    pub(super) fn count_due(&self, now: Instant) -> usize {
        self.queue.range(..=(now, usize::MAX, usize::MAX)).count()
    }

    /// The next lookout to run; none that blocks unless it may.
    pub(super) fn take(
        &mut self,
        now: Instant,
        may_block: bool,
    ) -> Option<((usize, usize), Box<Lookout>)> {
        while let Some(&(due, scope, view)) = self.queue.first().filter(|(due, ..)| *due <= now) {
            self.queue.remove(&(due, scope, view));
            let place = &mut self.all[scope].lookouts[view];
            if !may_block && place.as_ref().is_some_and(|look| look.blocks_for().is_some()) {
                self.queue.insert((now + NO_ROOM, scope, view));
                continue;
            }
            if let Some(lookout) = place.take() {
                return Some(((scope, view), lookout));
            }
        }
        None
    }

    /// Sets lookouts to work, or ends them.
    fn activate(&mut self, active: &[bool], now: Instant) {
        for (number, state) in self.all.iter_mut().enumerate() {
            let wanted = active.get(number).copied().unwrap_or(false);
            if state.is_active == wanted {
                continue;
            }
            state.is_active = wanted;
            state.has_failed = false;
            state.good = [false; VIEWS.len()];
            self.queue.retain(|(_, scope, _)| *scope != number);
            for (view, place) in state.lookouts.iter_mut().enumerate() {
                // One that is still under way for an earlier time is dropped when it is back.
                *place = wanted.then(|| Box::new(Lookout::new(&state.scope, VIEWS[view])));
                if wanted {
                    self.queue.insert((now, number, view));
                }
            }
        }
    }

    /// Takes a lookout back; `false` if it is not wanted any more.
    fn put(&mut self, (scope, view): (usize, usize), lookout: Box<Lookout>, now: Instant) -> bool {
        let state = &mut self.all[scope];
        if !state.is_active || state.lookouts[view].is_some() {
            return false;
        }
        self.queue.insert((lookout.due().unwrap_or(now).max(now), scope, view));
        state.lookouts[view] = Some(lookout);
        true
    }
}

impl Board {
    /// Takes a lookout back, with what came of it.
    pub(super) fn put_lookout(
        &mut self,
        (scope, view): (usize, usize),
        lookout: Box<Lookout>,
        looked: Looked,
        now: Instant,
    ) {
        if !self.scopes.put((scope, view), lookout, now) {
            return;
        }
        let was_vouched = self.scopes.is_vouched(scope);
        let Looked::Found(Finding { news, more }) = looked else {
            if !matches!(looked, Looked::Failed) {
                return;
            }
            let state = &mut self.scopes.all[scope];
            state.good[view] = false;
            state.has_failed = true;
            if was_vouched {
                self.spread(scope, now);
            }
            return;
        };
        let state = &mut self.scopes.all[scope];
        state.good[view] = true;
        state.has_failed &= state.good.contains(&false);
        let read: Vec<u64> = if news.is_empty() {
            Vec::new()
        } else {
            let concerns = |entry: &super::entry::Entry| {
                let on = |node: &u64| entry.job.as_ref().is_none_or(|job| job.is_on(*node));
                news.services.contains(&entry.name) || news.nodes.iter().any(on)
            };
            let of_scope = self.entries.iter().filter(|(_, entry)| entry.scope == Some(scope));
            of_scope.filter(|(_, entry)| concerns(entry)).map(|(id, _)| *id).collect()
        };
        for id in read {
            self.read(id, Again::Surely, now);
        }
        match more {
            More::No => {}
            More::Perhaps => self.scopes.all[scope].doubts = true,
            More::Yes => self.sweep(scope, now),
        }
    }

    /// A lookout saw nothing, although it woke: asks for a sweep now and then.
    pub(super) fn settle_doubts(&mut self, now: Instant) {
        for scope in 0..self.scopes.all.len() {
            let state = &mut self.scopes.all[scope];
            if state.doubts && state.perhaps.is_none_or(|at| at + PERHAPS <= now) {
                state.perhaps = Some(now);
                self.sweep(scope, now);
            }
        }
    }

    /// Something has changed, nobody knows where: reads all, the hottest first, at a bounded rate.
    fn sweep(&mut self, scope: usize, now: Instant) {
        self.scopes.all[scope].doubts = false;
        let mut order: Vec<(f64, Option<Instant>, u64)> = Vec::new();
        for (&id, entry) in &mut self.entries {
            if entry.scope != Some(scope) {
                continue;
            }
            if entry.job.is_none() {
                if entry.out.is_none() {
                    entry.again = entry.again.max(Some(Again::Perhaps));
                }
            } else if !std::mem::replace(&mut entry.swept, true) {
                order.push((entry.heat.value, entry.asked, id));
            }
        }
        order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let spacing = self.share.spacing;
        let earliest = now.checked_sub(spacing * CREDIT).unwrap_or(now);
        self.cursor = self.cursor.max(earliest);
        for (.., id) in order {
            self.cursor += spacing;
            let at = self.cursor.max(now);
            if let Some(job) = self.entries.get_mut(&id).and_then(|entry| entry.job.as_mut()) {
                job.watch.advance(at);
            }
            self.requeue(id, now);
        }
    }

    /// Nobody speaks for the services of a scope any more: they are read in turn.
    fn spread(&mut self, scope: usize, now: Instant) {
        let swept = |entry: &super::entry::Entry| entry.scope == Some(scope);
        let ids: Vec<u64> =
            self.entries.iter().filter(|(_, e)| swept(e)).map(|(id, _)| *id).collect();
        let interval = self.share.interval;
        for (place, id) in ids.iter().enumerate() {
            let at = now + interval.mul_f64(place as f64 / ids.len() as f64);
            if let Some(job) = self.entries.get_mut(id).and_then(|entry| entry.job.as_mut()) {
                job.watch.advance(at);
            }
            self.requeue(*id, now);
        }
    }

    /// Shares the connections out anew. Others have `foreign` of them.
    pub(super) fn plan(&mut self, foreign: usize, now: Instant) {
        let mut demand = Demand {
            budget: self.budget(foreign),
            watches: 0,
            scopes: vec![0; self.scopes.all.len()],
        };
        for entry in self.entries.values().filter(|entry| entry.can_block()) {
            demand.watches += 1;
            if let Some(scope) = entry.scope {
                demand.scopes[scope] += 1;
            }
        }
        self.share = Share::of(&demand);
        let lookouts = std::mem::take(&mut self.share.lookouts);
        self.scopes.activate(&lookouts, now);
        self.share.lookouts = lookouts;
        self.assign(now);
    }

    /// Decides who has a blocking query.
    fn assign(&mut self, now: Instant) {
        let mut claims: Vec<(f64, u64)> = Vec::new();
        for (&id, entry) in &self.entries {
            let hopes = entry.scope.is_some_and(|scope| self.scopes.is_hopeful(scope));
            claims.extend(entry.claim(hopes, now).map(|heat| (heat, id)));
        }
        claims.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        claims.truncate(self.share.polls);
        let wanted: BTreeSet<u64> = claims.iter().map(|(_, id)| *id).collect();
        // Queries of those who have lost theirs are under way until their end.
        let lost = |(id, entry): (&u64, &mut super::entry::Entry)| {
            entry.polled &= wanted.contains(id);
            !entry.polled && entry.out.is_some()
        };
        let lingering = self.entries.iter_mut().map(lost).filter(|lost| *lost).count();
        let mut room = self.share.polls.saturating_sub(lingering + self.count_polled());
        let mut free = self.free_polls();
        for (_, id) in claims {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if !entry.polled && room > 0 {
                room -= 1;
                entry.polled = true;
            }
            if let (true, 1.., Some(job)) = (entry.polled, free, &mut entry.job) {
                free -= 1;
                job.watch.set_sweep(None);
                self.requeue(id, now);
            }
        }
    }

    /// How many watches have a blocking query.
    pub(super) fn count_polled(&self) -> usize {
        self.entries.values().filter(|entry| entry.polled).count()
    }
}
