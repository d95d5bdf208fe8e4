//! How many connections Consul accepts, without any I/O.
//!
//! An agent without file descriptors answers no request at all until connections end. So the number
//! grows in steps: [`START`] at once, then one step after the other, each once all connections of
//! the step before have answered a plain read within [`MAX_WAIT`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Connections that need no trial.
pub(super) const START: usize = 64;
/// Longest time to the answer to a plain read over a new connection.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(1);
/// Connections of a step.
const STEP: usize = 16;
/// How long the number stays below a number that was refused.
const MEMORY: Duration = Duration::from_secs(3600);
/// Pause before the next step after an agent could not be reached, or was restarted.
const PAUSE: Duration = Duration::from_secs(3);
/// Connections that end within this time of each other end together.
const TOGETHER: Duration = Duration::from_secs(2);
/// Time to wait after a refusal: all connections may have ended, or the agent.
const CHECK_DELAY: Duration = Duration::from_millis(800);

/// How Consul refuses a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// HTTP 429, or a close or reset within a second: `http_max_conns_per_client`.
    Limit(String),
    /// No answer within a second: the agent is out of descriptors.
    Silent,
}

/// What [`ConnectionBudget::check`] has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Connection `number` was refused; `allowed` are used from here on.
    Refused { number: usize, allowed: usize, how: Refused, server: String },
    /// The agent or all connections have ended: the number is tried out anew.
    Restarted,
}

/// How many connections a watcher may have.
#[derive(Debug)]
pub(super) struct ConnectionBudget {
    allowed: usize,
    /// Size of the step under way, and how many of its connections have not answered yet.
    step: usize,
    unanswered: usize,
    not_before: Instant,
    /// The number that was refused, and until when it is remembered.
    refused: Option<(usize, Instant)>,
    suspected: Option<Suspected>,
    /// Servers that closed idle connections or refused connections, and when.
    gone: HashMap<String, Instant>,
    /// Blocking queries that were cut off together: since when, how many, and of how many.
    lost: Option<(Instant, usize, usize)>,
}

/// A refusal that is not checked yet: of which connection, by which server, how, and when.
#[derive(Debug)]
struct Suspected {
    number: usize,
    server: String,
    how: Refused,
    at: Instant,
}

impl ConnectionBudget {
    pub(super) fn new(now: Instant) -> Self {
        ConnectionBudget {
            allowed: START,
            step: 0,
            unanswered: 0,
            not_before: now,
            refused: None,
            suspected: None,
            gone: HashMap::new(),
            lost: None,
        }
    }

    /// Connections that may do work.
    pub(super) fn allowed(&self) -> usize {
        self.allowed
    }

    /// Connections of the step under way, besides those.
    pub(super) fn on_trial(&self) -> usize {
        self.step
    }

    /// The number that was refused within the last hour.
    pub(super) fn refused(&self, now: Instant) -> Option<usize> {
        self.refused.filter(|(_, until)| now < *until).map(|(number, _)| number)
    }

    /// How many new connections are to be tried out now, towards `wanted`; those allowed so far are
    /// there. Each is followed by [`Self::on_answer`], [`Self::on_trial_refused`] or
    /// [`Self::on_failure`].
    pub(super) fn next_step(&mut self, wanted: usize, now: Instant) -> usize {
        let below = self.refused(now).map_or(usize::MAX, |refused| refused - 1);
        let missing = wanted.min(below).saturating_sub(self.allowed);
        let is_busy = self.step > 0 || self.suspected.is_some() || now < self.not_before;
        if is_busy || missing == 0 {
            return 0;
        }
        self.step = missing.min(STEP);
        self.unanswered = self.step;
        self.step
    }

    /// A connection of the step has answered.
    pub(super) fn on_answer(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(1);
        if self.unanswered == 0 && self.suspected.is_none() {
            self.allowed += std::mem::take(&mut self.step);
        }
    }

