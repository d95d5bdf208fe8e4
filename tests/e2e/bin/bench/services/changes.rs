//! Changes, and how late each is seen.

use std::collections::HashSet;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::http::Connection;

use super::scene::{INSTANCES, Scene, address};

/// Longest a change may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// What changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Health,
    Address,
}

/// Makes changes.
pub(super) struct Changes<'a> {
    scene: &'a Scene,
    random: u64,
    /// Of each instance: whether it fails, and whether it has moved.
    state: Vec<[bool; 2]>,
    seen: Vec<(Kind, f64)>,
}

/// How late the changes were seen, milliseconds.
pub(super) struct Delays(Vec<(Kind, f64)>);

struct Change {
    kind: Kind,
    service: usize,
    instance: usize,
    now: bool,
}

impl<'a> Changes<'a> {
    pub(super) fn new(scene: &'a Scene) -> Self {
        let state = vec![[false; 2]; scene.services * INSTANCES];
        Changes { scene, random: 0x2545_f491_4f6c_dd1d, state, seen: Vec::new() }
    }

    /// Makes so many changes a second, each of another service than those not seen yet.
    pub(super) fn run(&mut self, rate: u32, length: Duration) {
        let start = Instant::now();
        let busy: Mutex<HashSet<usize>> = Mutex::default();
        let scene = self.scene;
        let seen = Mutex::new(std::mem::take(&mut self.seen));
        thread::scope(|scope| {
            for number in 0..(f64::from(rate) * length.as_secs_f64()) as u32 {
                let at = start + Duration::from_secs(1) * number / rate;
                thread::sleep(at.saturating_duration_since(Instant::now()));
                let kind = if number % 5 == 4 { Kind::Address } else { Kind::Health };
                let change = self.next(kind, &busy);
                let (busy, seen) = (&busy, &seen);
                scope.spawn(move || {
                    let late = see(scene, &change);
                    seen.lock().expect("delays").push((change.kind, late));
                    busy.lock().expect("services").remove(&change.service);
                });
            }
        });
        self.seen = seen.into_inner().expect("delays");
    }

    fn next(&mut self, kind: Kind, busy: &Mutex<HashSet<usize>>) -> Change {
        loop {
            let service = self.below(self.scene.services);
            let instance = self.below(INSTANCES);
            let state = self.state[service * INSTANCES + instance];
            let fails = state[0];
            let of_service = &self.state[service * INSTANCES..][..INSTANCES];
            let failing = of_service.iter().filter(|state| state[0]).count();
            // Who fails is not to be seen elsewhere, and most stay: removals of more wait for
            // confirmation.
            let wanted = match kind {
                Kind::Address => !fails,
                Kind::Health => fails || failing < 2,
            };
            if !wanted || !busy.lock().expect("services").insert(service) {
                continue;
            }
            let state = &mut self.state[service * INSTANCES + instance];
            let state = &mut state[usize::from(kind == Kind::Address)];
            *state = !*state;
            return Change { kind, service, instance, now: *state };
        }
    }

    /// Makes changes of health as fast as told, and waits for nothing; how many a second it were.
    pub(super) fn stir(&mut self, rate: u32, length: Duration) -> f64 {
        let start = Instant::now();
        let mut made = 0;
        while start.elapsed() < length {
            let at = start + Duration::from_secs(1) * made / rate;
            thread::sleep(at.saturating_duration_since(Instant::now()));
            let change = self.next(Kind::Health, &Mutex::default());
            self.scene.set_health(change.service, change.instance, !change.now);
            made += 1;
        }
        f64::from(made) / start.elapsed().as_secs_f64()
    }

    pub(super) fn delays(&self) -> Delays {
        Delays(self.seen.clone())
    }

    /// Marsaglia's xorshift: the same changes in each run.
    fn below(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as usize % limit
    }
}

/// Makes the change; milliseconds until requests show it.
fn see(scene: &Scene, change: &Change) -> f64 {
    let Change { kind, service, instance, now } = *change;
    let mut connection = Connection::open(scene.nginx.address()).expect("a connection");
    let path = format!("/s{service}");
    let start = Instant::now();
    let (awaited, present) = match kind {
        Kind::Health => {
            scene.set_health(service, instance, !now);
            (None, !now)
        }
        Kind::Address => {
            scene.set_address(service, instance, now);
            (Some(address(service, instance, now).to_string()), true)
        }
    };
    let [one, two] = [false, true].map(|second| address(service, instance, second).to_string());
    loop {
        // Round robin comes to each of the peers within so many requests.
        let hit = (0..=INSTANCES).any(|_| {
            let answer = connection.get(&path).expect("an answer");
            let who = answer.body.trim();
            awaited.as_deref().map_or(who == one || who == two, |awaited| who == awaited)
        });
        let late = start.elapsed();
        if hit == present {
            return late.as_secs_f64() * 1000.0;
        }
        assert!(late < PATIENCE, "{kind:?} of s{service}-{instance} is not seen");
        let pause = if late.as_millis() < 100 { 1 } else { 20 };
        thread::sleep(Duration::from_millis(pause));
    }
}

impl Delays {
    /// Median/p95/most.
    pub(super) fn spread(&self, kind: Kind) -> String {
        let mut late: Vec<f64> =
            self.0.iter().filter(|(k, _)| *k == kind).map(|(_, l)| *l).collect();
        late.sort_by(f64::total_cmp);
        let at = |share: f64| late[((late.len() - 1) as f64 * share).round() as usize];
        if late.is_empty() {
            return "–".to_owned();
        }
        format!("{:.0}/{:.0}/{:.0} of {}", at(0.5), at(0.95), at(1.0), late.len())
    }
}
