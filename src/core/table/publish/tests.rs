use super::super::failures::FailureLimits;
use super::super::layout::slot;
use super::super::testing::{peer, set, zone};
use super::*;
use crate::clock::Clock;
use crate::model::{Action, Override};
use proptest::prelude::*;

const KEY: u128 = 5;

fn table(words: usize) -> (Table<'static>, usize) {
    let table = Table::create(zone(words), 16).unwrap();
    table.acquire_leadership(ProcessId::own());
    let entry = table.claim(KEY, ProcessId::own()).unwrap();
    (table, entry)
}

fn publish(table: &Table<'_>, entry: usize, set: &PeerSet) -> Result<Option<SetChange>, Full> {
    table.publish((entry, table.key(entry)), set, Clock::at(1_000), ProcessId::own())
}

fn members(table: &Table<'_>) -> usize {
    (0..table.layout.slot_count).filter(|&slot| table.has_member(slot)).count()
}

#[test]
fn what_was_published_is_read() {
    let (table, e) = table(1 << 17);
    assert!(table.read(e, KEY).is_none(), "nothing before the first answer");
    let v6 = crate::model::Peer { addr: "[fe80::1%3]:443".parse().unwrap(), ..peer(1, 7) };
    let set = PeerSet::new(vec![peer(8081, 5), peer(8082, 1), v6]);
    let change = publish(&table, e, &set).unwrap().unwrap();
    assert_eq!((change.joined_total, change.left_total, change.changed_total), (3, 0, 0));
    let snapshot = table.read(e, KEY).unwrap();
    for ((record, metadata), peer) in
        snapshot.records.iter().zip(snapshot.metadata()).zip(set.peers())
    {
        assert_eq!((record.addr(), record.identity), (peer.addr, peer.identity));
        assert_eq!(record.weight, u32::from(peer.weight.get()));
        assert_eq!(
            (&metadata.id, &metadata.node, &metadata.tags),
            (&peer.id, &peer.node, &peer.tags)
        );
    }
    assert!(table.read(e, KEY + 1).is_none(), "another target's set is not handed out");
}

#[test]
fn an_old_leader_gives_a_first_set_but_replaces_none() {
    let (table, e) = table(1 << 17);
    table.acquire_leadership(ProcessId::from_raw(1 << 32 | 1));
    assert_eq!(publish(&table, e, &set([1])).unwrap().unwrap().joined_total, 1);
    assert_eq!(publish(&table, e, &set([1, 2])), Ok(None));
    assert_eq!(table.read(e, KEY).unwrap().records.len(), 1);
}

#[test]
fn a_change_says_who_came_who_left_and_who_is_different() {
    let (table, e) = table(1 << 17);
    publish(&table, e, &set([1, 2, 3])).unwrap();
    let next = PeerSet::new(vec![peer(2, 1), peer(3, 9), peer(4, 1)]);
    let change = publish(&table, e, &next).unwrap().unwrap();
    assert_eq!((change.joined_total, change.left_total, change.changed_total), (1, 1, 1));
}

#[test]
fn the_sum_of_all_generations_moves_with_each_change_of_any_set() {
    let (table, e) = table(1 << 17);
    let me = ProcessId::own();
    let other = table.claim(KEY + 1, me).unwrap();
    let mut last = table.generations();
    let mut has_moved = || std::mem::replace(&mut last, table.generations()) != table.generations();
    publish(&table, e, &set(1..4)).unwrap();
    assert!(has_moved());
    publish(&table, other, &set(1..4)).unwrap();
    assert!(has_moved());
    publish(&table, other, &set(1..4)).unwrap();
    assert!(!has_moved(), "the same set");
    table.release(other, KEY + 1, me);
    assert!(has_moved());
}

#[test]
fn invariant_8_the_same_answer_moves_no_generation() {
    let (table, e) = table(1 << 17);
    publish(&table, e, &set(1..4)).unwrap();
    let generation = table.generation(e);
    assert_eq!(publish(&table, e, &set(1..4)), Ok(None));
    assert_eq!(table.generation(e), generation);
}

#[test]
fn a_killed_workers_requests_are_not_in_flight_for_ever() {
    let (table, e) = table(1 << 17);
    publish(&table, e, &set([1])).unwrap();
    let record = table.read(e, KEY).unwrap().records[0];
    let dead = ProcessId::from_raw((i32::MAX as u64 - 1) << 32 | 1);
    let shard = table.claim_shard(dead).unwrap();
    for _ in 0..3 {
        let _never_told = table.begin_request(record.slot, record.owner, Some(shard));
    }
    let mine = table.claim_shard(ProcessId::own()).unwrap();
    let _stays = table.begin_request(record.slot, record.owner, Some(mine));
    table.clear_dead_shards();
    assert_eq!(table.in_flight(record.slot), 1);
}