    /// A connection of the step was refused.
    pub(super) fn on_trial_refused(&mut self, server: String, how: Refused, now: Instant) {
        self.on_refusal(self.allowed + self.step - self.unanswered + 1, server, how, now);
    }

    /// The connection that would have been number `number` was refused.
    pub(super) fn on_refusal(&mut self, number: usize, server: String, how: Refused, now: Instant) {
        if number > START && self.suspected.is_none() {
            self.suspected = Some(Suspected { number, server, how, at: now });
        }
    }

    /// A server has closed an idle connection, or its port is closed.
    pub(super) fn on_unreachable(&mut self, server: String, now: Instant) {
        self.gone.insert(server, now);
    }

    /// One of `blocking` blocking queries was cut off.
    pub(super) fn on_cut_off(&mut self, blocking: usize, now: Instant) {
        match &mut self.lost {
            Some((since, count, _)) if now < *since + TOGETHER => *count += 1,
            lost => *lost = Some((now, 1, blocking)),
        }
    }

    /// When a refusal is to be checked.
    pub(super) fn check_at(&self) -> Option<Instant> {
        self.suspected.as_ref().map(|suspected| suspected.at + CHECK_DELAY)
    }

    /// Decides whether a refusal was one, or the agent has restarted. To be called now and then.
    pub(super) fn check(&mut self, now: Instant) -> Option<Finding> {
        self.lost = self.lost.filter(|(since, ..)| now < *since + TOGETHER);
        self.gone.retain(|_, at| now < *at + TOGETHER);
        let are_all_lost = self.lost.is_some_and(|(_, count, of)| count * 2 >= of);
        let suspected = self.suspected.as_ref();
        let is_down = suspected.is_some_and(|one| self.gone.contains_key(&one.server));
        if is_down || are_all_lost && (self.allowed > START || suspected.is_some()) {
            self.on_failure(now);
            (self.allowed, self.lost) = (START, None);
            return Some(Finding::Restarted);
        }
        let Suspected { number, server, how, .. } =
            self.suspected.take_if(|suspected| suspected.at + CHECK_DELAY <= now)?;
        self.on_failure(now);
        self.refused = Some((number, now + MEMORY));
        self.allowed = (number - number / 4).max(START).min(number - 1).min(self.allowed);
        Some(Finding::Refused { number, allowed: self.allowed, how, server })
    }

