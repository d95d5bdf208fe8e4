//! The threads that find out which services there are, and have them followed.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::PollFlags;

use super::catalog::{CatalogNames, Listing};
use super::registry::{ServiceRegistry, least_recent};
use super::{Channel, ServiceStore, Template, Templates};
use crate::consul::client::Client;
use crate::model::Level;
use crate::model::ServiceName;
use crate::stop::Stop;
use crate::table::LookupResult;
use crate::watch::{Plan, Watcher, join_all, spawn};

mod reconcile;

/// Time from the begin of a read of a catalogue to that of the next one: this long at least, and so
/// many times as long as the read took. Also how long it holds that nobody could tell.
const PACE: Duration = Duration::from_millis(250);
const SHARE: u32 = 4;
/// The most that that can be.
const MAX_PACE: Duration = Duration::from_secs(1);
/// How often what is followed is compared with what is asked for.
const RECONCILE: Duration = Duration::from_secs(1);
/// How many names wait for a catalogue at most; requests ask for the others again.
const MAX_PENDING: usize = 16 * 1024;
/// How many services have to go for the instances of one that found no room.
const VICTIMS: usize = 4;

/// The running threads: one that takes what the workers ask, and one for each catalogue, so that a
/// slow datacenter holds up nobody else. Dropping it stops them, without waiting.
pub struct ServiceResolver {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads share.
struct Shared {
    templates: Arc<Templates>,
    plan: Arc<Plan>,
    channel: &'static Channel,
    store: Arc<dyn ServiceStore>,
    engine: Arc<Watcher>,
    stop: Arc<Stop>,
    state: Mutex<State>,
    /// A catalogue is to be read.
    wanted: Condvar,
}

struct State {
    registry: ServiceRegistry,
    /// By the numbers of the catalogues.
    catalogs: Vec<Known>,
    /// Services that wait for a catalogue, and since when.
    pending: HashMap<ServiceName, Instant>,
    /// Dropped for newer ones since the log said so last.
    evicted: usize,
    /// For whom there was no room last, and why.
    refused: Option<(ServiceName, String)>,
}

/// What is known of a catalogue.
#[derive(Default)]
struct Known {
    /// What it listed last; or when it was that there was no answer.
    names: Option<Result<CatalogNames, Instant>>,
    is_wanted: bool,
}

impl ServiceResolver {
    /// Starts the threads; services followed by an earlier configuration are taken over. See
    /// [`Watcher`] for the signals to block.
    ///
    /// # Errors
    ///
    /// No thread or descriptor is left.
    pub fn start(
        templates: Arc<Templates>,
        plan: Arc<Plan>,
        store: Arc<dyn ServiceStore>,
        engine: Arc<Watcher>,
    ) -> io::Result<ServiceResolver> {
        let channel = Channel::get().ok_or(io::ErrorKind::NotConnected)?;
        let count = templates.catalogs().len();
        let state = State {
            registry: ServiceRegistry::default(),
            catalogs: (0..count).map(|_| Known::default()).collect(),
            pending: HashMap::new(),
            evicted: 0,
            refused: None,
        };
        let shared = Arc::new(Shared {
            templates,
            plan,
            channel,
            store,
            engine,
            stop: Arc::new(Stop::new()?),
            state: Mutex::new(state),
            wanted: Condvar::new(),
        });
        let mut resolver = ServiceResolver { shared: Arc::clone(&shared), threads: Vec::new() };
        let taking = Arc::clone(&shared);
        resolver.threads.push(spawn(move || taking.fenced(|| taking.take()))?);
        for number in 0..count {
            let shared = Arc::clone(&shared);
            let reading = move || shared.fenced(|| shared.read(number));
            resolver.threads.push(spawn(reading)?);
        }
        Ok(resolver)
    }

    /// Tells the threads to end, whatever they wait for.
    pub fn stop(&self) {
        self.shared.stop.raise();
        // Who has just seen that it is not raised waits by now.
        drop(self.shared.state.lock());
        self.shared.wanted.notify_all();
    }

    /// Stops the threads and waits until they have ended; `false` if that takes longer than
    /// `timeout`, and then they are left to end by themselves.
    pub fn join(mut self, timeout: Duration) -> bool {
        self.stop();
        join_all(std::mem::take(&mut self.threads), Instant::now() + timeout)
    }
}

impl Drop for ServiceResolver {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Runs a thread's body until it ends without a panic.
    fn fenced(&self, body: impl Fn()) {
        while catch_unwind(AssertUnwindSafe(&body)).is_err() {
            let line = "panic while asking for a service, going on".to_owned();
            let _ = catch_unwind(AssertUnwindSafe(|| self.store.log(Level::Error, line)));
            self.stop.sleep(RECONCILE);
        }
    }

    /// Takes what the workers ask.
    fn take(&self) {
        let mut reconciled = None::<Instant>;
        while !self.stop.is_raised() {
            if reconciled.is_none_or(|last| last.elapsed() >= RECONCILE) {
                reconciled = Some(Instant::now());
                self.reconcile(&mut self.state.lock());
            }
            if let Some(service) = self.channel.take() {
                self.resolve(&mut self.state.lock(), service, Instant::now());
                continue;
            }
            let deadline = Some(Instant::now() + RECONCILE);
            if self.stop.wait(self.channel.as_fd(), PollFlags::IN, deadline).is_err() {
                self.stop.sleep(RECONCILE);
            }
        }
    }

