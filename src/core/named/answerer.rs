//! The threads that find out what is behind a name.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::PollFlags;

use super::book::{Book, Follow};
use super::lists::Lists;
use super::roster::{Roster, Step};
use super::{Asked, Channel, Place, Template, Templates};
use crate::consul::client::Client;
use crate::consul::instances::Instances;
use crate::resolve::SystemResolver;
use crate::stop::{Stop, Woken};
use crate::sync::{Level, Plan, ask_once, join_all, publish_once, spawn};
use crate::table::{Named, Verdict};

mod tidy;

/// Threads that look names up, each with a connection: a slow datacenter must not hold up all.
pub const LOOKUPS: usize = 4;
/// How often what is followed is compared with what is asked for.
const TIDY: Duration = Duration::from_secs(1);
/// How many services at most have to go for the instances of a new one.
const VICTIMS: usize = 16;
/// How long it holds that nobody could tell.
const FAILED_MS: u64 = 1000;

/// The running threads. Dropping it stops them, without waiting.
#[derive(Debug)]
pub struct Answerer {
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads share.
struct Desk {
    templates: Arc<Templates>,
    plan: Arc<Plan>,
    channel: &'static Channel,
    book: Arc<dyn Book>,
    follow: Arc<dyn Follow>,
    stop: Arc<Stop>,
    roster: Mutex<Roster>,
    tidied: Mutex<Option<Instant>>,
    lists: Lists,
    /// Dropped for newer ones since the log said so last.
    dropped: AtomicUsize,
    complaints: Mutex<Complaints>,
}

/// Failures to find out about names: a flood of names must not become one of lines.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    unsaid: usize,
}

/// Somebody asks for a service; nobody does any more once this is dropped, whatever happened.
struct Asking<'a> {
    desk: &'a Desk,
    service: &'a Named,
    found: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.found {
            self.desk.roster.lock().not_found(self.service, Instant::now());
        }
    }
}

/// What Consul says of a name in one datacenter.
enum Found {
    Instances(u64, usize, Instances),
    None(u64, usize, Instances),
    Unknown(String),
}

impl Answerer {
    /// `Followed` has no end: the entry is looked at anyway.
    pub const FOR_EVER_MS: u64 = 1 << 60;

    /// Starts the threads; those followed by an earlier configuration are taken over. See
    /// [`Engine`](crate::sync::Engine) for the signals to block.
    ///
    /// # Errors
    ///
    /// No thread or descriptor is left.
    pub fn start(
        templates: Arc<Templates>,
        plan: Arc<Plan>,
        channel: &'static Channel,
        book: Arc<dyn Book>,
        follow: Arc<dyn Follow>,
    ) -> io::Result<Answerer> {
        let stop = Arc::new(Stop::new()?);
        let mut answerer = Answerer { stop: Arc::clone(&stop), threads: Vec::new() };
        let roster = Mutex::new(Roster::new(templates.max, Instant::now()));
        let desk = Desk {
            templates,
            plan,
            channel,
            book,
            follow,
            stop,
            roster,
            tidied: Mutex::new(None),
            lists: Lists::default(),
            dropped: AtomicUsize::new(0),
            complaints: Mutex::default(),
        };
        let desk = Arc::new(desk);
        for _ in 0..LOOKUPS {
            let desk = Arc::clone(&desk);
            answerer.threads.push(spawn(move || desk.work())?);
        }
        Ok(answerer)
    }

    /// Tells the threads to end, whatever they wait for.
    pub fn stop(&self) {
        self.stop.raise();
    }

