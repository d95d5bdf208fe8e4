//! Who is followed, who may be asked for and who has to go, without any I/O.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::table::Named;

/// Names that turn out not to exist, and services that have to go for new ones, a second: what a
/// flood of names may cost Consul. Names that exist are not limited but by their number.
const RATE: f64 = 100.0;
/// How many may come at once.
const BURST: f64 = 200.0;

/// The services that requests have named.
#[derive(Debug)]
pub struct Roster {
    max: usize,
    /// With the numbers of their targets.
    followed: HashMap<Named, Vec<usize>>,
    asking: HashSet<Named>,
    tokens: f64,
    refilled: Instant,
}

/// What to do about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask Consul, and tell [`Roster::found`] or [`Roster::not_found`].
    Ask,
    /// It is followed.
    Followed,
    /// Somebody asks already.
    Asking,
    /// Too many names were none: look whether it is listed, or try again after this long.
    Wait(Duration),
}

impl Roster {
    /// One for at most `max` services.
    pub fn new(max: usize, now: Instant) -> Roster {
        Roster {
            max: max.max(1),
            followed: HashMap::new(),
            asking: HashSet::new(),
            tokens: BURST,
            refilled: now,
        }
    }

    /// A request asks for a service; `is_listed` if it is among the names of all services.
    pub fn ask(&mut self, service: &Named, is_listed: bool, now: Instant) -> Step {
        if self.followed.contains_key(service) {
            return Step::Followed;
        }
        if self.asking.contains(service) {
            return Step::Asking;
        }
        self.refill(now);
        if !is_listed && self.tokens < 1.0 {
            return Step::Wait(Duration::from_secs_f64((1.0 - self.tokens) / RATE));
        }
        self.asking.insert(service.clone());
        Step::Ask
    }

    /// It exists; its targets have these numbers.
    pub fn found(&mut self, service: Named, targets: Vec<usize>) {
        self.asking.remove(&service);
        self.followed.insert(service, targets);
    }

    /// It does not exist, or nobody could tell.
    pub fn not_found(&mut self, service: &Named, now: Instant) {
        self.asking.remove(service);
        self.pay(now);
    }

    /// Who has to go before one more is followed: who was asked for longest ago.
    pub fn surplus(&mut self, last_used: impl Fn(usize) -> u64, now: Instant) -> Option<Named> {
        if self.followed.len() < self.max {
            return None;
        }
        self.least_recent(last_used, now)
    }

    /// Who has to go because there are too many: those before this process may have been allowed
    /// more.
    pub fn excess(&mut self, last_used: impl Fn(usize) -> u64, now: Instant) -> Option<Named> {
        if self.followed.len() <= self.max {
            return None;
        }
        self.least_recent(last_used, now)
    }

    /// Who was asked for longest ago.
    pub fn least_recent(
        &mut self,
        last_used: impl Fn(usize) -> u64,
        now: Instant,
    ) -> Option<Named> {
        let used = |targets: &Vec<usize>| targets.iter().map(|t| last_used(*t)).max();
        let (service, _) = self.followed.iter().min_by_key(|(_, targets)| used(targets))?;
        let service = service.clone();
        self.pay(now);
        Some(service)
    }

    /// Whom nobody has asked for since `since(template)`.
    pub fn idle(
        &self,
        since: impl Fn(u128) -> u64,
        last_used: impl Fn(usize) -> u64,
    ) -> Vec<Named> {
        let is_idle = |(service, targets): &(&Named, &Vec<usize>)| {
            targets.iter().all(|target| last_used(*target) < since(service.template))
        };
        self.followed.iter().filter(is_idle).map(|(service, _)| service.clone()).collect()
    }

    /// It is not to be followed any more; gives the numbers of its targets. `None` if it isn't
    /// followed. Nobody asks for it until [`Roster::dropped`], or its targets could be made anew
    /// before they are closed.
    pub fn drop_service(&mut self, service: &Named) -> Option<Vec<usize>> {
        let (service, targets) = self.followed.remove_entry(service)?;
        self.asking.insert(service);
        Some(targets)
    }

    /// Its targets are closed.
    pub fn dropped(&mut self, service: &Named) {
        self.asking.remove(service);
    }

    /// How many are followed.
    pub fn len(&self) -> usize {
        self.followed.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.followed.is_empty()
    }

