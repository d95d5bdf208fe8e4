use super::super::counters::InFlight;
use super::super::failures::FailureLimits;
use super::super::layout::{Layout, Table, WorkerShard};
use super::super::publish::Full;
use super::super::testing::{peer, set, zone};
use super::*;
use crate::clock::Clock;
use crate::process::ProcessId;

mod histories;

const KEY: u128 = 5;
const LIMITS: FailureLimits = FailureLimits { max_fails: 1, fail_timeout: 10_000 };

/// A table with room for so many instances.
fn with_slots(count: usize) -> Table<'static> {
    let fits = |words: &usize| Layout::new(*words, 16).is_some_and(|l| l.slot_count >= count);
    let table = Table::create(zone((1..).find(fits).unwrap()), 16).unwrap();
    table.acquire_leadership(ProcessId::own());
    assert_eq!(table.layout.slot_count, count);
    table
}

/// A table with more room than the test needs.
fn table() -> (Table<'static>, WorkerShard) {
    let table = with_slots(500);
    (table, table.claim_shard(ProcessId::own()).unwrap())
}

fn publish_at(table: &Table<'_>, key: u128, set: &PeerSet, now: u64) -> Result<(), Full> {
    let entry = table.claim(key, ProcessId::own())?;
    table.publish((entry, key), set, Clock::at(now), ProcessId::own()).map(drop)
}

#[track_caller]
fn publish(table: &Table<'_>, key: u128, ports: &[u16], now: u64) {
    publish_at(table, key, &set(ports.iter().copied()), now).unwrap();
}

/// The instance `web-port` in the set of `key`.
#[track_caller]
fn record(table: &Table<'_>, key: u128, port: u16) -> PeerRecord {
    let records = table.read(table.find(key).unwrap(), key).unwrap().records;
    *records.iter().find(|r| r.identity == peer(port, 1).identity).expect("a member")
}

fn begin<'z>(table: &Table<'z>, of: PeerRecord, shard: WorkerShard) -> Option<InFlight<'z>> {
    table.begin_request(of.slot, of.owner, Some(shard))
}

fn fail(table: &Table<'_>, of: PeerRecord, now: u64) -> u64 {
    table.peer_counters(of.slot).note_failed((of.owner, of.address_id()), now)
}

/// `web-1` at another port.
fn moved() -> PeerSet {
    PeerSet::new(vec![Peer { addr: ([127, 0, 0, 1], 99).into(), ..peer(1, 1) }, peer(2, 1)])
}

#[test]
fn invariant_3_an_instance_that_leaves_and_returns_goes_on_where_it_was() {
    let (table, shard) = table();
    publish(&table, KEY, &[1, 2], 1_000);
    let before = record(&table, KEY, 1);
    let first = begin(&table, before, shard).unwrap();
    assert_eq!(fail(&table, before, 1_001), 1);
    publish(&table, KEY, &[2], 2_000);
    let second = begin(&table, before, shard).expect("a request that holds the set of before");
    assert_eq!(fail(&table, before, 2_001), 2);
    publish(&table, KEY, &[1, 2], 3_000);
    let after = record(&table, KEY, 1);
    let counters = table.counter_values(after.slot);
    assert_eq!((counters.in_flight, counters.picks), (2, 2));
    assert_eq!((counters.fails, counters.failed), (2, 2));
    let started = table.peer_counters(after.slot).started();
    assert_eq!(started, 3_000, "its slow start begins anew");
    [first, second].into_iter().for_each(InFlight::end);
    assert_eq!(table.in_flight(after.slot), 0);
}

#[test]
fn an_instance_of_a_released_target_and_of_one_that_was_not_retained_goes_on_too() {
    let (table, shard) = table();
    let me = ProcessId::own();
    let drop_target: [&dyn Fn(); 2] =
        [&|| table.release(table.find(KEY).unwrap(), KEY, me), &|| {
            assert!(table.retain(&[], &[], me))
        }];
    for drop_target in drop_target {
        publish(&table, KEY, &[1, 2], 1_000);
        let one = begin(&table, record(&table, KEY, 1), shard).unwrap();
        drop_target();
        assert_eq!(table.find(KEY), None);
        publish(&table, KEY, &[1, 3], 2_000);
        let after = record(&table, KEY, 1);
        assert_eq!(table.in_flight(after.slot), 1);
        one.end();
        let started =
            [after.slot, record(&table, KEY, 3).slot].map(|s| table.peer_counters(s).started());
        assert_eq!(started, [2_000; 2], "none is favoured");
    }
}

#[test]
fn failures_of_another_address_are_none_of_an_instance_and_its_requests_are() {
    for leaves in [true, false] {
        let (table, shard) = table();
        publish(&table, KEY, &[1, 2], 1_000);
        let before = record(&table, KEY, 1);
        let one = begin(&table, before, shard).unwrap();
        fail(&table, before, 1_001);
        if leaves {
            publish(&table, KEY, &[2], 2_000);
        }
        publish_at(&table, KEY, &moved(), 3_000).unwrap();
        let after = record(&table, KEY, 1);
        let counters = table.counter_values(after.slot);
        assert_eq!((counters.in_flight, counters.fails, counters.failed), (1, 0, 1), "{leaves}");
        assert_eq!(table.peer_counters(after.slot).failing_for(LIMITS, 3_001), None);
        assert_eq!(fail(&table, before, 3_001), 0, "a request to the old address has failed late");
        assert_eq!(fail(&table, after, 3_001), 1);
        one.end();
    }
}

