use std::num::NonZeroU16;
use std::sync::atomic::AtomicU64;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::super::candidates::FULL_SHARE;
use super::super::view::{ServerParams, Tried, View};
use super::*;
use crate::clock::Clock;
use crate::model::{Health, Peer, PeerSet, identity};
use crate::params::Params;
use crate::process::ProcessId;
use crate::table::{Permit, Table, WorkerShard};

mod admission;
mod methods;
mod turns;

const NOW: u64 = 100_000;

struct Scene {
    table: Table<'static>,
    shard: WorkerShard,
    view: View,
    method: Method,
}

fn peer(port: u16, params: Params) -> Peer {
    Peer {
        addr: ([127, 0, 0, 1], port).into(),
        weight: params.weight.unwrap_or(NonZeroU16::MIN),
        identity: identity("n", &port.to_string(), None),
        node: "n".into(),
        id: port.to_string(),
        tags: vec![],
        health: Health::Passing,
        datacenter: String::new(),
        params,
        meta: Default::default(),
    }
}

fn words() -> &'static [AtomicU64] {
    Vec::leak((0..1 << 17).map(|_| AtomicU64::new(0)).collect())
}

impl Scene {
    /// Each set is of one datacenter: ports and parameters.
    fn new(sets: &[&[(u16, Params)]]) -> Scene {
        Scene::balanced(Method::RoundRobin, sets)
    }

    fn balanced(method: Method, sets: &[&[(u16, Params)]]) -> Scene {
        Scene::over(words(), method, sets)
    }

    /// With a table in memory that no other scene is using.
    fn over(words: &'static [AtomicU64], method: Method, sets: &[&[(u16, Params)]]) -> Scene {
        let table = Table::create(words, 16).unwrap();
        let me = ProcessId::own();
        table.acquire_leadership(me);
        let snapshots = sets.iter().zip(1..).map(|(peers, key)| {
            let set = PeerSet::new(peers.iter().map(|(port, p)| peer(*port, *p)).collect());
            let entry = table.claim(key, me).unwrap();
            table.publish((entry, key), &set, Clock::at(1), me).unwrap();
            table.read_records(entry, key).unwrap()
        });
        let view = View::new(snapshots.collect(), &ServerParams::default(), method, None);
        Scene { shard: table.claim_shard(me).unwrap(), table, view, method }
    }