#[test]
fn idle_connections_are_counted_beside_requests_and_end_with_their_worker() {
    let (table, e) = table(1 << 17);
    publish(&table, e, &set([1])).unwrap();
    let record = table.read(e, KEY).unwrap().records[0];
    let dead = ProcessId::from_raw((i32::MAX as u64 - 1) << 32 | 1);
    // A shard of the dead is the next one's.
    let [mine, theirs] =
        [ProcessId::own(), dead].map(|process| table.claim_shard(process).unwrap());
    let shards = [theirs, mine];
    let _requests =
        shards.map(|shard| table.begin_request(record.slot, record.owner, Some(shard)).unwrap());
    let counts = || {
        let counters = table.counter_values(record.slot);
        (counters.in_flight, counters.idle)
    };
    shards.iter().for_each(|&shard| table.note_idle(record.slot, shard, true));
    table.note_idle(record.slot, shards[1], true);
    assert_eq!(counts(), (2, 3));
    // More than are counted spoil nothing.
    (0..5000).for_each(|_| table.note_idle(record.slot, shards[0], true));
    assert_eq!(counts(), (2, 2 + 4095));
    table.clear_dead_shards();
    assert_eq!(counts(), (1, 2));
    (0..5).for_each(|_| table.note_idle(record.slot, shards[1], false));
    assert_eq!(counts(), (1, 0));
}

#[test]
fn invariant_7_a_full_zone_keeps_the_last_set_and_recovers_when_there_is_room() {
    let (table, e) = table(1 << 13);
    publish(&table, e, &set(1..4)).unwrap();
    let before = table.read(e, KEY).unwrap().records;
    let full = publish(&table, e, &set(1..2000)).unwrap_err();
    assert!(matches!(full, Full::Arena(_) | Full::Slots(_)), "{full}");
    assert_eq!(table.read(e, KEY).unwrap().records, before);
    assert_eq!(members(&table), 3);
    assert!(publish(&table, e, &set(2..6)).unwrap().is_some());
    assert_eq!(table.read(e, KEY).unwrap().records.len(), 4);
}

#[test]
fn the_lock_and_the_slots_of_a_killed_publisher_are_taken_over() {
    let (table, e) = table(1 << 17);
    publish(&table, e, &set(1..4)).unwrap();
    // Killed with the lock held and two slots taken that no block names.
    table.word(header::LOCK).store((i32::MAX as u64 - 1) << 32 | 1, Relaxed);
    table.word(header::DIRTY).store(1, Relaxed);
    table.slot_word(500, slot::OWNER).store(77, Relaxed);
    table.slot_word(501, slot::OWNER).store(78, Relaxed);
    assert!(publish(&table, e, &set(2..5)).unwrap().is_some());
    assert_eq!(table.read(e, KEY).unwrap().records.len(), 3);
    assert_eq!(members(&table), 3);
}

#[test]
fn counters_at_their_end_and_a_damaged_count_stop_nobody() {
    let (table, e) = table(1 << 17);
    publish(&table, e, &set(1..=2)).unwrap();
    let record = table.read(e, KEY).unwrap().records[0];
    let counters = table.peer_counters(record.slot);
    counters.words[slot::FAILS].store(u64::MAX, Relaxed);
    let limits = FailureLimits { max_fails: 1, fail_timeout: 10_000 };
    let failed = counters.note_failed((record.owner, record.address_id()), limits, 1);
    assert_eq!(failed, u64::MAX);
    // The last generation, odd as the first one; and more records than any block has.
    table.entry_word(e, word::GENERATION).store(u64::MAX, Relaxed);
    table.descriptor(e, u64::MAX, word::D_COUNT).store(u64::from(u32::MAX), Relaxed);
    assert!(publish(&table, e, &set(1..=3)).unwrap().is_some());
    assert_eq!(table.read(e, KEY).unwrap().records.len(), 3);
    assert_eq!(table.generation(e), 0);
    assert_eq!(table.read(e, KEY).unwrap().records.len(), 3);
}

#[test]
fn targets_that_left_the_configuration_are_freed_and_never_mistaken_for_others() {
    let (table, e) = table(1 << 17);
    publish(&table, e, &set(1..4)).unwrap();
    let generation = table.generation(e);
    table.retain(&[], &[], ProcessId::own());
    assert_eq!((table.find(KEY), members(&table)), (None, 0));
    let other = table.claim(KEY + 1, ProcessId::own()).unwrap();
    assert_eq!(other, e, "the entry is used again");
    publish(&table, other, &set(7..9)).unwrap();
    assert!(table.generation(e) > generation);
    assert!(table.read(e, KEY).is_none());
}