    /// Reads a catalogue whenever somebody waits for it.
    fn read(&self, number: usize) {
        let Some(catalog) = self.templates.catalogs().get(number) else { return };
        let mut client = Client::new(Arc::clone(&self.stop));
        while self.until_wanted(number) {
            let began = Instant::now();
            let read = catalog.read(&mut client);
            if self.stop.is_raised() {
                return;
            }
            let mut state = self.state.lock();
            let fails_on = matches!(state.catalogs[number].names, Some(Err(_)));
            let names = read.map_err(|error| {
                if !fails_on {
                    let line = format!("the names of all services can't be read ({error})");
                    self.store.log(Level::Error, line);
                }
                Instant::now()
            });
            state.catalogs[number] = Known { names: Some(names), is_wanted: false };
            for (service, since) in std::mem::take(&mut state.pending) {
                self.resolve(&mut state, service, since);
            }
            drop(state);
            let took = began.elapsed();
            self.stop.sleep((took * SHARE).clamp(PACE, MAX_PACE).saturating_sub(took));
        }
    }

    /// `false` if the threads are to end.
    fn until_wanted(&self, number: usize) -> bool {
        let mut state = self.state.lock();
        while !state.catalogs[number].is_wanted && !self.stop.is_raised() {
            self.wanted.wait(&mut state);
        }
        !self.stop.is_raised()
    }

    /// Finds out about a service that a request named `at` this time, or leaves it to the next read
    /// of a catalogue.
    fn resolve(&self, state: &mut State, service: ServiceName, at: Instant) {
        // The worker has checked it; but the channel is older than this configuration. Who takes
        // that worker's place asks again.
        let Some(template) = self.templates.admit(&service) else { return };
        let find = |number: &usize| state.catalogs[*number].find(&service, template, at);
        let verdict = if state.registry.contains_key(&service) {
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
        let valid = match verdict {
            LookupResult::Followed => Duration::MAX,
            LookupResult::Absent => template.absent,
            LookupResult::Failed => PACE,
        };
        self.store.record_lookup(template.verdict_key(&service.name), verdict, valid);
    }

    /// Leaves a service to the next read of the catalogues whose names are too old.
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

    /// Has a service followed that nobody has named yet, in place of others if need be.
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
        self.trim(state, Some(service));
        LookupResult::Followed
    }

    /// Has a service followed. If there is no room, what was added is seen to later.
    fn follow(
        &self,
        state: &mut State,
        service: &ServiceName,
        template: &Template,
    ) -> Result<(), String> {
        let mut places = template.places(&service.name, &self.plan);
        places.retain(|place| place.fixed.is_none());
        let targets = places.iter().map(|place| self.store.add(service, place.key));
        let targets = targets.collect::<Result<Vec<usize>, String>>()?;
        for (target, place) in targets.iter().zip(places) {
            self.engine.follow(*target, place.target);
        }
        if !targets.is_empty() {
            state.registry.insert(service.clone(), targets);
        }
        Ok(())
    }

    /// If the instances of a service that is followed found no room, others go.
    fn make_room(&self, state: &mut State, service: &ServiceName) {
        let targets = state.registry.get(service).cloned().unwrap_or_default();
        for target in targets.into_iter().filter(|target| self.store.lacks_room(*target)) {
            (0..VICTIMS).take_while(|_| self.evict(state, Some(service))).for_each(drop);
            self.engine.request_resync(target);
        }
    }

    /// Drops services until there are not too many.
    fn trim(&self, state: &mut State, except: Option<&ServiceName>) {
        while state.registry.len() > self.templates.max && self.evict(state, except) {}
    }

    /// Drops the service that was named longest ago for a newer one; `false` if there is none.
    fn evict(&self, state: &mut State, except: Option<&ServiceName>) -> bool {
        let unused_for = |target| self.store.unused_for(target);
        let victim = least_recent(&state.registry, except, unused_for);
        state.evicted += usize::from(victim.is_some());
        victim.iter().for_each(|victim| self.drop_service(state, victim));
        victim.is_some()
    }

    fn drop_service(&self, state: &mut State, service: &ServiceName) {
        for target in state.registry.remove(service).unwrap_or_default() {
            self.engine.forget(target);
            self.store.remove(target);
        }
        if let Some(template) = self.templates.find(service.template) {
            let key = template.verdict_key(&service.name);
            self.store.record_lookup(key, LookupResult::Failed, Duration::ZERO);
        }
    }
}

impl Known {
    /// What the catalogue says of a service that was named `at` this time.
    fn find(&self, service: &ServiceName, template: &Template, at: Instant) -> Listing {
        let asked = (&*service.name, &*template.allowed.tags);
        match &self.names {
            Some(Ok(names)) => names.find(asked, at, template.absent),
            Some(Err(ended)) if at <= *ended => Listing::Failed,
            _ => Listing::Outdated,
        }
    }
}
