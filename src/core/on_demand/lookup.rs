//! Finds out about one service that a request has named: follows it, or records that it does not
//! exist. If there is no room, the least recently used services are dropped.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::catalog::{CatalogNames, Listing};
use super::channel::Channel;
use super::registry::{ServiceRegistry, least_recently_used};
use super::store::ServiceStore;
use super::template::{Template, Templates};
use crate::model::ServiceName;
use crate::stop::Stop;
use crate::table::LookupResult;
use crate::watch::{Plan, Watcher};

/// Shortest time between the starts of two reads of a catalog; also how long a failed lookup holds.
pub(super) const PACE: Duration = Duration::from_millis(250);
/// How many names wait for a catalog at most; requests ask for the others again.
const MAX_PENDING: usize = 16 * 1024;
/// A request that waits asks again every 500 ms: none waits for a service any more after this time.
const GONE: Duration = Duration::from_millis(1500);
/// How many services are dropped at most for the instances of one that found no room.
const VICTIMS: usize = 4;

/// What the threads share.
pub(super) struct Shared {
    pub(super) templates: Arc<Templates>,
    pub(super) plan: Arc<Plan>,
    pub(super) channel: &'static Channel,
    pub(super) store: Arc<dyn ServiceStore>,
    pub(super) watcher: Arc<Watcher>,
    pub(super) stop: Arc<Stop>,
    pub(super) state: Mutex<State>,
    /// A catalog is to be read, or followed.
    pub(super) wanted: Condvar,
}

/// What is known of services and catalogs.
pub(super) struct State {
    pub(super) registry: ServiceRegistry,
    /// By the numbers of the catalogs.
    pub(super) catalogs: Vec<KnownCatalog>,
    /// Services that wait for a catalog.
    pub(super) pending: HashMap<ServiceName, Asked>,
    /// When catalogs were last to be read before services are dropped for idleness.
    pub(super) idle_asked: Option<Instant>,
    /// How many services were dropped for newer ones since this was logged last.
    pub(super) evicted: usize,
    /// The last service that found no room, and why.
    pub(super) refused: Option<(ServiceName, String)>,
}

impl State {
    pub(super) fn new(catalogs: usize) -> State {
        State {
            registry: ServiceRegistry::default(),
            catalogs: (0..catalogs).map(|_| KnownCatalog::default()).collect(),
            pending: HashMap::new(),
            idle_asked: None,
            evicted: 0,
            refused: None,
        }
    }
}

/// When requests asked for a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) first: Instant,
    pub(super) last: Instant,
}

impl Asked {
    /// By one request, now.
    pub(super) fn now() -> Asked {
        let now = Instant::now();
        Asked { first: now, last: now }
    }
}

/// What is known of a catalog.
#[derive(Default)]
pub(super) struct KnownCatalog {
    /// What it listed last; or when the last read began, if that failed.
    pub(super) names: Option<Result<CatalogNames, Instant>>,
    /// The server that listed them.
    pub(super) server: usize,
    pub(super) is_wanted: bool,
    /// It is wanted, since services are idle.
    pub(super) is_wanted_for_idle: bool,
    /// Aborts the read that is under way.
    pub(super) reading: Option<Arc<Stop>>,
    /// It was logged that it can't be read.
    pub(super) is_failure_logged: bool,
    /// When a request last named a service that exists without the tags.
    pub(super) untagged_at: Option<Instant>,
    /// A blocking query ends when the names change.
    pub(super) is_current: bool,
}

impl Shared {
    /// Finds out about a service that requests have asked for, or leaves it to the next read of a
    /// catalog.
    pub(super) fn resolve(&self, state: &mut State, service: ServiceName, asked: Asked) {
        if self.is_over() {
            return self.give_back(&service);
        }
        // The worker has checked the name, perhaps with an earlier configuration. A worker of this
        // one asks again.
        let Some(template) = self.templates.admit(&service) else { return };
        let at = asked.first;
        let find = |number: &usize| state.catalogs[*number].find(&service, template, at);
        let result = if state.registry.contains_key(&service) {
            self.make_room(state, &service);
            LookupResult::Followed
        } else {
            match template.catalogs.iter().map(find).max().unwrap_or(Listing::Absent) {
                Listing::Absent => LookupResult::Absent,
                Listing::Untagged => self.note_untagged(state, &service, template, at),
                Listing::Failed => LookupResult::Failed,
                Listing::Listed => self.follow_new(state, &service, template),
                Listing::Outdated => return self.wait(state, service, template, asked),
            }
        };
        // Superseded meanwhile.
        if result == LookupResult::Failed && self.is_over() {
            return self.give_back(&service);
        }
        let valid = match result {
            LookupResult::Followed => Duration::MAX,
            LookupResult::Absent => template.absent,
            LookupResult::Failed => PACE,
        };
        self.store.record_lookup(template.lookup_key(&service.name), result, valid);
    }

    /// From now on Consul says when the names change, so that the same need not be asked again.
    fn note_untagged(
        &self,
        state: &mut State,
        service: &ServiceName,
        template: &Template,
        at: Instant,
    ) -> LookupResult {
        for number in &template.catalogs {
            let known = &mut state.catalogs[*number];
            if known.find(service, template, at) == Listing::Untagged {
                known.untagged_at = Some(Instant::now());
            }
        }
        self.wanted.notify_all();
        LookupResult::Absent
    }