    fn candidates<'a>(&'a self, tried: &'a Tried) -> PickContext<'a, 'static> {
        PickContext {
            view: &self.view,
            table: &self.table,
            tried,
            now: NOW,
            key: b"",
            panic: false,
            alone: true,
        }
    }

    fn fail(&self, port: u16) {
        self.note_failed(self.at(port));
    }

    fn note_failed(&self, peer: usize) {
        let record = &self.view.records()[peer];
        let counters = self.table.peer_counters(record.slot);
        counters.note_failed((record.owner, record.address_id()), NOW);
    }

    fn at(&self, port: u16) -> usize {
        self.view.records().iter().position(|r| r.addr().port() == port).unwrap()
    }

    fn shared(&self) -> Shared<'static> {
        Shared { outage: Some(self.table.outage(0)), shard: Some(self.shard) }
    }

    /// The port that a request goes to, whose header comes at once.
    fn pick(&self, candidates: &PickContext<'_, 'static>, rng: &mut SmallRng) -> Option<u16> {
        let Admitted { picked, permit } = pick(self.method, candidates, || self.shared(), rng)?;
        permit.into_iter().for_each(Permit::end);
        Some(self.view.records()[picked.info.number as usize].addr().port())
    }

    /// Ports that requests go to, sorted.
    fn ports(&self, candidates: &PickContext<'_, 'static>) -> Vec<u16> {
        let mut rng = SmallRng::seed_from_u64(1);
        let picked = |_| self.pick(candidates, &mut rng);
        let mut ports: Vec<u16> = (0..20).map_while(picked).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

const PLAIN: Params = Params {
    weight: None,
    max_fails: None,
    fail_timeout: None,
    max_conns: None,
    slow_start: None,
    backup: false,
    down: false,
};
const BACKUP: Params = Params { backup: true, ..PLAIN };

#[test]
fn the_first_tier_with_a_usable_peer_wins() {
    let scene = Scene::new(&[&[(1, PLAIN), (2, BACKUP), (3, PLAIN)], &[(4, PLAIN)]]);
    let tiers: Vec<_> = scene.view.tiers().iter().map(|t| (t.set, t.backup, t.peers())).collect();
    assert_eq!(tiers, [(0, false, 0..2), (0, true, 2..3), (1, false, 3..4)]);
    let tried = Tried::default();
    let mut seen = vec![scene.ports(&scene.candidates(&tried))];
    for port in [1, 3, 2] {
        scene.fail(port);
        seen.push(scene.ports(&scene.candidates(&tried)));
    }
    assert_eq!(seen, [vec![1, 3], vec![3], vec![2], vec![4]]);
}

#[test]
fn a_request_goes_on_to_the_next_tier_when_it_has_tried_the_first() {
    let scene = Scene::new(&[&[(1, PLAIN)], &[(2, PLAIN)]]);
    let tried = Tried::default();
    tried.insert(0);
    assert_eq!(scene.ports(&scene.candidates(&tried)), [2]);
    tried.insert(1);
    assert_eq!(scene.ports(&scene.candidates(&tried)), [0u16; 0]);
}

#[test]
fn when_all_have_failed_those_that_the_request_has_not_tried_are_tried() {
    let scene = Scene::new(&[&[(1, PLAIN), (2, PLAIN)]]);
    scene.fail(1);
    scene.fail(2);
    let tried = Tried::default();
    let candidates = scene.candidates(&tried);
    assert_eq!(scene.ports(&candidates), [1, 2]);
    assert_eq!(scene.ports(&PickContext { alone: false, ..candidates }), [1, 2], "before servers");
    tried.insert(0);
    assert_eq!(scene.ports(&scene.candidates(&tried)), [2], "it may be the other one that is back");
}

#[test]
fn in_panic_failures_keep_nobody_out() {
    let scene = Scene::new(&[&[(1, PLAIN), (2, PLAIN), (3, PLAIN), (4, PLAIN)]]);
    scene.fail(1);
    scene.fail(2);
    scene.fail(3);
    let tried = Tried::default();
    let candidates = scene.candidates(&tried);
    assert_eq!((candidates.healthy_percent(), scene.ports(&candidates)), (25, vec![4]));
    assert_eq!(scene.ports(&PickContext { panic: true, ..candidates }), [1, 2, 3, 4]);
}

#[test]
fn an_instance_s_own_parameters_win_over_the_block_s() {
    let patient = Params { max_fails: Some(2), ..PLAIN };
    let down = Params { down: true, ..PLAIN };
    let narrow = Params { max_conns: Some(1), ..PLAIN };
    let scene = Scene::new(&[&[(1, patient), (2, PLAIN), (3, down), (4, narrow)]]);
    let tried = Tried::default();
    scene.fail(1);
    scene.fail(2);
    assert_eq!(scene.ports(&scene.candidates(&tried)), [1, 4]);
    let full = &scene.view.records()[scene.at(4)];
    let _stays = scene.table.begin_request(full.slot, full.owner, Some(scene.shard));
    assert_eq!(scene.ports(&scene.candidates(&tried)), [1]);
    scene.fail(1);
    assert_eq!(scene.ports(&scene.candidates(&tried)), [1, 2], "down is down, full is full");
}

#[test]
fn a_single_peer_is_never_out_and_may_be_tried_again() {
    let scene = Scene::new(&[&[(1, PLAIN)]]);
    scene.fail(1);
    let tried = Tried::default();
    tried.insert(0);
    let candidates = scene.candidates(&tried);
    assert_eq!(scene.ports(&candidates), [1]);
    assert_eq!(scene.ports(&PickContext { alone: false, ..candidates }), [0u16; 0], "tried");
}

#[test]
fn an_instance_that_recovers_from_its_failures_starts_slowly() {
    let slow = Params { slow_start: Some(10_000), ..PLAIN };
    let scene = Scene::new(&[&[(1, slow), (2, PLAIN)]]);
    let record = &scene.view.records()[scene.at(1)];
    let (slot, owner) = (record.slot, record.owner);
    let limits = scene.view.info(scene.at(1)).limits();
    let tried = Tried::default();
    let share =
        |now| PickContext { now, ..scene.candidates(&tried) }.share(scene.view.info(scene.at(1)));
    assert_eq!(share(NOW), FULL_SHARE, "it was there from the first answer");
    assert_eq!(share(500), FULL_SHARE, "also right after the boot");
    let counters = scene.table.peer_counters(slot);
    counters.note_failed((owner, record.address_id()), 50_000);
    assert!(!counters.note_success(owner, limits, 49_999, NOW), "it began before the failure");
    assert_eq!(share(NOW), FULL_SHARE);
    assert!(counters.note_success(owner, limits, 50_000, NOW));
    assert_eq!(share(NOW), FULL_SHARE / 100);
    assert_eq!(share(105_000), FULL_SHARE / 2);
    assert_eq!(share(110_000), FULL_SHARE);
}

#[test]
fn a_key_stays_with_its_peer_and_goes_to_another_only_while_that_one_is_out() {
    for consistent in [false, true] {
        let peers: Vec<_> = (1..=10).map(|port| (port, PLAIN)).collect();
        let scene = Scene::balanced(Method::Hash { consistent }, &[&peers]);
        let tried = Tried::default();
        let of = |key: u8| {
            let all = scene.candidates(&tried);
            scene.ports(&PickContext { key: &[key], ..all })
        };
        let owners: Vec<_> = (0..20u8).map(of).collect();
        assert!(owners.iter().all(|ports| ports.len() == 1), "{owners:?}");
        assert!(owners.iter().any(|ports| *ports != owners[0]), "{owners:?}");
        let owner = owners[0][0];
        scene.fail(owner);
        let others: Vec<_> = (0..20u8).map(of).collect();
        for (before, after) in owners.iter().zip(&others) {
            assert_eq!(after.len(), 1, "{others:?}");
            assert_eq!(before == after, *before != [owner], "{owners:?} {others:?}");
        }
        assert_eq!(scene.ports(&scene.candidates(&tried)).len(), 9, "no key: round robin");
    }
}

#[test]
fn the_next_tier_has_a_ring_of_its_own() {
    let scene = Scene::balanced(
        Method::Hash { consistent: true },
        &[&[(1, PLAIN)], &[(2, PLAIN), (3, PLAIN), (4, PLAIN)]],
    );
    scene.fail(1);
    let tried = Tried::default();
    let of = |key: u8| {
        let all = scene.candidates(&tried);
        scene.ports(&PickContext { key: &[key], ..all })
    };
    let seen: std::collections::HashSet<_> = (0..30u8).map(of).collect();
    assert_eq!(seen, [vec![2], vec![3], vec![4]].into());
}

#[test]
fn least_time_avoids_the_slow_and_least_conn_does_not_know_it() {
    let share_of_slow = |method| {
        let scene = Scene::balanced(method, &[&[(1, PLAIN), (2, PLAIN)]]);
        for (port, ms) in [(1, 200), (2, 10)] {
            let record = &scene.view.records()[scene.at(port)];
            scene
                .table
                .peer_counters(record.slot)
                .update_latency(record.owner, |raw| Latency::from_raw(raw).after(ms, NOW).raw());
        }
        let tried = Tried::default();
        let mut rng = SmallRng::seed_from_u64(3);
        let slow = scene.at(1);
        let mut pick = || {
            let port = scene.pick(&scene.candidates(&tried), &mut rng);
            port.map(|port| scene.at(port))
        };
        (0..1000).filter(|_| pick() == Some(slow)).count()
    };
    assert_eq!(share_of_slow(Method::LeastTime), 0);
    let even = share_of_slow(Method::LeastConn);
    assert!((400..600).contains(&even), "{even} of 1000");
}

#[test]
fn a_tier_that_is_out_does_not_disturb_the_round_robin_of_the_next() {
    // Looking for a peer among those that are out takes 16 steps, so 17 of them make a round.
    for n in [3u16, 16, 17] {
        let out: Vec<_> = (1..=n).map(|port| (port, PLAIN)).collect();
        let next: Vec<_> = (101..=100 + n).map(|port| (port, PLAIN)).collect();
        let scene = Scene::new(&[&out, &next]);
        (1..=n).for_each(|port| scene.fail(port));
        let (tried, mut rng) = (Tried::default(), SmallRng::seed_from_u64(1));
        let candidates = scene.candidates(&tried);
        let mut counts = vec![0; usize::from(n)];
        for _ in 0..2 * n {
            let port = scene.pick(&candidates, &mut rng).unwrap();
            counts[usize::from(port) - 101] += 1;
        }
        assert_eq!(counts, vec![2; usize::from(n)], "{n} peers");
    }
}

#[test]
fn the_share_that_is_healthy_is_of_those_that_are_not_down() {
    let down = Params { down: true, ..PLAIN };
    let scene = Scene::new(&[&[(1, PLAIN), (2, PLAIN), (3, down)], &[(4, PLAIN), (5, BACKUP)]]);
    let tried = Tried::default();
    let percent = || scene.candidates(&tried).healthy_percent();
    assert_eq!(percent(), 100);
    scene.fail(1);
    assert_eq!(percent(), 75);
    [2, 4, 5].iter().for_each(|&port| scene.fail(port));
    assert_eq!(percent(), 0);
    let scene = Scene::new(&[&[(1, down)], &[]]);
    assert_eq!(scene.candidates(&tried).healthy_percent(), 100, "nobody is no panic");
}

#[test]
fn a_tier_that_is_out_is_looked_through_once_a_second_or_when_a_peer_recovers() {
    let scene = Scene::new(&[&[(1, PLAIN), (2, PLAIN)], &[(3, PLAIN), (4, PLAIN)]]);
    let back = |port, is_told: bool| {
        let record = &scene.view.records()[scene.at(port)];
        scene.table.peer_counters(record.slot).clear_fails(record.owner);
        if is_told {
            scene.table.note_recovered();
        }
    };
    let tried = Tried::default();
    let now = scene.candidates(&tried);
    [1, 2].iter().for_each(|&port| scene.fail(port));
    assert_eq!(scene.ports(&now), [3, 4]);
    back(2, false);
    assert_eq!(scene.ports(&now), [3, 4], "nobody was told");
    assert_eq!(scene.ports(&PickContext { now: 100_999, ..now }), [3, 4], "within the second");
    assert_eq!(scene.ports(&PickContext { now: 101_000, ..now }), [2]);
    scene.fail(2);
    assert_eq!(scene.ports(&now), [3, 4]);
    back(2, true);
    assert_eq!(scene.ports(&now), [2], "at once");
}
