//! Who makes trouble, and when.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use nginx_consul_e2e::{process, wait};
use rustix::process::Signal;
use serde_json::Value;

use crate::gauge::{self, Counts, Stalls, Usage, count};
use crate::report::{self, Result};
use crate::scene::{SERVICES, Scene, registration};

/// What is meant to happen so often: 200 registrations or deregistrations a second.
pub(crate) const CHANGES: Duration = Duration::from_millis(5);
/// Threads that make them, a few more than that: it makes up for the time that Consul is down.
const CHANGERS: usize = 12;
const PACE: Duration = Duration::from_millis(50);
/// Instances of a service that come and go.
const GUESTS: usize = 4;
const CLIENTS: usize = 4;
const PROBES: usize = 8;
/// Probes of a backend: what holds those up is the machine.
const CONTROLS: usize = 4;

pub(crate) const KILLS: Duration = Duration::from_millis(1500);
pub(crate) const RELOADS: Duration = Duration::from_secs(4);
pub(crate) const RESTARTS: Duration = Duration::from_secs(30);
pub(crate) const ROTATIONS: Duration = Duration::from_secs(7);

/// Numbers that vary.
struct Random(u64);

impl Random {
    fn new(seed: usize) -> Random {
        Random((u64::from(std::process::id()) << 20 | seed as u64) + 1)
    }

    fn below(&mut self, n: usize) -> usize {
        // xorshift64: this needs no quality, only variety.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % n as u64).expect("below n")
    }
}

/// Runs it all for this long; prints the table; returns what is not as it should be.
pub(crate) fn run(span: Duration) -> Vec<String> {
    println!("soak: {SERVICES} services, {:.1} min", span.as_secs_f64() / 60.0);
    let mut scene = Scene::start();
    // What a first reload leaves in the master is the measure for those that follow.
    scene.nginx.reload_and_wait();
    scene.until_settled();
    let counts = Counts::default();
    let before = Usage::of(&scene.nginx);
    let start = Instant::now();
    let [stalls, machine] = upheave(&scene, &counts, span);
    let lasted = start.elapsed();
    scene.until_settled();
    let after = rested(&scene, before);
    let result =
        Result { counts: &counts, stalls, machine, before, after, lasted, clients: CLIENTS };
    report::print(&result);
    report::problems(&result)
}

/// What is used once idle connections to backends had time to go, and so had the requests of the
/// last killed worker.
fn rested(scene: &Scene, before: Usage) -> Usage {
    let start = Instant::now();
    loop {
        let now = Usage::of(&scene.nginx);
        let settled = now.descriptors <= before.descriptors && now.in_flight == 0;
        if settled || start.elapsed() > Duration::from_secs(8) {
            return now;
        }
        wait::pause();
    }
}

/// Returns how event loops were held up, and how the machine was.
fn upheave(scene: &Scene, counts: &Counts, span: Duration) -> [Stalls; 2] {
    let address = scene.nginx.address();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| scope.spawn(move || gauge::client(counts, address, n * 7)))
            .collect();
        let probes = |n: usize, address| -> Vec<_> {
            (0..n).map(|_| scope.spawn(move || gauge::probe(counts, address))).collect()
        };
        let probes = [probes(PROBES, address), probes(CONTROLS, scene.backends[0].address())];
        let changers: Vec<_> =
            (0..CHANGERS).map(|n| scope.spawn(move || change(scene, counts, n))).collect();
        scope.spawn(|| gauge::watch_peers(counts, scene));
        scope.spawn(|| every(KILLS, counts, 1, |random| kill(scene, counts, random)));
        scope.spawn(|| every(RELOADS, counts, 2, |_| reload(scene, counts)));
        scope.spawn(|| every(RESTARTS, counts, 3, |_| restart(scene, counts)));
        scope.spawn(|| {
            let mut held = scene.token.clone();
            every(ROTATIONS, counts, 4, |_| {
                if scene.rotate_token(&mut held) {
                    count(&counts.rotations);
                }
            });
        });
        let start = Instant::now();
        while start.elapsed() < span && !wait::is_interrupted() {
            thread::sleep(Duration::from_millis(20));
        }
        counts.stop.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().expect("a client"));
        changers.into_iter().for_each(|changer| changer.join().expect("a changer"));
        probes.map(|probes| {
            let none = Stalls::default();
            probes.into_iter().fold(none, |all, probe| all.merge(&probe.join().expect("a probe")))
        })
    })
}

/// Does something each `span`, give or take half of it, until the end.
fn every(span: Duration, counts: &Counts, seed: usize, mut act: impl FnMut(&mut Random)) {
    let mut random = Random::new(seed);
    let mut next = Instant::now() + span / 2;
    while counts.goes_on() {
        if Instant::now() < next {
            thread::sleep(Duration::from_millis(10));
            continue;
        }
        act(&mut random);
        next = Instant::now() + span.mul_f64(0.5 + random.below(1000) as f64 / 1000.0);
    }
}

fn kill(scene: &Scene, counts: &Counts, random: &mut Random) {
    // Old workers that still shut down are fair game too.
    let workers = process::children(scene.nginx.pid(), "nginx: worker process");
    if let Some(&pid) = workers.get(random.below(workers.len().max(1))) {
        *counts.last_kill.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        process::send(pid, Signal::KILL);
        count(&counts.kills);
    }
}

fn reload(scene: &Scene, counts: &Counts) {
    process::send(scene.nginx.pid(), Signal::HUP);
    count(&counts.reloads);
}

fn restart(scene: &Scene, counts: &Counts) {
    scene.restart_consul();
    count(&counts.restarts);
}

/// Registers and deregisters instances of every [`CHANGERS`]-th service; takes all back at the end.
fn change(scene: &Scene, counts: &Counts, own: usize) {
    let mut random = Random::new(100 + own);
    let mut present = [[false; GUESTS]; SERVICES];
    let mut next = Instant::now();
    while counts.goes_on() {
        let service = random.below(SERVICES.div_ceil(CHANGERS)) * CHANGERS + own;
        let guest = random.below(GUESTS);
        if service >= SERVICES {
            continue;
        }
        let weight = 1 + random.below(5);
        let there = &mut present[service][guest];
        if set(scene, service, guest, !*there, weight) {
            *there = !*there;
            count(&counts.changes);
        } else {
            count(&counts.changes_refused);
        }
        // What a restart of Consul held up is not made up for in a burst.
        next = (next + PACE).max(Instant::now() - PACE);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    for (service, guests) in present.iter().enumerate() {
        for guest in (0..GUESTS).filter(|&guest| guests[guest]) {
            wait::until("a guest leaves", crate::scene::PATIENCE, || {
                set(scene, service, guest, false, 1)
            });
        }
    }
}

/// Registers or deregisters a guest; says whether Consul did.
fn set(scene: &Scene, service: usize, guest: usize, there: bool, weight: usize) -> bool {
    let name = format!("guest-{guest}");
    let consul = scene.consul();
    let answer = if there {
        let backend = &scene.backends[1 + guest % (scene.backends.len() - 1)];
        let document = registration(service, &name, backend, weight);
        consul.request("PUT", "/v1/agent/service/register", &document)
    } else {
        let path = format!("/v1/agent/service/deregister/s{service}-{name}");
        consul.request("PUT", &path, &Value::Null)
    };
    answer.is_ok_and(|answer| answer.status == 200)
}