#[test]
fn invariant_1_readers_get_whole_sets_while_publishers_never_rest() {
    let (table, e) = table(1 << 16);
    publish(&table, e, &set(1..2)).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for i in 0..400u16 {
                let first = i * 7 % 1000 + 1;
                publish(&table, e, &set(first..first + i % 90 + 1)).unwrap();
            }
        });
        let mut generations = 0;
        let mut last = 0;
        while !writer.is_finished() {
            let Some(snapshot) = table.read(e, KEY) else { continue };
            let ports: Vec<u16> = snapshot.records.iter().map(|r| r.addr().port()).collect();
            assert!(ports.windows(2).all(|p| p[0] != p[1]), "{ports:?}");
            assert_eq!(snapshot.metadata().len(), ports.len());
            for (record, metadata) in snapshot.records.iter().zip(snapshot.metadata()) {
                assert_eq!(metadata.id, format!("web-{}", record.addr().port()));
            }
            assert!(snapshot.generation >= last, "generations go up");
            generations += u32::from(snapshot.generation != last);
            last = snapshot.generation;
        }
        assert!(generations > 0);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_history_of_sets_ends_with_the_last_one_and_leaks_nothing(
        history in prop::collection::vec((0u128..4, prop::collection::btree_set(1u16..60, 0..40)), 1..40)
    ) {
        let table = Table::create(zone(1 << 16), 16).unwrap();
        table.acquire_leadership(ProcessId::own());
        let mut last = std::collections::HashMap::new();
        for (key, ports) in history {
            let entry = table.claim(key + 1, ProcessId::own()).unwrap();
            publish(&table, entry, &set(ports.iter().copied())).unwrap();
            last.insert(key + 1, ports);
        }
        let mut in_use = 0;
        for (key, ports) in last {
            let entry = table.find(key).unwrap();
            let seen: std::collections::BTreeSet<u16> =
                table.read(entry, key).unwrap().records.iter().map(|r| r.addr().port()).collect();
            in_use += ports.len();
            prop_assert_eq!(seen, ports);
        }
        prop_assert_eq!(members(&table), in_use);
    }
}

#[test]
fn only_the_history_has_the_wall_clock() {
    let (table, e) = table(1 << 17);
    let freeze = Override {
        selection: Some(KEY),
        action: Action::Freeze,
        until_ms: Some(1_700_000_003_000),
        deadline: Some(9_000),
        ..Override::default()
    };
    publish(&table, e, &set([1])).unwrap();
    table.set_overrides(&[freeze], ProcessId::own()).unwrap();
    let publish_at = |wall, monotonic| {
        let now = Clock { wall, monotonic };
        table.publish((e, KEY), &set([1, 2]), now, ProcessId::own()).unwrap()
    };
    assert_eq!(publish_at(1_800_000_000_000, 8_999), None, "it is frozen");
    let change = publish_at(1_600_000_000_000, 9_000).expect("the freeze is over");
    let joiner = table.read_records(e, KEY).unwrap().records[1].slot;
    let times = (change.time_ms, table.freshness(e).last_change);
    assert_eq!(times, (1_600_000_000_000, 9_000));
    assert_eq!(table.peer_counters(joiner).started(), 9_000);
}

fn named(name: &str) -> ServiceName {
    ServiceName { template: 7 << 70, name: name.to_owned() }
}

#[test]
fn a_named_service_is_known_by_its_name_until_it_is_released() {
    let (table, fixed) = table(1 << 17);
    let me = ProcessId::own();
    let longest = "n".repeat(crate::model::MAX_NAME);
    for name in ["web", "api-2", longest.as_str()] {
        let key = u128::from(name.len() as u64) << 64 | 1;
        let claim = Claim { named: Some((&named(name), 41_000)), ..key.into() };
        let entry = table.claim(claim, me).unwrap();
        assert_eq!(table.service_name(entry), Some(named(name)));
        assert_eq!(table.last_used(entry), 41_000);
        table.note_used(entry, 41_900);
        assert_eq!(table.last_used(entry), 41_000, "good to a second");
        table.note_used(entry, 42_000);
        assert_eq!(table.last_used(entry), 42_000);
        publish(&table, entry, &set([1, 2])).unwrap();
        table.release(entry, key + 1, me);
        assert_eq!(table.find(key), Some(entry), "that was another key");
        table.release(entry, key, me);
        assert_eq!((table.find(key), table.service_name(entry)), (None, None));
        assert_eq!(members(&table), 0);
    }
    assert_eq!(table.service_name(fixed), None, "a block names it");
    assert_eq!(table.claim(9, me).map(|entry| table.service_name(entry)), Ok(None), "used again");
}

#[test]
fn named_services_stay_as_long_as_their_template_does() {
    let (table, fixed) = table(1 << 17);
    let me = ProcessId::own();
    table.claim(Claim { named: Some((&named("web"), 1)), ..8.into() }, me).unwrap();
    table.retain(&[KEY], &[7 << 70], me);
    assert_eq!((table.find(KEY), table.find(8).is_some()), (Some(fixed), true));
    table.retain(&[KEY], &[1], me);
    assert_eq!((table.find(KEY), table.find(8)), (Some(fixed), None));
}

