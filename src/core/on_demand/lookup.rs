//! Finds out about one service that a request has named: follows it, or records that it does not
//! exist. If there is no room, the least recently used services are dropped.

use std::collections::HashMap;
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
    /// A catalog is to be read.
    pub(super) wanted: Condvar,
}

/// What is known of services and catalogs.
pub(super) struct State {
    pub(super) registry: ServiceRegistry,
    /// By the numbers of the catalogs.
    pub(super) catalogs: Vec<KnownCatalog>,
    /// Services that wait for a catalog, and since when.
    pub(super) pending: HashMap<ServiceName, Instant>,
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
            evicted: 0,
            refused: None,
        }
    }
}

/// What is known of a catalog.
#[derive(Default)]
pub(super) struct KnownCatalog {
    /// What it listed last; or when the last read began, if that failed.
    pub(super) names: Option<Result<CatalogNames, Instant>>,
    pub(super) is_wanted: bool,
}

impl Shared {
    /// Finds out about a service that a request named `at` this time, or leaves it to the next read
    /// of a catalog.
    pub(super) fn resolve(&self, state: &mut State, service: ServiceName, at: Instant) {
        if self.is_over() {
            return self.give_back(&service);
        }
        // The worker has checked the name, perhaps with an earlier configuration. A worker of this
        // one asks again.
        let Some(template) = self.templates.admit(&service) else { return };
        let find = |number: &usize| state.catalogs[*number].find(&service, template, at);
        let result = if state.registry.contains_key(&service) {
            self.make_room(state, &service);
            LookupResult::Followed
        } else {
            match template.catalogs.iter().map(find).max().unwrap_or(Listing::Absent) {
                Listing::Absent => LookupResult::Absent,
                Listing::Failed => LookupResult::Failed,
                Listing::Listed => self.follow_new(state, &service, template),
                Listing::Outdated => return self.wait(state, service, template, at),
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

    /// Whether the resolver of another configuration takes the names from now on.
    pub(super) fn is_over(&self) -> bool {
        self.stop.is_raised() || self.store.is_superseded()
    }

    /// Leaves a service to the next resolver. If the queue is full, the worker asks again.
    pub(super) fn give_back(&self, service: &ServiceName) {
        self.channel.ask(service);
    }

    /// Leaves a service to the next read of the catalogs whose names are too old.
    fn wait(&self, state: &mut State, service: ServiceName, template: &Template, at: Instant) {
        for number in &template.catalogs {
            let known = &mut state.catalogs[*number];
            if known.find(&service, template, at) == Listing::Outdated
                && !std::mem::replace(&mut known.is_wanted, true)
            {
                self.wanted.notify_all();
            }
        }
        if state.pending.len() < MAX_PENDING {
            state.pending.entry(service).or_insert(at);
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
        let mut targets = template.targets_of(&service.name, &self.plan);
        targets.retain(|target| target.fixed.is_none());
        let numbers = targets.iter().map(|target| self.store.add(service, target));
        let numbers = numbers.collect::<Result<Vec<usize>, String>>()?;
        for (number, target) in numbers.iter().zip(targets) {
            self.watcher.follow(*number, target.target);
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
        let victim = least_recently_used(&state.registry, except, unused_for);
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
            Some(Ok(names)) => names.find(asked, at, template.absent),
            Some(Err(began)) if at <= *began => Listing::Failed,
            _ => Listing::Outdated,
        }
    }
}
