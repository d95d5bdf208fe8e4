use super::super::testing::{peer, set, zone};
use super::*;
use crate::clock::Clock;
use crate::model::{Action, PeerSet, identity, of_instance, service_scope};
use crate::params::Params;
use crate::table::{Claim, PeerRecord};
use std::num::NonZeroU16;

const KEY: u128 = 7 << 64 | 9;

fn table() -> (Table<'static>, ProcessId) {
    let (table, me) = (Table::create(zone(1 << 17), 16).unwrap(), ProcessId::own());
    table.acquire_leadership(me);
    (table, me)
}

fn about(port: u16, action: Action) -> Override {
    of_instance(&format!("web-{port}"), action)
}

fn weighted(port: u16, weight: u16) -> Override {
    Override { weight: NonZeroU16::new(weight), ..about(port, Action::Weight) }
}

fn freeze(key: u128) -> Override {
    Override { selection: Some(key), id: String::new(), ..about(0, Action::Freeze) }
}

fn held(table: Table<'_>) -> Vec<Override> {
    table.all_overrides().unwrap()
}

fn of(key: u128, service: &str) -> Claim<'static> {
    Claim { scope: service_scope(service, None), ..key.into() }
}

#[test]
fn an_override_is_read_as_it_was_set_until_it_is_removed() {
    let (table, me) = table();
    assert_eq!(held(table), []);
    let narrowed = Override {
        service: "é".repeat(40),
        datacenter: Some("dc2".into()),
        address: Some("[fe80::1%3]:443".into()),
        upstream: Some("u".repeat(64)),
        by: "b".repeat(80),
        until_ms: Some(u64::MAX),
        ..weighted(5, 65_535)
    };
    let all = [freeze(KEY), narrowed.clone()];
    table.set_overrides(&all, me).unwrap();
    assert_eq!(held(table), all);
    let removed = table.remove_overrides(|held| held.action != Action::Freeze, me).unwrap();
    assert_eq!(removed, [narrowed]);
    assert_eq!(held(table), [freeze(KEY)]);
}

#[test]
fn one_about_the_same_takes_the_place_of_the_one_before() {
    let (table, me) = table();
    for set in [about(5, Action::Drain), weighted(5, 3), about(5, Action::Down)] {
        table.set_overrides(std::slice::from_ref(&set), me).unwrap();
        assert_eq!(held(table), [set]);
    }
    let others = [
        Override { upstream: Some("api".into()), ..about(5, Action::Up) },
        Override { datacenter: Some("dc1".into()), ..about(5, Action::Up) },
        Override { node: "n2".into(), ..about(5, Action::Up) },
        Override { address: Some("127.0.0.1:5".into()), ..about(5, Action::Up) },
        Override { service: "api".into(), ..about(5, Action::Up) },
        freeze(1),
        freeze(2),
    ];
    table.set_overrides(&others, me).unwrap();
    assert_eq!(held(table).len(), 1 + others.len());
}

#[test]
fn a_full_table_takes_no_further_override_and_still_changes_those_it_has() {
    let (table, me) = table();
    let most = table.override_capacity();
    assert_eq!(most, 128);
    let all: Vec<Override> = (1..=most as u16).map(|n| about(n, Action::Drain)).collect();
    table.set_overrides(&all, me).unwrap();
    let new = about(9_999, Action::Drain);
    assert_eq!(table.set_overrides(std::slice::from_ref(&new), me), Err(NotSet::Full(most)));
    let both = [about(3, Action::Up), new.clone()];
    assert_eq!(table.set_overrides(&both, me), Err(NotSet::Full(most)), "all or none");
    assert_eq!(held(table).iter().filter(|o| o.action == Action::Drain).count(), most);
    table.set_overrides(&[about(3, Action::Up)], me).unwrap();
    assert_eq!(held(table).len(), most);
    table.remove_overrides(|held| held.action == Action::Up, me).unwrap();
    table.set_overrides(&[new], me).unwrap();
}

