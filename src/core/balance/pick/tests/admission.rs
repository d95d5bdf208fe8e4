//! Which requests may try peers that have failed.

use super::*;
use crate::table::PERMITS;

#[test]
fn a_peer_that_another_balancer_picks_has_to_be_usable() {
    let full = Params { max_conns: Some(1), ..PLAIN };
    let down = Params { down: true, ..PLAIN };
    let scene = Scene::new(&[&[(1, PLAIN), (2, full), (3, down), (4, PLAIN)]]);
    let tried = Tried::default();
    let admitted = |port, now| {
        let context = PickContext { now, ..scene.candidates(&tried) };
        match context.admit_picked(context.peer(scene.at(port)), || scene.shared()) {
            Admission::Free => "free",
            Admission::With(permit) => {
                permit.end();
                "probe"
            }
            Admission::Refused => "refused",
        }
    };
    let all = |now| [1, 2, 3, 4].map(|port| admitted(port, now)).join(" ");
    assert_eq!(all(100_000), "free free refused free");
    let full = scene.view.info(scene.at(2));
    let request = scene.table.begin_request(full.slot, full.owner, Some(scene.shard)).unwrap();
    scene.fail(4);
    assert_eq!(all(100_000), "free refused refused refused");
    request.end();
    // Its fail_timeout has passed; there is one probe a second.
    assert_eq!(all(111_000), "free free refused probe");
    assert_eq!(all(111_001), "free free refused refused");
}

/// One worker's requests to peers that are all marked.
struct Requests {
    scene: Scene,
    rng: SmallRng,
}

impl Requests {
    /// To peers of these ports, the first failure of each being at 100 s.
    fn to_failed(ports: &[u16]) -> Requests {
        let peers: Vec<_> = ports.iter().map(|&port| (port, PLAIN)).collect();
        let requests = Requests::to(Scene::new(&[&peers]));
        for &port in ports {
            requests.fail(port, 0, NOW);
        }
        requests
    }

    fn to(scene: Scene) -> Requests {
        Requests { scene, rng: SmallRng::seed_from_u64(1) }
    }

    /// An attempt fails at `now` that began at `from`.
    fn fail(&self, port: u16, from: u64, now: u64) {
        let record = self.scene.view.records()[self.scene.at(port)];
        let outage = self.scene.table.outage(0);
        let counters = self.scene.table.peer_counters(record.slot);
        if counters.note_failed((record.owner, record.address_id()), now) == 1 {
            outage.note_marked(now);
        }
        outage.note_failed(from);
    }

    /// An attempt succeeds that began at `from`.
    fn pass(&self, port: u16, from: u64) {
        let info = self.scene.view.info(self.scene.at(port));
        assert!(self.scene.table.peer_counters(info.slot).note_success(
            info.owner,
            info.limits(),
            from,
            from
        ));
        self.scene.table.note_recovered();
    }

    /// A request at `now` that has tried these before: the port, and the permit that it holds.
    fn send(
        &mut self,
        now: u64,
        tried: &[u16],
        panic: bool,
    ) -> Option<(u16, Option<Permit<'static>>)> {
        let set = Tried::default();
        tried.iter().for_each(|&port| set.insert(self.scene.at(port)));
        let candidates = PickContext { now, panic, ..self.scene.candidates(&set) };
        let (shared, method) = (self.scene.shared(), self.scene.method);
        let admitted = pick(method, &candidates, || shared, &mut self.rng)?;
        let number = admitted.picked.info.number as usize;
        Some((self.scene.view.records()[number].addr().port(), admitted.permit))
    }

    /// Ports and permits of all that are let in at `now`, of a hundred.
    fn burst(&mut self, now: u64) -> Vec<(u16, Option<Permit<'static>>)> {
        (0..100).filter_map(|_| self.send(now, &[], false)).collect()
    }
}

