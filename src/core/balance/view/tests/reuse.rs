use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::idle::{Hint, Idle, Key};
use crate::table::InFlight;

/// A worker that keeps some connections, and has some requests under way.
struct Worker<'s> {
    scene: &'s Scene,
    reuse: Reuse,
    idle: Idle<usize>,
    under_way: VecDeque<(usize, InFlight<'static>)>,
    cursor: u64,
    rng: SmallRng,
    picks: usize,
    opened: usize,
    /// Of each peer, what it got less what the method gave it: lowest, now, highest.
    ahead: Vec<[i64; 3]>,
}

impl<'s> Worker<'s> {
    fn new(scene: &'s Scene, connections: usize) -> Worker<'s> {
        Worker {
            scene,
            reuse: Reuse::new(&scene.view, None),
            idle: Idle::new(connections),
            under_way: VecDeque::new(),
            cursor: 0,
            rng: SmallRng::seed_from_u64(7),
            picks: 0,
            opened: 0,
            ahead: vec![[0; 3]; scene.view.records().len()],
        }
    }

    fn key(&self, peer: usize) -> Key {
        let known = self.scene.view.known(peer);
        Key { owner: 0, place: Some(known.place), identity: known.identity }
    }

    fn begin(&mut self) -> usize {
        let tried = Tried::default();
        let (scene, candidates) = (self.scene, self.scene.candidates(&tried));
        let shared = || scene.shared();
        let given = pick(scene.method, &candidates, shared, &mut self.cursor, &mut self.rng)
            .unwrap()
            .picked;
        let idle = |peer| self.idle.count(self.idle.find(&self.key(peer), Hint::NONE));
        let picked = self.reuse.instead_of(given, scene.method, &candidates, idle);
        let (from, to) = (given.known.number as usize, picked.known.number as usize);
        let turns = if from == to { [0, 0] } else { [-1, 1] };
        for (peer, turn) in [from, to].into_iter().zip(turns) {
            let [low, now, high] = &mut self.ahead[peer];
            *now += turn;
            (*low, *high) = ((*now).min(*low), (*now).max(*high));
        }
        let hint = self.idle.find(&self.key(to), Hint::NONE);
        self.opened += usize::from(self.idle.take(hint, |_| true).is_none());
        self.picks += 1;
        let Known { place, identity, .. } = *picked.known;
        let lane = Some(scene.lane);
        let entered = scene.table.enter_at(place, picked.counters, identity, lane);
        self.under_way.push_back((to, entered.unwrap()));
        to
    }

    /// The request that has been under way for longest is answered.
    fn end(&mut self) {
        let Some((peer, entered)) = self.under_way.pop_front() else { return };
        entered.end();
        let key = self.key(peer);
        self.idle.put(key, self.idle.find(&key, Hint::NONE), peer);
        self.reuse.note_idle(peer);
    }

    fn run(&mut self, requests: usize, at_once: usize) {
        for _ in 0..requests {
            if self.under_way.len() >= at_once {
                self.end();
            }
            self.begin();
        }
    }

    /// New connections per request since the last look.
    fn opened_share(&mut self) -> f64 {
        let share = self.opened as f64 / self.picks as f64;
        (self.opened, self.picks) = (0, 0);
        share
    }
}

fn service(method: Method, peers: u16, params: impl Fn(u16) -> Params) -> Scene {
    let peers: Vec<(u16, Params)> = (1..=peers).map(|port| (port, params(port))).collect();
    Scene::balanced(method, &[&peers])
}

fn weighted(weight: u16) -> Params {
    Params { weight: NonZeroU16::new(weight), ..PLAIN }
}

#[test]
fn a_few_idle_connections_serve_most_requests_to_many_peers() {
    for method in [Method::RoundRobin, Method::Random, Method::LeastConn] {
        let scene = service(method, 1000, |_| PLAIN);
        let mut worker = Worker::new(&scene, 16);
        worker.run(30_000, 8);
        worker.opened_share();
        worker.run(30_000, 8);
        let opened = worker.opened_share();
        assert!(opened < 0.09, "{method:?}: {opened} connections for each request");
    }
}

#[test]
fn where_a_connection_to_each_peer_is_idle_the_method_s_order_stays() {
    let scene = service(Method::RoundRobin, 5, |_| PLAIN);
    let mut worker = Worker::new(&scene, 64);
    worker.run(1000, 1);
    let order: Vec<usize> = (0..10)
        .map(|_| {
            worker.end();
            worker.begin()
        })
        .collect();
    assert_eq!(order[..5], order[5..]);
    let mut once = order[..5].to_vec();
    once.sort_unstable();
    assert_eq!(once, [0, 1, 2, 3, 4]);
}

#[test]
fn a_busier_peer_does_not_get_the_turn_of_a_less_busy_one() {
    let scene = service(Method::LeastConn, 2, |_| PLAIN);
    let mut worker = Worker::new(&scene, 64);
    worker.run(1, 1);
    worker.end();
    let busy = worker.idle.oldest().copied().unwrap();
    let known = scene.view.known(busy);
    let _stays = scene.table.enter(known.place, known.identity, Some(scene.lane));
    assert_eq!(worker.begin(), 1 - busy);
    assert_eq!(worker.opened, 2, "the idle connection was not reason enough");
}

#[test]
fn a_slower_peer_does_not_get_the_turn_of_a_faster_one() {
    for (took, gets_it) in [(10, true), (11, true), (12, false)] {
        let scene = service(Method::LeastTime, 2, |_| PLAIN);
        let reuse = Reuse::new(&scene.view, None);
        let peer = |number: usize, took| {
            let known = scene.view.known(number);
            let counters = scene.table.slot(known.place);
            let latency = Latency::default().after(took, NOW.millis);
            counters.update_latency(known.identity, |_| latency.raw());
            Picked { known, counters }
        };
        let (given, _other) = (peer(0, 10), peer(1, took));
        reuse.note_idle(1);
        let tried = Tried::default();
        let candidates = scene.candidates(&tried);
        let picked = reuse.instead_of(given, scene.method, &candidates, |n| usize::from(n == 1));
        assert_eq!(picked.known.number == 1, gets_it, "{took} ms beside 10");
    }
}

#[test]
fn a_peer_that_is_not_quite_well_gets_nobody_else_s_turn() {
    let slow = Params { slow_start: Some(60_000), ..PLAIN };
    let down = Params { down: true, ..PLAIN };
    let full = Params { max_conns: Some(1), ..PLAIN };
    for (what, params) in [("failed", PLAIN), ("slow", slow), ("down", down), ("full", full)] {
        let scene = service(Method::RoundRobin, 2, |port| if port == 1 { params } else { PLAIN });
        let mut worker = Worker::new(&scene, 64);
        let (ill, well) = (scene.at(1), scene.at(2));
        let known = scene.view.known(ill);
        worker.idle.put(worker.key(ill), worker.idle.find(&worker.key(ill), Hint::NONE), ill);
        worker.reuse.note_idle(ill);
        let counters = scene.table.slot(known.place);
        match what {
            "failed" => scene.fail(1),
            "slow" => {
                counters.note_failed(known.identity, 50);
                assert!(counters.note_passed(known.identity, 1, 50, NOW.millis));
            }
            "full" => {
                let _stays =
                    scene.table.enter(known.place, known.identity, Some(scene.lane)).unwrap();
            }
            _ => {}
        }
        let given = Picked { known: scene.view.known(well), counters };
        let tried = Tried::default();
        let idle = |peer| usize::from(peer == ill);
        let candidates = scene.candidates(&tried);
        let picked = worker.reuse.instead_of(given, scene.method, &candidates, idle);
        assert_eq!(picked.known.number as usize, well, "{what}");
    }
}

#[test]
fn a_second_attempt_goes_where_the_method_says() {
    let scene = service(Method::RoundRobin, 3, |_| PLAIN);
    let reuse = Reuse::new(&scene.view, None);
    reuse.note_idle(2);
    let given = |number| {
        let known = scene.view.known(number);
        Picked { known, counters: scene.table.slot(known.place) }
    };
    let mut tried = Tried::default();
    let picked = |tried: &Tried| {
        let candidates = scene.candidates(tried);
        let idle = |peer| usize::from(peer == 2);
        reuse.instead_of(given(1), scene.method, &candidates, idle).known.number
    };
    assert_eq!(picked(&Tried::default()), 2);
    reuse.note_idle(2);
    tried.insert(0);
    assert_eq!(picked(&tried), 1);
}

#[test]
fn a_new_set_keeps_how_the_turns_stand() {
    let scene = service(Method::RoundRobin, 10, |_| PLAIN);
    let mut worker = Worker::new(&scene, 2);
    worker.run(1005, 1);
    worker.end();
    let image = scene.view.image(0);
    let records = image.records.into_iter().rev().filter(|r| r.addr().port() != 1).collect();
    let images = vec![Image::of_records(7, records)];
    let view = View::new(images, &Rules::default(), scene.method, Some(&scene.view));
    let next = Reuse::new(&view, Some((&worker.reuse, &scene.view)));
    let stand = |reuse: &Reuse, view: &View| -> Vec<(u16, i8)> {
        let ports = view.records().iter().map(|record| record.addr().port());
        let mut stand: Vec<_> = ports.zip(reuse.ahead()).filter(|(port, _)| *port != 1).collect();
        stand.sort_unstable();
        stand
    };
    let before = stand(&worker.reuse, &scene.view);
    assert!(before.iter().any(|(_, ahead)| *ahead != 0), "{before:?}");
    assert_eq!(stand(&next, &view), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn nobody_gets_more_than_its_turns_and_sixteen(
        weights in prop::collection::vec(1u16..20, 1..40),
        connections in 1usize..50,
        at_once in 1usize..20,
        method in prop::sample::select(vec![
            Method::RoundRobin, Method::Random, Method::LeastConn, Method::LeastTime
        ]),
    ) {
        let scene = service(method, weights.len() as u16, |port| weighted(weights[port as usize - 1]));
        let mut worker = Worker::new(&scene, connections);
        worker.run(3000, at_once);
        for [low, now, high] in &worker.ahead {
            prop_assert!(high - low <= 2 * i64::from(MOST), "{low} {now} {high}");
        }
        prop_assert_eq!(worker.ahead.iter().map(|[_, now, _]| now).sum::<i64>(), 0);
    }
}
