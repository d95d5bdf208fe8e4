use super::super::layout::Table;
use super::super::testing::{set, zone};
use super::super::{PeerRecord, SlotRef};
use super::*;
use crate::clock::Clock;
use crate::process::ProcessId;

const KEY: u128 = 5;
const LIMITS: FailureLimits = FailureLimits { max_fails: 2, fail_timeout: 10_000 };

/// A set of two instances, of which the first is looked at.
struct Instance {
    table: Table<'static>,
    record: PeerRecord,
}

impl Instance {
    fn new() -> Instance {
        let table = Table::create(zone(1 << 17), 16).unwrap();
        let me = ProcessId::own();
        table.acquire_leadership(me);
        let entry = table.claim(KEY, me).unwrap();
        table.publish((entry, KEY), &set([1, 2]), Clock::at(1_000), me).unwrap();
        let record = table.read(entry, KEY).unwrap().records[0];
        Instance { table, record }
    }

    /// Its target is followed no more for a while, until `now`.
    fn is_followed_again_at(&self, now: u64) {
        let me = ProcessId::own();
        self.table.release(0, KEY, me);
        assert_eq!(self.table.claim(KEY, me), Ok(0));
        self.table.publish((0, KEY), &set([1, 2]), Clock::at(now), me).unwrap();
    }

    /// It leaves, and returns `now`.
    fn return_at(&self, now: u64) {
        for ports in [&[2][..], &[1, 2]] {
            let set = set(ports.iter().copied());
            let change = self.table.publish((0, KEY), &set, Clock::at(now), ProcessId::own());
            assert!(change.unwrap().is_some());
        }
        let slot: SlotRef = self.table.read(0, KEY).unwrap().records[0].slot;
        assert_eq!(slot, self.record.slot);
    }

    fn counters(&self) -> PeerCounters<'static> {
        self.table.peer_counters(self.record.slot)
    }

    /// An attempt fails.
    fn fail(&self, now: u64) {
        self.pick(now);
        let PeerRecord { owner, .. } = self.record;
        self.counters().note_failed((owner, self.record.address_id()), now);
    }

    /// It is picked.
    fn pick(&self, now: u64) {
        self.counters().note_checked(self.record.owner, LIMITS, now);
    }

    fn is_out(&self, now: u64) -> bool {
        self.counters().is_failed(LIMITS, now)
    }
}

#[test]
fn an_instance_that_returns_before_its_fail_timeout_is_over_is_out_until_then_as_in_nginx() {
    let instance = Instance::new();
    instance.fail(20_000);
    instance.fail(20_000);
    for now in [20_001, 25_000, 30_000] {
        instance.return_at(now);
        assert!(instance.is_out(now), "returned at {now}");
    }
    assert_eq!(instance.counters().failing_for(LIMITS, 30_000), Some(10_000));
    assert!(!instance.is_out(30_001));
    // One request tries it, and if that fails, it is out again.
    assert!(instance.counters().is_marked(LIMITS));
    instance.pick(30_001);
    assert!(instance.is_out(30_002), "for all other requests");
    instance.fail(30_003);
    assert!(instance.is_out(40_003));
    assert!(!instance.is_out(40_004));
}

#[test]
fn an_instance_that_returns_after_its_fail_timeout_is_over_has_no_failures() {
    let instance = Instance::new();
    instance.fail(20_000);
    instance.fail(20_000);
    let (owner, shard) = (instance.record.owner, None);
    let _held = instance.counters().probe((owner, shard), LIMITS, 20_001, 0).unwrap();
    instance.return_at(30_001);
    assert!(!instance.counters().is_marked(LIMITS));
    assert_eq!(instance.counters().failing_for(LIMITS, 30_001), None);
    // Any number of requests use it: it is not as if one of them tried it.
    instance.pick(30_010);
    assert!(!instance.is_out(30_010));
    // And max_fails counts from there.
    instance.fail(30_020);
    assert!(!instance.is_out(30_021));
    assert_eq!(instance.counters().failing_for(LIMITS, 30_021), Some(1));
    instance.fail(30_030);
    assert!(instance.is_out(30_031));
}

#[test]
fn failures_of_a_target_that_is_followed_again_count_for_fail_timeout_too() {
    for (now, is_out) in [(30_000, true), (30_001, false)] {
        let instance = Instance::new();
        instance.fail(20_000);
        instance.fail(20_000);
        instance.is_followed_again_at(now);
        assert_eq!(instance.is_out(now), is_out);
        assert_eq!(instance.counters().is_marked(LIMITS), is_out);
    }
}

#[test]
fn an_instance_that_stays_is_tried_by_one_request_after_its_fail_timeout() {
    let instance = Instance::new();
    instance.fail(20_000);
    instance.fail(20_000);
    assert!(instance.counters().is_marked(LIMITS), "however much later");
    instance.pick(90_000);
    assert!(instance.is_out(90_001));
    assert!(instance.counters().note_success(instance.record.owner, LIMITS, 90_000, 90_002));
    assert_eq!((instance.is_out(90_003), instance.counters().started()), (false, 90_002));
}

#[test]
fn a_recovery_that_comes_when_the_instance_has_left_does_not_make_it_a_member() {
    let instance = Instance::new();
    instance.fail(20_000);
    instance.fail(20_000);
    instance.table.publish((0, KEY), &set([2]), Clock::at(20_500), ProcessId::own()).unwrap();
    assert!(instance.counters().note_success(instance.record.owner, LIMITS, 20_100, 21_000));
    assert!(instance.counters().membership().has_left());
    assert!(!instance.counters().has_fails());
}
