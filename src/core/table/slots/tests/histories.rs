//! Any history of sets, requests and deaths, against a simple model.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::super::platform::atomic::Ordering::Relaxed;
use super::*;

const WORKERS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// Instances of a target, each at one of two addresses.
    Publish(u128, BTreeMap<u16, bool>),
    /// As that, and the publisher is killed before the set is in force.
    Die(u128, BTreeMap<u16, bool>),
    /// The target is not followed any more.
    Release(u128),
    Retain(BTreeSet<u128>),
    /// A request to an instance that any set had so far.
    Begin {
        worker: usize,
        at: usize,
    },
    End(usize),
    Fail(usize),
    Kill(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || 1u128..4;
    let ports = || prop::collection::btree_map(1u16..7, any::<bool>(), 0..6);
    let step = prop_oneof![
        4 => (key(), ports()).prop_map(|(key, ports)| Step::Publish(key, ports)),
        1 => (key(), ports()).prop_map(|(key, ports)| Step::Die(key, ports)),
        1 => key().prop_map(Step::Release),
        1 => prop::collection::btree_set(key(), 0..3).prop_map(Step::Retain),
        6 => (0..WORKERS, any::<usize>()).prop_map(|(worker, at)| Step::Begin { worker, at }),
        3 => any::<usize>().prop_map(Step::End),
        2 => any::<usize>().prop_map(Step::Fail),
        1 => (0..WORKERS).prop_map(Step::Kill),
    ];
    prop::collection::vec(step, 1..80)
}

/// Instance `web-port` at `port`, or at another one.
fn instances(ports: &BTreeMap<u16, bool>) -> PeerSet {
    let at = |(port, moved): (&u16, &bool)| {
        let addr = ([127, 0, 0, 1], port + if *moved { 100 } else { 0 }).into();
        Peer { addr, ..peer(*port, 1) }
    };
    PeerSet::new(ports.iter().map(at).collect())
}

struct Model {
    table: Table<'static>,
    shards: [WorkerShard; WORKERS],
    /// Every record of any set so far: requests may hold any of them.
    seen: Vec<(u128, PeerRecord)>,
    /// Requests in flight that are counted: who has them, and their instance.
    open: Vec<(usize, u64, InFlight<'static>)>,
    /// Where each instance was last, and its failures there.
    fails: BTreeMap<u64, (u64, u64)>,
    now: u64,
    /// The zone has room for all that ever were.
    is_roomy: bool,
}

impl Model {
    fn new(slots: usize) -> Model {
        let table = with_slots(slots);
        let shards = std::array::from_fn(|_| table.claim_shard(ProcessId::own()).unwrap());
        let (seen, open, fails) = Default::default();
        Model { table, shards, seen, open, fails, now: 1_000, is_roomy: slots > 100 }
    }

    fn take(&mut self, step: Step) {
        self.now += 10;
        let (table, me) = (self.table, ProcessId::own());
        match step {
            Step::Publish(key, ports) => self.publish(key, &instances(&ports)),
            Step::Die(key, ports) => {
                if let Some(entry) = table.find(key) {
                    die_publishing(&table, key, &instances(&ports), self.now);
                    drop(table.lock(me));
                    self.note_moves(key, &instances(&ports));
                    let stay = table.read(entry, key).and_then(|snapshot| snapshot.peer_set());
                    self.note_moves(key, &stay.unwrap_or_default());
                }
            }
            Step::Release(key) => {
                table.find(key).into_iter().for_each(|e| table.release(e, key, me))
            }
            Step::Retain(keys) => {
                let keys: Vec<u128> = keys.into_iter().collect();
                assert!(table.retain(&keys, &[], me));
            }
            Step::Begin { worker, at } => {
                let Some(&(_, of)) = at.checked_rem(self.seen.len()).map(|at| &self.seen[at])
                else {
                    return;
                };
                let one = begin(&table, of, self.shards[worker]);
                assert!(one.is_some() || !self.is_roomy, "a request that is not counted");
                self.open.extend(one.map(|one| (worker, of.owner, one)));
            }
            Step::End(at) => {
                if let Some(at) = at.checked_rem(self.open.len()) {
                    self.open.swap_remove(at).2.end();
                }
            }
            Step::Fail(at) => {
                let Some(&(_, of)) = at.checked_rem(self.seen.len()).map(|at| &self.seen[at])
                else {
                    return;
                };
                fail(&table, of, self.now);
                let (address, fails) = self.fails.get_mut(&of.owner).unwrap();
                *fails += u64::from(*address == of.address_id());
            }
            Step::Kill(worker) => {
                self.open.retain(|(of, ..)| *of != worker);
                table.clear_shard(self.shards[worker]);
            }
        }
    }

    fn publish(&mut self, key: u128, set: &PeerSet) {
        let lacking = self.lacking_slots(key, set);
        match publish_at(&self.table, key, set, self.now) {
            Ok(()) => self.note_moves(key, set),
            Err(Full::Slots(_)) => assert!(lacking > 0, "slots could have been had"),
            Err(full) => assert!(!self.is_roomy, "{full}"),
        }
        let entry = self.table.find(key).unwrap();
        let snapshot = self.table.read(entry, key).map(|snapshot| snapshot.records);
        self.seen.extend(snapshot.into_iter().flatten().map(|record| (key, record)));
    }

    /// How many slots are lacking: those of members and of requests in flight can't be given away.
    fn lacking_slots(&self, key: u128, set: &PeerSet) -> isize {
        let table = &self.table;
        let owners: BTreeSet<u64> = set.peers().iter().map(|p| owner(key, p.identity)).collect();
        let taken = (0..table.layout.slot_count).filter(|&n| {
            let owner = table.slot_word(n, slot::OWNER).load(Relaxed);
            let in_flight = table.in_flight(table.slot_at(n).unwrap());
            !owners.contains(&owner) && (table.has_member(n) || in_flight > 0)
        });
        (taken.count() + owners.len()) as isize - table.layout.slot_count as isize
    }

    fn note_moves(&mut self, key: u128, set: &PeerSet) {
        for peer in set.peers() {
            let owner = owner(key, peer.identity);
            let address = PeerRecord::new(peer, self.table.slot_at(0).unwrap(), owner).address_id();
            let held = self.fails.entry(owner).or_insert((address, 0));
            if held.0 != address {
                *held = (address, 0);
            }
        }
    }

    fn check(&self) {
        let table = &self.table;
        let all: u64 =
            (0..table.layout.slot_count).map(|s| table.in_flight(table.slot_at(s).unwrap())).sum();
        assert_eq!(all, self.open.len() as u64, "requests in flight leak");
        for key in 1..4 {
            let Some(entry) = table.find(key) else { continue };
            let records = table.read(entry, key).map(|snapshot| snapshot.records);
            for record in records.into_iter().flatten() {
                let open = self.open.iter().filter(|(_, owner, _)| *owner == record.owner).count();
                assert_eq!(table.in_flight(record.slot), open as u64, "{record:?}");
                if self.is_roomy {
                    let (_, fails) = self.fails[&record.owner];
                    assert_eq!(table.counter_values(record.slot).fails, fails, "{record:?}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn invariant_3_whatever_happens_every_open_request_counts_for_its_instance(
        steps in steps(), slots in prop_oneof![Just(500usize), 3usize..12]
    ) {
        let mut model = Model::new(slots);
        for step in steps {
            model.take(step);
            model.check();
        }
    }
}