#[test]
fn ten_megabytes_have_room_for_1024_overrides_with_long_names() {
    let (table, me) = (Table::create(zone(10 * 1024 * 1024 / 8), 16).unwrap(), ProcessId::own());
    assert_eq!(table.override_capacity(), 1024);
    let long = |n: usize| Override {
        service: "payments-api".into(),
        node: format!("ip-10-20-{}-{}.eu-central-1.compute.internal", n / 256, n % 256),
        id: format!("payments-api-10-20-{}-{}-8080", n / 256, n % 256),
        upstream: Some("payments".into()),
        since_ms: 1_800_000_000_000,
        until_ms: Some(1_900_000_000_000),
        ..weighted(1, 65_535)
    };
    let all: Vec<Override> = (0..1024).map(long).collect();
    table.set_overrides(&all, me).unwrap();
    assert_eq!(held(table), all);
    // Names may be longer; then there is room for fewer, and nothing is lost.
    let huge = Override { id: "x".repeat(200_000), ..about(1, Action::Up) };
    assert_eq!(table.set_overrides(&[huge], me), Err(NotSet::Full(1024)));
    assert_eq!(held(table), all);
}

#[test]
fn texts_that_overrides_have_in_common_are_stored_once() {
    let one = encode(&[about(1, Action::Drain)]).len();
    let all: Vec<Override> = (100..200).map(|port| about(port, Action::Drain)).collect();
    let each = (encode(&all).len() - one) / 99;
    assert!(each < 26, "{each} bytes, 8 of which are the id");
    assert_eq!(decode(&encode(&all), 100), all);
}

#[test]
fn a_set_is_what_was_ordered_of_its_instances() {
    let (table, me) = table();
    let entry = table.claim(of(KEY, "web"), me).unwrap();
    let down = Params { down: true, ..Params::default() };
    let mut peers: Vec<_> = (1..=5).map(|port| peer(port, 2)).collect();
    peers[3].params = down;
    table.publish((entry, KEY), &PeerSet::new(peers), Clock::at(1), me).unwrap();
    let set = [about(1, Action::Drain), about(2, Action::Down), weighted(3, 9)];
    table.set_overrides(&set, me).unwrap();
    table.set_overrides(&[about(4, Action::Up)], me).unwrap();
    let records = |of_scope, now_ms| {
        let mut records = table.read_records(entry, KEY).unwrap().records;
        table.overrides(now_ms).unwrap().apply((of_scope, b"api"), &mut records);
        let shown = |r: &PeerRecord| (r.params().down, r.weight, r.params().max_fails);
        records.iter().map(shown).collect::<Vec<_>>()
    };
    let (up, out) = ((false, 2, None), (true, 2, None));
    assert_eq!(
        records(service_scope("web", None), 5),
        [out, out, (false, 9, None), (false, 2, Some(0)), up]
    );
    for other in [service_scope("web", Some("dc2")), service_scope("api", None)] {
        assert_eq!(records(other, 5), [up, up, up, out, up], "another service's");
    }
}

#[test]
fn an_override_for_one_upstream_counts_more_there_and_nothing_elsewhere() {
    let (table, me) = table();
    let entry = table.claim(KEY, me).unwrap();
    table.publish((entry, KEY), &set([5]), Clock::at(1), me).unwrap();
    let narrowed = |name: &str| Override { upstream: Some(name.into()), ..weighted(5, 7) };
    table.set_overrides(&[narrowed("api"), weighted(5, 3), narrowed("more")], me).unwrap();
    let overrides = table.overrides(0).unwrap();
    let weight = |upstream: &[u8]| {
        let mut records = table.read_records(entry, KEY).unwrap().records;
        overrides.apply((service_scope("web", None), upstream), &mut records);
        records[0].weight
    };
    assert_eq!([weight(b"api"), weight(b"other"), weight(b"more")], [7, 3, 7]);
    let identity = identity("n1", "web-5", None);
    assert_eq!(overrides.of_instance(service_scope("web", None), identity).len(), 3);
    assert_eq!(overrides.of_instance(service_scope("api", None), identity), []);
}