    /// Whether the resolver of another configuration takes the names from now on.
    pub(super) fn is_over(&self) -> bool {
        self.stop.is_raised() || self.store.is_superseded()
    }

    /// Leaves a service to the next resolver. If the queue is full, the worker asks again.
    pub(super) fn give_back(&self, service: &ServiceName) {
        self.channel.ask(service);
    }

    /// Leaves a service to the next read of the catalogs whose names are too old.
    fn wait(&self, state: &mut State, service: ServiceName, template: &Template, asked: Asked) {
        for number in &template.catalogs {
            let known = &mut state.catalogs[*number];
            if known.find(&service, template, asked.first) == Listing::Outdated {
                self.want(known);
            }
        }
        let has_room = state.pending.len() < MAX_PENDING;
        if let Some(pending) = state.pending.get_mut(&service) {
            pending.last = asked.last;
        } else if has_room {
            state.pending.insert(service, asked);
        }
    }

    /// Has a catalog read.
    pub(super) fn want(&self, known: &mut KnownCatalog) {
        if !std::mem::replace(&mut known.is_wanted, true) {
            self.wanted.notify_all();
        }
    }

    /// Forgets the services that no request waits for any more, and aborts reads for nobody.
    pub(super) fn end_unwanted(&self, state: &mut State) {
        state.pending.retain(|_, asked| asked.last.elapsed() <= GONE);
        let admitted = state.pending.keys().filter_map(|service| self.templates.admit(service));
        let needed: HashSet<usize> =
            admitted.flat_map(|template| &template.catalogs).copied().collect();
        for (number, known) in state.catalogs.iter_mut().enumerate() {
            if !needed.contains(&number) && !known.is_wanted_for_idle {
                known.is_wanted = false;
                known.reading.take().iter().for_each(|stop| stop.raise());
            }
        }
    }

    /// Follows a service that is not followed yet, and drops another one if there is no room.
    fn follow_new(
        &self,
        state: &mut State,
        service: &ServiceName,
        template: &Template,
    ) -> LookupResult {
        let mut followed = self.follow(state, service, template);
        if followed.is_err() && self.evict(state, None) {
            followed = self.follow(state, service, template);
        }
        if let Err(error) = followed {
            state.refused = Some((service.clone(), error));
            return LookupResult::Failed;
        }
        self.evict_over_limit(state, Some(service));
        LookupResult::Followed
    }

    /// Follows a service. If there is no room, `reconcile` removes the targets added so far.
    pub(super) fn follow(
        &self,
        state: &mut State,
        service: &ServiceName,
        template: &Template,
    ) -> Result<(), String> {
        let targets = template.targets_of(&service.name, &self.plan).into_iter();
        let of_catalogs = targets.zip(&template.catalogs);
        let targets: Vec<_> = of_catalogs.filter(|(target, _)| target.fixed.is_none()).collect();
        let numbers = targets.iter().map(|(target, _)| self.store.add(service, target));
        let numbers = numbers.collect::<Result<Vec<usize>, String>>()?;
        for (number, (target, catalog)) in numbers.iter().zip(targets) {
            let known = &state.catalogs[*catalog];
            if matches!(known.names, Some(Err(_))) {
                self.store.note_unreachable(*number, "its catalog of services can't be read");
            }
            self.watcher.follow_from(*number, target.target, known.server);
        }
        if !numbers.is_empty() {
            state.registry.insert(service.clone(), numbers);
        }
        Ok(())
    }

    /// If the instances of a followed service found no room, drops other services.
    fn make_room(&self, state: &mut State, service: &ServiceName) {
        let targets = state.registry.get(service).cloned().unwrap_or_default();
        for target in targets.into_iter().filter(|target| self.store.lacks_room(*target)) {
            (0..VICTIMS).take_while(|_| self.evict(state, Some(service))).for_each(drop);
            self.watcher.request_resync(target);
        }
    }

    /// Drops services until there are at most `consul_max_services`.
    pub(super) fn evict_over_limit(&self, state: &mut State, except: Option<&ServiceName>) {
        while state.registry.len() > self.templates.max && self.evict(state, except) {}
    }

    /// Drops the least recently used service for a newer one; `false` if there is none.
    fn evict(&self, state: &mut State, except: Option<&ServiceName>) -> bool {
        let unused_for = |target| self.store.unused_for(target);
        let is_in_step = |target| self.store.is_in_step(target);
        let victim = least_recently_used(&state.registry, except, is_in_step, unused_for);
        state.evicted += usize::from(victim.is_some());
        victim.iter().for_each(|victim| self.drop_service(state, victim));
        victim.is_some()
    }

    /// Stops following a service.
    pub(super) fn drop_service(&self, state: &mut State, service: &ServiceName) {
        for target in state.registry.remove(service).unwrap_or_default() {
            self.watcher.forget(target);
            self.store.remove(target);
        }
        if let Some(template) = self.templates.find(service.template) {
            self.store.forget_lookup(template.lookup_key(&service.name));
        }
    }
}

impl KnownCatalog {
    /// What the catalog says about a service that was named `at` this time. A read that fails is the
    /// answer for services named before it began: a later one may find Consul in order again.
    pub(super) fn find(&self, service: &ServiceName, template: &Template, at: Instant) -> Listing {
        let asked = (&*service.name, &*template.allowed.tags);
        match &self.names {
            Some(Ok(names)) => names.find(asked, at, (template.absent, self.is_current)),
            Some(Err(began)) if at <= *began => Listing::Failed,
            _ => Listing::Outdated,
        }
    }
}
