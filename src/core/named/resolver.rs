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
use super::registry::ServiceRegistry;
use super::{Channel, Place, ServiceStore, Template, Templates};
use crate::consul::client::Client;
use crate::stop::Stop;
use crate::sync::{Engine, Level, Plan, join_all, spawn};
use crate::table::{Named, Verdict};

mod reconcile;

/// Time from the begin of a read of a catalogue to that of the next one: this long at least, and so
/// many times as long as the read took.
const PACE: Duration = Duration::from_millis(250);
const SHARE: u32 = 4;
/// The most that that can be. Also how long it holds that there is no answer, if there was none
/// before either, or no room.
const FAILED: Duration = Duration::from_secs(1);
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
    engine: Arc<Engine>,
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
    pending: HashMap<Named, Instant>,
    /// Dropped for newer ones since the log said so last.
    evicted: usize,
    /// That there was no room, and for whom last.
    refused: Option<String>,
}

/// What is known of a catalogue.
#[derive(Default)]
struct Known {
    /// What it listed last; or until when it holds that there was no answer.
    names: Option<Result<CatalogNames, Instant>>,
    is_wanted: bool,
}

impl ServiceResolver {
    /// Starts the threads; services followed by an earlier configuration are taken over. See
    /// [`Engine`] for the signals to block.
    ///
    /// # Errors
    ///
    /// No thread or descriptor is left.
    pub fn start(
        templates: Arc<Templates>,
        plan: Arc<Plan>,
        channel: &'static Channel,
        store: Arc<dyn ServiceStore>,
        engine: Arc<Engine>,
    ) -> io::Result<ServiceResolver> {
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
            let took = began.elapsed();
            let mut state = self.state.lock();
            // The first failure may be that of a connection that was kept too long.
            let fails_on = read.is_err() && matches!(state.catalogs[number].names, Some(Err(_)));
            let (hold, pause) = match fails_on {
                true => (FAILED, FAILED),
                false => (Duration::ZERO, (took * SHARE).clamp(PACE, FAILED).saturating_sub(took)),
            };
            let names = read.map_err(|error| {
                let line = format!("the names of all services can't be read ({error})");
                self.store.log(Level::Error, line);
                Instant::now() + hold
            });
            state.catalogs[number] = Known { names: Some(names), is_wanted: false };
            for (service, since) in std::mem::take(&mut state.pending) {
                self.resolve(&mut state, service, since);
            }
            drop(state);
            if !self.stop.sleep(pause) {
                return;
            }
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
    fn resolve(&self, state: &mut State, service: Named, at: Instant) {
        // The worker has checked it; but the channel is older than this configuration. Who takes
        // that worker's place asks again.
        let Some(template) = self.templates.admit(&service) else { return };
        let key = template.verdict_key(&service.name);
        let (verdict, valid) = if state.registry.targets(&service).is_some() {
            self.make_room(state, &service);
            (Verdict::Followed, Duration::MAX)
        } else {
            let find = |number: &usize| state.catalogs[*number].find(&service, template, at);
            match template.catalogs.iter().map(find).max().unwrap_or(Listing::Absent) {
                Listing::Absent => (Verdict::Absent, template.absent),
                Listing::Failed => (Verdict::Failed, FAILED),
                Listing::Listed => match self.follow(state, &service, template) {
                    Ok(()) => {
                        self.trim(state, Some(&service));
                        (Verdict::Followed, Duration::MAX)
                    }
                    Err(error) => {
                        let name = service.name.escape_debug();
                        state.refused = Some(format!("no room for service \"{name}\": {error}"));
                        (Verdict::Failed, FAILED)
                    }
                },
                Listing::Outdated => return self.wait(state, service, template, at),
            }
        };
        self.store.record_lookup(key, verdict, valid);
    }

    /// Leaves a service to the next read of the catalogues whose names are too old.
    fn wait(&self, state: &mut State, service: Named, template: &Template, at: Instant) {
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

    /// Has the service followed, in place of another one if the table is full.
    fn follow(
        &self,
        state: &mut State,
        service: &Named,
        template: &Template,
    ) -> Result<(), String> {
        let places = template.places(&service.name, &self.plan);
        let places: Vec<Place> = places.into_iter().filter(|p| p.fixed.is_none()).collect();
        let mut targets = Vec::new();
        for place in &places {
            let added = self.store.add(service, place.key).or_else(|error| {
                if self.evict(state, None) {
                    self.store.add(service, place.key)
                } else {
                    Err(error)
                }
            });
            match added {
                Ok(target) => targets.push(target),
                Err(error) => {
                    targets.into_iter().for_each(|target| self.store.remove(target));
                    return Err(error);
                }
            }
        }
        if !targets.is_empty() {
            state.registry.insert(service.clone(), targets.clone());
        }
        for (target, place) in targets.into_iter().zip(places) {
            self.engine.follow(target, place.target);
        }
        Ok(())
    }

    /// If the instances of a service that is followed found no room, others go.
    fn make_room(&self, state: &mut State, service: &Named) {
        let targets = state.registry.targets(service).unwrap_or_default().to_vec();
        for target in targets.into_iter().filter(|target| self.store.lacks_room(*target)) {
            (0..VICTIMS).take_while(|_| self.evict(state, Some(service))).for_each(drop);
            self.engine.ask_again(target);
        }
    }

    /// Drops services until there are not too many.
    fn trim(&self, state: &mut State, except: Option<&Named>) {
        while state.registry.len() > self.templates.max && self.evict(state, except) {}
    }

    /// Drops the service that was named longest ago for a newer one; `false` if there is none.
    fn evict(&self, state: &mut State, except: Option<&Named>) -> bool {
        let unused_for = |target| self.store.unused_for(target);
        let victim = state.registry.least_recent(except, unused_for);
        state.evicted += usize::from(victim.is_some());
        victim.iter().for_each(|victim| self.drop_service(state, victim));
        victim.is_some()
    }

    fn drop_service(&self, state: &mut State, service: &Named) {
        for target in state.registry.remove(service) {
            self.engine.forget(target);
            self.store.remove(target);
        }
        if let Some(template) = self.templates.find(service.template) {
            let key = template.verdict_key(&service.name);
            self.store.record_lookup(key, Verdict::Failed, Duration::ZERO);
        }
    }
}

impl Known {
    /// What the catalogue says of a service that was named `at` this time.
    fn find(&self, service: &Named, template: &Template, at: Instant) -> Listing {
        let asked = (&*service.name, &*template.allowed.tags);
        match &self.names {
            Some(Ok(names)) => names.find(asked, at, template.absent),
            Some(Err(until)) if at <= *until => Listing::Failed,
            _ => Listing::Outdated,
        }
    }
}