#[test]
fn an_instance_of_two_targets_has_a_slot_in_each_and_requests_of_one_never_count_for_the_other() {
    let table = with_slots(1);
    let shard = table.claim_shard(ProcessId::own()).unwrap();
    publish(&table, KEY, &[1], 1_000);
    let live = record(&table, KEY, 1);
    let busy = begin(&table, live, shard).unwrap();
    publish(&table, KEY, &[], 2_000);
    let full = publish_at(&table, KEY + 1, &set([1]), 3_000);
    assert_eq!(full, Err(Full::Slots(1)), "it has a request in flight");
    busy.end();
    publish(&table, KEY + 1, &[1], 3_000);
    let canary = record(&table, KEY + 1, 1);
    assert_eq!((canary.slot, canary.identity), (live.slot, live.identity));
    assert!(begin(&table, live, shard).is_none(), "the request holds the set of before");
    assert_eq!(fail(&table, live, 3_001), 0);
    assert_eq!(table.counter_values(canary.slot), Default::default());
}

#[test]
fn in_a_full_zone_who_left_first_gives_its_slot_up_unless_requests_are_in_flight() {
    let table = with_slots(4);
    let shard = table.claim_shard(ProcessId::own()).unwrap();
    publish(&table, KEY, &[1, 2, 3, 4], 1_000);
    let before = [1, 2, 3, 4].map(|port| record(&table, KEY, port));
    for (left, now) in [(&[1, 2, 4][..], 2_000), (&[2, 4], 3_000), (&[4], 4_000)] {
        publish(&table, KEY, left, now);
    }
    // 3 left first, then 1, then 2.
    let busy = begin(&table, before[0], shard).unwrap();
    publish(&table, KEY + 1, &[5], 5_000);
    assert_eq!(record(&table, KEY + 1, 5).slot, before[2].slot);
    publish(&table, KEY + 1, &[5, 6], 5_000);
    assert_eq!(record(&table, KEY + 1, 6).slot, before[1].slot, "1 has a request in flight");
    assert_eq!(publish_at(&table, KEY + 1, &set([5, 6, 7]), 6_000), Err(Full::Slots(1)));
    publish(&table, KEY, &[1, 4], 7_000);
    assert_eq!(record(&table, KEY, 1).slot, before[0].slot);
    assert_eq!(table.in_flight(before[0].slot), 1);
    busy.end();
}

#[test]
fn a_set_that_finds_no_room_takes_nothing_from_those_who_have_left() {
    let table = with_slots(4);
    let shard = table.claim_shard(ProcessId::own()).unwrap();
    publish(&table, KEY, &[1, 2, 3], 1_000);
    fail(&table, record(&table, KEY, 1), 1_001);
    let busy = begin(&table, record(&table, KEY, 3), shard).unwrap();
    publish(&table, KEY, &[2], 2_000);
    assert_eq!(publish_at(&table, KEY + 1, &set(11..=13), 3_000), Err(Full::Slots(3)));
    publish(&table, KEY, &[1, 2], 4_000);
    assert_eq!(table.counter_values(record(&table, KEY, 1).slot).fails, 1);
    busy.end();
}

#[test]
fn a_slot_is_not_taken_from_an_owner_whose_request_has_just_begun() {
    let (table, shard) = table();
    publish(&table, KEY, &[1], 1_000);
    let one = record(&table, KEY, 1);
    let busy = begin(&table, one, shard).unwrap();
    assert!(!table.take_slot(one.slot));
    let second = begin(&table, one, shard).expect("it still has its owner");
    [busy, second].into_iter().for_each(InFlight::end);
    assert!(table.take_slot(one.slot));
    assert!(begin(&table, one, shard).is_none());
    assert_eq!(table.in_flight(one.slot), 0);
}

#[test]
fn members_of_a_set_that_a_killed_publisher_did_not_finish_have_left() {
    let (table, shard) = table();
    publish(&table, KEY, &[1, 2], 1_000);
    let one = begin(&table, record(&table, KEY, 1), shard).unwrap();
    publish(&table, KEY, &[2], 2_000);
    die_publishing(&table, KEY, &set([1, 2, 3]), 3_000);
    publish(&table, KEY, &[2, 4], 4_000);
    let members = (0..table.layout.slot_count).filter(|&slot| table.has_member(slot)).count();
    assert_eq!(members, 2);
    publish(&table, KEY, &[1, 2], 5_000);
    assert_eq!(table.in_flight(record(&table, KEY, 1).slot), 1);
    one.end();
}

/// A publisher is killed that has given slots to the instances of a set.
fn die_publishing(table: &Table<'_>, key: u128, set: &PeerSet, now: u64) {
    // It was not killed before.
    drop(table.lock(ProcessId::own()));
    let guard = table.lock(ProcessId::from_raw((i32::MAX as u64 - 1) << 32 | 1)).unwrap();
    let entry = table.find(key).unwrap();
    let before = table.records_by_identity(entry, table.generation(entry));
    let _ = guard.assign_slots((key, set), &before, (now, false));
    std::mem::forget(guard);
}