    fn refill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.refilled);
        self.refilled = now;
        self.tokens = (self.tokens + since.as_secs_f64() * RATE).min(BURST);
    }

    fn pay(&mut self, now: Instant) {
        self.refill(now);
        // Who has to go for services that exist may be many: not a debt for minutes.
        self.tokens = (self.tokens - 1.0).max(-BURST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Named {
        Named { template: 1, name: name.to_owned() }
    }

    #[test]
    fn a_name_is_asked_for_once_at_a_time() {
        let now = Instant::now();
        let mut roster = Roster::new(10, now);
        let web = service("web");
        assert_eq!(roster.ask(&web, false, now), Step::Ask);
        assert_eq!(roster.ask(&web, false, now), Step::Asking);
        roster.not_found(&web, now);
        assert_eq!(roster.ask(&web, false, now), Step::Ask);
        roster.found(web.clone(), vec![3]);
        assert_eq!(roster.ask(&web, false, now), Step::Followed);
        assert_eq!(roster.drop_service(&web), Some(vec![3]));
        assert_eq!(roster.drop_service(&web), None, "somebody else drops it");
        assert_eq!(roster.ask(&web, false, now), Step::Asking, "its targets are being closed");
        roster.dropped(&web);
        assert_eq!(roster.ask(&web, false, now), Step::Ask);
    }

    #[test]
    fn a_flood_of_names_is_held_to_a_hundred_a_second_and_those_that_exist_are_not() {
        let start = Instant::now();
        let mut roster = Roster::new(100_000, start);
        let (mut asked, mut now) = (0u32, start);
        for n in 0..1_000_000 {
            now = start + Duration::from_micros(n * 10);
            let name = service(&format!("none-{n}"));
            if roster.ask(&name, false, now) == Step::Ask {
                asked += 1;
                roster.not_found(&name, now);
            }
        }
        assert!((1190..=1210).contains(&asked), "{asked} in ten seconds and a burst of 200");
        let Step::Wait(wait) = roster.ask(&service("web"), false, now) else { panic!("no tokens") };
        assert!(wait <= Duration::from_millis(10), "{wait:?}");

        now += Duration::from_secs(1);
        for n in 0..5000 {
            let name = service(&format!("real-{n}"));
            assert_eq!(roster.ask(&name, false, now), Step::Ask);
            roster.found(name, vec![n]);
        }
    }

    #[test]
    fn a_churn_of_services_that_exist_leaves_no_debt_for_long() {
        let now = Instant::now();
        let mut roster = Roster::new(1, now);
        roster.ask(&service("web"), false, now);
        roster.found(service("web"), vec![0]);
        for _ in 0..10_000 {
            assert_eq!(roster.surplus(|_| 0, now), Some(service("web")));
        }
        let later = now + Duration::from_secs(3);
        assert_eq!(roster.ask(&service("none"), false, later), Step::Ask);
    }

    #[test]
    fn more_than_are_allowed_go_until_they_are_not() {
        let now = Instant::now();
        let mut roster = Roster::new(2, now);
        for n in 0..4 {
            roster.found(service(&n.to_string()), vec![n]);
        }
        let mut gone = Vec::new();
        while let Some(victim) = roster.excess(|target| 10 - target as u64, now) {
            roster.drop_service(&victim);
            gone.push(victim.name);
        }
        assert_eq!(gone, ["3", "2"]);
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let now = Instant::now();
        let mut roster = Roster::new(3, now);
        let used = |target: usize| [50, 10, 90, 5][target];
        for (n, name) in ["a", "b", "c"].iter().enumerate() {
            assert_eq!(roster.surplus(used, now), None);
            roster.ask(&service(name), false, now);
            roster.found(service(name), vec![n]);
        }
        assert_eq!(roster.surplus(used, now), Some(service("b")));
        // The second datacenter of `c` is never noted.
        roster.found(service("c"), vec![2, 3]);
        roster.drop_service(&service("b"));
        roster.drop_service(&service("a"));
        assert_eq!(roster.excess(used, now), None);
        assert_eq!(roster.least_recent(used, now), Some(service("c")));
        assert_eq!(roster.idle(|_| 90, used), [], "used at 90");
        assert_eq!(roster.idle(|_| 91, used), [service("c")]);
    }
}