fn ports(held: &[(u16, Option<Permit<'static>>)]) -> Vec<u16> {
    let mut ports: Vec<_> = held.iter().map(|(port, _)| *port).collect();
    ports.sort_unstable();
    ports
}

fn end(held: Vec<(u16, Option<Permit<'static>>)>) {
    held.into_iter().filter_map(|(_, permit)| permit).for_each(Permit::end);
}

#[test]
fn until_an_attempt_that_began_after_the_last_mark_fails_sixteen_at_a_time_try() {
    let mut requests = Requests::to_failed(&[1, 2]);
    let held = requests.burst(100_001);
    assert_eq!(held.len(), PERMITS);
    assert!(held.iter().all(|(_, permit)| permit.is_some()));
    // One that began before has no say.
    requests.fail(1, 99_000, 100_100);
    end(held);
    let held = requests.burst(100_101);
    assert_eq!(held.len(), PERMITS, "again");
    requests.fail(1, 100_101, 100_200);
    end(held);
    assert_eq!(ports(&requests.burst(100_201)), [1, 2], "one each from now on");
}

#[test]
fn peers_that_are_all_dead_are_probed_by_one_request_at_a_time_and_once_a_second() {
    let mut requests = Requests::to_failed(&[1, 2, 3]);
    requests.fail(1, 100_001, 100_001);
    let held = requests.burst(100_002);
    assert_eq!(ports(&held), [1, 2, 3]);
    assert_eq!(requests.burst(105_000).len(), 0, "the probes go on");
    end(held);
    let held = requests.burst(105_000);
    assert_eq!(ports(&held), [1, 2, 3]);
    end(held);
    assert_eq!(requests.burst(105_999).len(), 0, "once a second");
    let held = requests.burst(106_000);
    assert_eq!(ports(&held), [1, 2, 3]);
    // After fail_timeout a probe no longer bars the next, though it still waits.
    assert_eq!(requests.burst(116_000).len(), 0);
    assert_eq!(ports(&requests.burst(116_001)), [1, 2, 3]);
    end(held);
}

#[test]
fn a_request_whose_probe_has_failed_goes_on_to_the_other_peers() {
    let mut requests = Requests::to_failed(&[1, 2]);
    requests.fail(1, 100_001, 100_001);
    let (first, permit) = requests.send(100_002, &[], false).unwrap();
    permit.unwrap().end();
    let (second, permit) = requests.send(100_002, &[first], false).unwrap();
    assert_ne!(first, second);
    permit.unwrap().end();
    assert!(requests.send(100_002, &[first, second], false).is_none());
    assert!(requests.send(100_002, &[], false).is_none());
}

#[test]
fn the_first_success_ends_the_outage_of_its_peer_for_all() {
    let mut requests = Requests::to_failed(&[1, 2]);
    requests.fail(1, 100_001, 100_001);
    let held = requests.burst(100_002);
    assert_eq!(requests.burst(100_003).len(), 0);
    requests.pass(2, 100_002);
    end(held);
    let after = requests.burst(100_003);
    assert_eq!(after.len(), 100);
    assert!(after.iter().all(|(port, permit)| *port == 2 && permit.is_none()));
}

#[test]
fn after_fail_timeout_one_request_tries_the_peer_while_the_others_go_elsewhere() {
    let mut requests = Requests::to(Scene::new(&[&[(1, PLAIN), (2, PLAIN)]]));
    requests.fail(1, 0, 100_000);
    assert!(requests.burst(110_000).iter().all(|(port, _)| *port == 2));
    let held = requests.burst(110_001);
    let probes: Vec<_> = held.iter().filter(|(port, _)| *port == 1).collect();
    assert_eq!((held.len(), probes.len()), (100, 1), "{held:?}");
    assert!(probes[0].1.is_some());
    end(held);
    // The probe, whose outcome nobody knows, has begun another fail_timeout.
    assert!(requests.burst(120_001).iter().all(|(port, _)| *port == 2));
    assert!(requests.burst(120_002).iter().any(|(port, _)| *port == 1));
}

#[test]
fn a_panic_lets_one_request_at_a_time_try_each_peer_that_has_not_succeeded_since_it_was_marked() {
    let mut requests = Requests::to(Scene::new(&[&[(1, PLAIN), (2, PLAIN), (3, PLAIN)]]));
    requests.fail(1, 0, 100_000);
    requests.fail(2, 0, 100_000);
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(requests.send(100_001, &[], true).unwrap());
    }
    let count = |port: u16| held.iter().filter(|(other, _)| *other == port).count();
    assert_eq!([count(1), count(2), count(3)], [1, 1, 98]);
    end(held);
    // No pace: the next one may try at once.
    let held: Vec<_> = (0..100).map(|_| requests.send(100_001, &[], true).unwrap()).collect();
    assert_eq!(held.iter().filter(|(port, _)| *port != 3).count(), 2);
    requests.fail(3, 0, 100_002);
    let third = requests.send(100_002, &[], true).unwrap();
    assert_eq!(third.0, 3);
    assert!(requests.send(100_002, &[], true).is_none(), "all are being tried");
    end(held);
}

#[test]
fn a_single_peer_that_keeps_failing_has_sixteen_requests_waiting() {
    let mut requests = Requests::to(Scene::new(&[&[(1, PLAIN)]]));
    assert!(requests.burst(99_000).iter().all(|(_, permit)| permit.is_none()), "it has not failed");
    requests.fail(1, 99_000, 100_000);
    let within = requests.burst(100_999);
    assert_eq!(within.len(), 100, "a success may come within the second");
    assert_eq!(requests.burst(101_000).len(), 0, "those that began after the failure count");
    end(within);
    let held = requests.burst(101_000);
    assert_eq!(held.len(), PERMITS);
    assert_eq!(requests.burst(111_000).len(), 0);
    assert_eq!(requests.burst(111_001).len(), PERMITS, "the others wait for too long to count");
    // Further failures begin no other second.
    requests.fail(1, 101_000, 111_002);
    end(held);
    assert_eq!(requests.burst(111_003).len(), 0);
    let info = requests.scene.view.info(0);
    requests.scene.table.peer_counters(info.slot).clear_fails(info.owner);
    assert_eq!(requests.burst(111_004).len(), 100, "a success");
}

#[test]
fn failures_that_do_not_count_bound_nobody() {
    let zero = Params { max_fails: Some(0), ..PLAIN };
    let mut requests = Requests::to(Scene::new(&[&[(1, zero)]]));
    requests.fail(1, 0, 100_000);
    assert_eq!(requests.burst(105_000).len(), 100);
    let mut requests = Requests::to(Scene::new(&[&[(1, zero), (2, zero)]]));
    requests.fail(1, 0, 100_000);
    requests.fail(2, 0, 100_000);
    assert_eq!(requests.burst(105_000).len(), 100);
}

#[test]
fn peers_that_are_down_or_full_are_not_tried_when_the_others_are_out() {
    let down = Params { down: true, ..PLAIN };
    let full = Params { max_conns: Some(1), ..PLAIN };
    let mut requests = Requests::to(Scene::new(&[&[(1, down), (2, full), (3, PLAIN)]]));
    let info = requests.scene.view.info(requests.scene.at(2));
    let shard = Some(requests.scene.shard);
    let _stays = requests.scene.table.begin_request(info.slot, info.owner, shard).unwrap();
    requests.fail(3, 0, 100_000);
    requests.fail(3, 100_001, 100_001);
    assert_eq!(ports(&requests.burst(100_002)), [3]);
}