#[test]
fn an_event_loop_learns_that_another_publisher_takes_too_long() {
    let (table, entry) = table(20_000);
    let me = ProcessId::own();
    publish(&table, entry, &set([1])).unwrap();
    let before = (table.load(header::LEADER), table.generation(entry));
    let guard = table.lock(me);
    assert!(!table.acquire_leadership(ProcessId::from_raw(7)));
    assert!(!table.retain(&[], &[], me));
    assert!(!table.take_over_connections(me, 1));
    let event_loop = Table { is_event_loop: true, ..table };
    assert_eq!(event_loop.claim(KEY + 1, me), Err(Full::Busy));
    assert_eq!(event_loop.claim(KEY, me), Ok(entry), "it is there already");
    assert_eq!(publish(&event_loop, entry, &set([2])), Err(Full::Busy));
    event_loop.release(entry, KEY, me);
    assert_eq!((table.load(header::LEADER), table.generation(entry)), before);
    drop(guard);
    assert_eq!(event_loop.claim(KEY + 1, me), Ok(entry + 1));
    assert!(table.take_over_connections(me, 1) && table.acquire_leadership(me));
    assert!(table.retain(&[], &[], me));
    assert_eq!(table.find(KEY), None);
}

/// The table for a first configuration, which is in force, and for the one after it.
fn reloading() -> (Table<'static>, Table<'static>, usize) {
    let first = Table::create(zone(1 << 17), 16).unwrap().announce_configuration();
    first.put_in_force();
    assert!(first.acquire_leadership(ProcessId::own()));
    let entry = first.claim(KEY, ProcessId::own()).unwrap();
    publish(&first, entry, &set([1])).unwrap();
    (first, first.announce_configuration(), entry)
}

#[test]
fn an_older_configuration_never_leads_and_never_claims() {
    let (old, new, entry) = reloading();
    let (before, after) = (ProcessId::own(), ProcessId::from_raw(7));
    assert_eq!(old.claim(8, before), Ok(entry + 1), "until the new one is in force");
    new.put_in_force();
    assert!(!old.acquire_leadership(before) && old.is_leader(before));
    assert_eq!(old.claim(9, before), Err(Full::Superseded));
    assert_eq!(old.claim(8, before), Ok(entry + 1), "an entry that is there");
    assert!(publish(&old, entry, &set([1, 2])).unwrap().is_some(), "until the new one leads");
    assert!(new.acquire_leadership(after) && !old.acquire_leadership(before));
    assert_eq!(publish(&old, entry, &set([1, 2, 3])), Ok(None));
    assert!(new.claim(9, after).is_ok());
}

#[test]
fn an_older_configuration_frees_nothing_that_the_next_one_needs() {
    let (old, new, entry) = reloading();
    let me = ProcessId::own();
    new.claim(9, ProcessId::from_raw(7)).unwrap();
    assert!(!old.retain(&[KEY], &[], me), "the master fills the zone for the new one");
    old.claim(Claim { named: Some((&named("web"), 1)), ..8.into() }, me).unwrap();
    old.release(old.find(8).unwrap(), 8, me);
    assert_eq!(old.find(8), None, "its services that nobody names go as ever");
    new.put_in_force();
    assert!(!old.retain(&[KEY], &[], me));
    old.release(entry, KEY, me);
    assert_eq!((old.find(KEY), old.find(9)), (Some(entry), Some(entry + 1)));
    assert!(!new.retain(&[9], &[], ProcessId::from_raw(7)), "before it leads");
    assert!(new.acquire_leadership(me) && new.retain(&[9], &[], me));
    assert_eq!((old.find(KEY), old.find(9)), (None, Some(entry + 1)));
}

#[test]
fn a_freeze_that_is_set_while_an_answer_is_under_way_holds_it_back() {
    let (table, entry) = table(1 << 17);
    publish(&table, entry, &set([1, 2])).unwrap();
    let freeze = crate::model::Override {
        selection: Some(KEY),
        action: crate::model::Action::Freeze,
        ..Default::default()
    };
    table.set_overrides(&[freeze], ProcessId::own()).unwrap();
    assert_eq!(publish(&table, entry, &set(2..=5)), Ok(None));
    assert_eq!(table.frozen_diff(entry), FrozenDiff { joined: 3, left: 1 });
    table.remove_overrides(|_| true, ProcessId::own()).unwrap();
    assert!(publish(&table, entry, &set(2..=5)).unwrap().is_some());
    assert_eq!(table.frozen_diff(entry), FrozenDiff::default());
}