    /// A connection of the step failed for another reason than their number: gives the step up.
    pub(super) fn on_failure(&mut self, now: Instant) {
        (self.step, self.unanswered, self.suspected) = (0, 0, None);
        self.not_before = now + PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn server() -> String {
        "http://127.0.0.1:8500".to_owned()
    }

    fn limit() -> Refused {
        Refused::Limit("HTTP 429".to_owned())
    }

    /// Takes steps while all connections up to `most` answer; gives how many there are then.
    fn grow(budget: &mut ConnectionBudget, (wanted, most): (usize, usize), now: Instant) -> usize {
        loop {
            let step = budget.next_step(wanted, now);
            if step == 0 || budget.allowed() + step > most {
                return budget.allowed() + step;
            }
            (0..step).for_each(|_| budget.on_answer());
        }
    }

    #[test]
    fn sixty_four_need_no_trial_and_further_ones_come_in_steps_that_answer() {
        let now = Instant::now();
        let mut budget = ConnectionBudget::new(now);
        assert_eq!((budget.allowed(), budget.next_step(64, now)), (64, 0));
        assert_eq!(budget.next_step(1000, now), 16);
        for _ in 0..15 {
            budget.on_answer();
            assert_eq!((budget.allowed(), budget.next_step(1000, now)), (64, 0));
        }
        budget.on_answer();
        assert_eq!((budget.allowed(), budget.on_trial()), (80, 0));
        assert_eq!(grow(&mut budget, (1000, 2000), now), 1000);
        assert_eq!(budget.next_step(300, now), 0);
    }

    #[test]
    fn a_refusal_takes_a_quarter_and_is_remembered_for_an_hour() {
        for how in [limit(), Refused::Silent] {
            let mut now = Instant::now();
            let mut budget = ConnectionBudget::new(now);
            assert_eq!(grow(&mut budget, (400, 199), now), 208);
            (0..7).for_each(|_| budget.on_answer());
            budget.on_trial_refused(server(), how.clone(), now);
            budget.on_refusal(203, server(), how.clone(), now);
            assert_eq!(budget.check(now), None, "it may be a restart");
            now = budget.check_at().unwrap();
            let refused = Finding::Refused { number: 200, allowed: 150, how, server: server() };
            assert_eq!(budget.check(now), Some(refused));
            assert_eq!((budget.allowed(), budget.on_trial()), (150, 0));
            assert_eq!(budget.next_step(400, now), 0, "a pause");
            now += 60 * SECOND;
            assert_eq!(grow(&mut budget, (400, 1000), now), 199);
            now += MEMORY;
            assert_eq!(grow(&mut budget, (400, 1000), now), 400);
        }
    }

    #[test]
    fn never_below_what_needs_no_trial() {
        let now = Instant::now();
        let mut budget = ConnectionBudget::new(now);
        budget.on_refusal(60, server(), limit(), now);
        assert_eq!(budget.check_at(), None);
        budget.next_step(400, now);
        budget.on_trial_refused(server(), limit(), now);
        let (number, allowed, how) = (65, 64, limit());
        let refused = Finding::Refused { number, allowed, how, server: server() };
        assert_eq!(budget.check(now + SECOND), Some(refused));
    }

    #[test]
    fn the_end_of_all_connections_is_no_refusal_but_the_number_is_tried_out_anew() {
        let mut now = Instant::now();
        let mut budget = ConnectionBudget::new(now);
        assert_eq!(grow(&mut budget, (130, 1000), now), 130);
        budget.on_refusal(120, server(), limit(), now);
        (0..60).for_each(|_| budget.on_cut_off(120, now));
        assert_eq!(budget.check(now), Some(Finding::Restarted));
        assert_eq!((budget.allowed(), budget.refused(now)), (64, None));
        now += PAUSE;
        assert_eq!(grow(&mut budget, (130, 1000), now), 130);
        // In a step, with three queries under way.
        assert_eq!(budget.next_step(400, now), 16);
        budget.on_trial_refused(server(), limit(), now);
        (0..3).for_each(|_| budget.on_cut_off(3, now + SECOND / 10));
        assert_eq!(budget.check(now + SECOND), Some(Finding::Restarted));
    }

    #[test]
    fn a_few_lost_connections_hide_no_refusal_and_an_agent_that_is_down_is_none() {
        let now = Instant::now();
        let mut budget = ConnectionBudget::new(now);
        assert_eq!(grow(&mut budget, (200, 1000), now), 200);
        (0..20).for_each(|_| budget.on_cut_off(180, now));
        budget.on_refusal(190, server(), limit(), now);
        assert!(matches!(budget.check(now + SECOND), Some(Finding::Refused { .. })));
        // The port is closed now; another server that is down says nothing about this one.
        for (down, restarted) in [(server(), true), ("http://other".to_owned(), false)] {
            let mut budget = ConnectionBudget::new(now);
            assert_eq!(budget.next_step(200, now), 16);
            budget.on_trial_refused(server(), limit(), now);
            budget.on_unreachable(down, now);
            let finding = budget.check(now + SECOND);
            assert_eq!(finding == Some(Finding::Restarted), restarted, "{finding:?}");
        }
        let mut budget = ConnectionBudget::new(now);
        assert_eq!(budget.next_step(200, now), 16);
        budget.on_failure(now);
        assert_eq!((budget.check(now + SECOND), budget.next_step(200, now + SECOND)), (None, 0));
        assert_eq!(budget.next_step(200, now + PAUSE), 16);
    }
}