#[test]
fn overrides_move_the_generation_of_their_service_s_sets_and_of_no_others() {
    let (table, me) = table();
    let made = [(1 << 64 | 1, "web"), (2 << 64 | 2, "api")];
    let entries = made.map(|(key, service)| {
        let entry = table.claim(of(key, service), me).unwrap();
        table.publish((entry, key), &set([1, 2]), Clock::at(1), me).unwrap();
        entry
    });
    let generations = || entries.map(|entry| table.generation(entry));
    let before = generations();
    table.set_overrides(&[about(1, Action::Drain), freeze(KEY)], me).unwrap();
    assert_eq!(generations(), [before[0] + 2, before[1]]);
    assert_eq!(table.read(entries[0], made[0].0).unwrap().metadata().len(), 2);
    table.remove_overrides(|_| true, me).unwrap();
    assert_eq!(generations(), [before[0] + 4, before[1]]);
    // The next set is as every other.
    table.publish((entries[0], made[0].0), &set([2]), Clock::at(1), me).unwrap();
    let snapshot = table.read(entries[0], made[0].0).unwrap();
    assert_eq!((snapshot.generation, snapshot.records.len()), (before[0] + 5, 1));
}

#[test]
fn an_override_is_in_force_until_its_time() {
    let (table, me) = table();
    let frozen = Override { deadline: Some(2_000), ..freeze(KEY) };
    let drained = Override { deadline: Some(3_000), ..about(5, Action::Drain) };
    table.set_overrides(&[frozen.clone(), drained], me).unwrap();
    let at = |now_ms| table.overrides(now_ms).unwrap();
    assert_eq!(at(1_999).frozen(KEY), Some(&frozen));
    assert_eq!((at(2_000).frozen(KEY), at(0).frozen(KEY + 1)), (None, None));
    let of_instance = |now_ms| {
        at(now_ms).of_instance(service_scope("web", None), identity("n1", "web-5", None)).len()
    };
    assert_eq!((of_instance(2_999), of_instance(3_000)), (1, 0));
}

#[test]
fn a_writer_that_was_killed_leaves_the_list_before_and_the_next_one_tells_the_workers() {
    let (table, me) = table();
    let entry = table.claim(KEY, me).unwrap();
    table.publish((entry, KEY), &set([1]), Clock::at(1), me).unwrap();
    table.set_overrides(&[about(5, Action::Drain)], me).unwrap();
    let (first, words) = table.override_area(split(table.load(header::OVERRIDES)).0 ^ 1);
    for at in first..first + words {
        table.word(at).store(u64::MAX, Relaxed);
    }
    assert_eq!(held(table), [about(5, Action::Drain)]);
    let before = table.generation(entry);
    table.word(header::DIRTY).store(1, Relaxed);
    table.recover_orphaned_lock(me);
    assert_eq!(table.generation(entry), before + 2);
    table.set_overrides(&[about(6, Action::Drain)], me).unwrap();
    assert_eq!(held(table), [about(5, Action::Drain), about(6, Action::Drain)]);
}

#[test]
fn damaged_words_are_no_overrides() {
    let (table, _) = table();
    for list in [1 << 32 | 100, u64::MAX, 5] {
        table.word(header::OVERRIDES).store(list, Relaxed);
        assert_eq!(held(table), []);
    }
    let bytes = encode(&[about(5, Action::Drain), weighted(6, 9)]);
    for at in 0..bytes.len() {
        decode(&bytes[..at], 2);
        let mut damaged = bytes.clone();
        damaged[at] = 0xff;
        decode(&damaged, 2);
    }
}

#[test]
fn a_caller_that_may_not_wait_learns_that_the_lock_is_held() {
    let (table, me) = table();
    let guard = table.lock(me);
    assert_eq!(table.set_overrides(&[about(5, Action::Up)], me), Err(NotSet::Busy));
    assert_eq!(table.remove_overrides(|_| true, me), None);
    table.recover_orphaned_lock(me);
    drop(guard);
    table.set_overrides(&[about(5, Action::Up)], me).unwrap();
}