    /// Stops the threads and waits until they have ended; `false` if that takes longer than
    /// `timeout`, and then they are left to end by themselves.
    pub fn join(mut self, timeout: Duration) -> bool {
        self.stop();
        join_all(std::mem::take(&mut self.threads), Instant::now() + timeout)
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Desk {
    fn work(&self) {
        let mut client = Client::new(Arc::clone(&self.stop));
        let resolver = SystemResolver::new(Arc::clone(&self.stop));
        while !self.stop.is_raised() {
            let step = AssertUnwindSafe(|| self.step(&mut client, &resolver));
            if catch_unwind(step).is_err() {
                client = Client::new(Arc::clone(&self.stop));
                let line = "panic while asking for a service, going on".to_owned();
                let _ = catch_unwind(AssertUnwindSafe(|| self.book.log(Level::Error, line)));
            }
        }
    }

    fn step(&self, client: &mut Client, resolver: &SystemResolver) {
        if let Some(mut tidied) = self.tidied.try_lock() {
            if tidied.is_none_or(|last| last.elapsed() >= TIDY) {
                *tidied = Some(Instant::now());
                self.tidy();
            }
        }
        if let Some(asked) = self.channel.take() {
            self.answer(&asked, client, resolver);
            return;
        }
        let deadline = Some(Instant::now() + TIDY);
        match self.stop.wait(self.channel.as_fd(), PollFlags::IN, deadline) {
            Ok(Woken::Timeout | Woken::Ready | Woken::Stopped) => {}
            Err(_) => drop(self.stop.sleep(TIDY)),
        }
    }

    fn answer(&self, asked: &Asked, client: &mut Client, resolver: &SystemResolver) {
        let service = &asked.service;
        // The worker has checked it; but the channel is older than this configuration. Who takes
        // that worker's place asks again.
        let Some(template) = self.templates.admit(service) else { return };
        let places = template.places(&service.name, &self.plan);
        let key = template.verdict_key(&service.name);
        let mut is_listed = false;
        loop {
            let step = self.roster.lock().ask(service, is_listed, Instant::now());
            match step {
                Step::Ask => break,
                Step::Asking => return,
                Step::Followed => {
                    return self.book.rule(key, Verdict::Followed, Answerer::FOR_EVER_MS);
                }
                Step::Wait(time) => {
                    match self.lists.has(&places, &service.name, client) {
                        Some(true) => {
                            is_listed = true;
                            continue;
                        }
                        Some(false) => {
                            let until = self.book.now_ms() + template.absent.as_millis() as u64;
                            return self.book.rule(key, Verdict::Absent, until);
                        }
                        None => {}
                    }
                    let over = self.book.now_ms() + time.as_millis() as u64 >= asked.until_ms;
                    if over || !self.stop.sleep(time) {
                        return;
                    }
                }
            }
        }
        let mut asking = Asking { desk: self, service, found: false };
        let verdict = self.look_up(service, template, &places, client, resolver);
        let now_ms = self.book.now_ms();
        let until_ms = match verdict {
            Verdict::Followed => Answerer::FOR_EVER_MS,
            Verdict::Absent => now_ms + template.absent.as_millis() as u64,
            Verdict::Failed => now_ms + FAILED_MS,
        };
        asking.found = verdict == Verdict::Followed;
        drop(asking);
        self.book.rule(key, verdict, until_ms);
    }

    /// Asks the datacenters in their order until one has the service.
    fn look_up(
        &self,
        service: &Named,
        template: &Template,
        places: &[Place],
        client: &mut Client,
        resolver: &SystemResolver,
    ) -> Verdict {
        let mut answers = HashMap::new();
        let mut failure = None;
        for (at, place) in places.iter().enumerate() {
            // A block follows it already.
            if place.fixed.is_some_and(|number| self.book.has_data(number)) {
                return self.found(service, places, answers, resolver);
            }
            match self.ask(template, place, client) {
                Found::Instances(index, server, instances) => {
                    answers.insert(at, (index, server, instances));
                    return self.found(service, places, answers, resolver);
                }
                Found::None(index, server, instances) => {
                    answers.insert(at, (index, server, instances));
                }
                Found::Unknown(error) => failure = Some(error),
            }
            if self.stop.is_raised() {
                return Verdict::Failed;
            }
        }
        match failure {
            None => Verdict::Absent,
            Some(error) => {
                self.complain(service, &error);
                Verdict::Failed
            }
        }
    }

    /// Says, once a second at most, that nobody could tell about a service.
    fn complain(&self, service: &Named, error: &str) {
        let mut complaints = self.complaints.lock();
        if complaints.last.is_some_and(|last| last.elapsed() < TIDY) {
            complaints.unsaid += 1;
            return;
        }
        let name = service.name.escape_debug();
        let more = match complaints.unsaid {
            0 => String::new(),
            n => format!(", and {n} more since the last such line"),
        };
        *complaints = Complaints { last: Some(Instant::now()), unsaid: 0 };
        self.book.log(Level::Error, format!("no answer about service \"{name}\": {error}{more}"));
    }

    fn ask(&self, template: &Template, place: &Place, client: &mut Client) -> Found {
        let mut failure = String::new();
        let subject = place.target.subject();
        for server in 0..subject.endpoint.servers.len() {
            match ask_once(client, &subject, server) {
                Ok((index, instances)) if template.has(&instances) => {
                    return Found::Instances(index, server, instances);
                }
                Ok((index, instances)) => return Found::None(index, server, instances),
                Err(error) => {
                    let server = &place.target.endpoint.servers[server];
                    failure = format!("{error}, server \"{server}\"");
                }
            }
        }
        Found::Unknown(failure)
    }

    /// Makes room for the service, puts in force what is known of it, and has it followed.
    fn found(
        &self,
        service: &Named,
        places: &[Place],
        mut answers: HashMap<usize, (u64, usize, Instances)>,
        resolver: &SystemResolver,
    ) -> Verdict {
        let victim = self.roster.lock().surplus(|t| self.book.last_used(t), Instant::now());
        if let Some(victim) = victim {
            self.drop_for_newer(&victim);
        }
        let mut numbers = Vec::new();
        for (at, place) in places.iter().enumerate().filter(|(_, place)| place.fixed.is_none()) {
            let number = match self.open(service, place.key) {
                Ok(number) => number,
                Err(error) => {
                    self.complain(service, &error);
                    numbers.into_iter().for_each(|number| self.book.close(number));
                    return Verdict::Failed;
                }
            };
            numbers.push(number);
            if let Some((index, server, instances)) = answers.remove(&at) {
                let answer = (index, server, &instances);
                let publish = || publish_once(number, &place.target, answer, resolver, &*self.book);
                let makes_room = |_: &usize| !publish() && self.drop_least_recent();
                (0..VICTIMS).take_while(makes_room).for_each(drop);
            }
        }
        self.roster.lock().found(service.clone(), numbers.clone());
        let targets = places.iter().filter(|place| place.fixed.is_none());
        for (number, place) in numbers.into_iter().zip(targets) {
            self.follow.follow(number, place.target.clone());
        }
        Verdict::Followed
    }

    /// An entry for the service, if need be that of another one.
    fn open(&self, service: &Named, key: u128) -> Result<usize, String> {
        self.book.open(service, key).or_else(|error| {
            if self.drop_least_recent() { self.book.open(service, key) } else { Err(error) }
        })
    }

    /// `false` if there is none.
    fn drop_least_recent(&self) -> bool {
        let used = |target| self.book.last_used(target);
        let victim = self.roster.lock().least_recent(used, Instant::now());
        victim.iter().for_each(|victim| self.drop_for_newer(victim));
        victim.is_some()
    }

    fn drop_for_newer(&self, victim: &Named) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.drop_service(victim);
    }

    fn drop_service(&self, service: &Named) {
        // Another thread may be at it.
        let Some(numbers) = self.roster.lock().drop_service(service) else { return };
        for number in numbers {
            self.follow.forget(number);
            self.book.close(number);
        }
        if let Some(template) = self.templates.find(service.template) {
            self.book.rule(template.verdict_key(&service.name), Verdict::Failed, 0);
        }
        self.roster.lock().dropped(service);
    }
}
