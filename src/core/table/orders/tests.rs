use super::super::tests::{peer, set, zone};
use super::order::BY_BYTES;
use super::*;
use crate::model::{PeerSet, identity};
use crate::params::Params;
use crate::table::Record;

const KEY: u128 = 7 << 64 | 9;

fn table() -> (Table<'static>, ProcessId) {
    let (table, me) = (Table::create(zone(1 << 17), 16).unwrap(), ProcessId::own());
    table.lead(me);
    (table, me)
}

fn web(port: u16) -> u64 {
    identity("n1", &format!("web-{port}"), None)
}

fn about(identity: u64, action: Action) -> Order {
    Order {
        subject: Subject::Instance { scope: scope("web", None), upstream: 0, identity },
        action,
        since_ms: 1_000,
        until_ms: 0,
        service: "web".into(),
        instance: "web-1".into(),
        upstream: String::new(),
        by: "ann@127.0.0.1".into(),
    }
}

#[test]
fn an_order_is_read_as_it_was_given_until_it_is_lifted() {
    let (table, me) = table();
    assert_eq!(table.orders(), []);
    let texts = Order {
        service: "é".repeat(40),
        instance: "i".repeat(88),
        upstream: "u".repeat(64),
        by: "b".repeat(BY_BYTES),
        until_ms: u64::MAX,
        ..about(5, Action::Weight(65_535))
    };
    let frozen = Order { subject: Subject::Target(KEY), since_ms: 900, ..about(0, Action::Freeze) };
    table.give_orders(&[texts.clone(), frozen.clone()], me).unwrap();
    assert_eq!(table.orders(), [frozen, texts.clone()]);
    let lifted = table.lift_orders(|order| order.action != Action::Freeze, me).unwrap();
    assert_eq!(lifted, [texts]);
    assert_eq!(table.orders().len(), 1);
}

#[test]
fn names_that_are_too_long_are_cut_and_stay_different() {
    let (table, me) = table();
    let named = |end: &str, identity| Order {
        instance: "x".repeat(300) + end,
        by: "é".repeat(300),
        ..about(identity, Action::Up)
    };
    table.give_orders(&[named("1", 1), named("2", 2)], me).unwrap();
    let held = table.orders();
    assert_ne!(held[0].instance, held[1].instance);
    assert_eq!(held[0].instance, order_text(&named("1", 1).instance));
    assert!(held.iter().all(|order| order.by.len() >= BY_BYTES - 1));
}

#[test]
fn one_about_the_same_takes_the_place_of_the_one_before() {
    let (table, me) = table();
    for action in [Action::Drain, Action::Weight(3), Action::Down] {
        table.give_orders(&[about(5, action)], me).unwrap();
        let held = table.orders();
        assert_eq!((held.len(), held[0].action), (1, action));
    }
}

#[test]
fn a_full_table_takes_no_further_order_and_still_changes_those_it_has() {
    let (table, me) = table();
    let most = table.order_capacity();
    assert_eq!(most, 128);
    let all: Vec<Order> = (1..=most as u64).map(|n| about(n, Action::Drain)).collect();
    table.give_orders(&all, me).unwrap();
    let new = about(9_999, Action::Drain);
    assert_eq!(table.give_orders(std::slice::from_ref(&new), me), Err(NotGiven::Full(most)));
    let both = [about(3, Action::Up), new.clone()];
    assert_eq!(table.give_orders(&both, me), Err(NotGiven::Full(most)), "all or none");
    assert_eq!(table.orders().iter().filter(|o| o.action == Action::Drain).count(), most);
    table.give_orders(&[about(3, Action::Up)], me).unwrap();
    assert_eq!(table.orders().len(), most);
    table.lift_orders(|order| order.action == Action::Up, me).unwrap();
    table.give_orders(&[new], me).unwrap();
}

#[test]
fn ten_megabytes_have_room_for_1024_orders() {
    let table = Table::create(zone(10 * 1024 * 1024 / 8), 16).unwrap();
    assert_eq!(table.order_capacity(), 1024);
}

#[test]
fn a_set_is_what_was_ordered_of_its_instances() {
    let (table, me) = table();
    let entry = table.claim(KEY, me).unwrap();
    table.note_scope(entry, scope("web", None));
    let down = Params { down: true, ..Params::default() };
    let mut peers: Vec<_> = (1..=5).map(|port| peer(port, 2)).collect();
    peers[3].params = down;
    table.publish((entry, KEY), &PeerSet::new(peers), 1, me).unwrap();
    let orders = [(1, Action::Drain), (2, Action::Down), (3, Action::Weight(9)), (4, Action::Up)];
    let orders = orders.map(|(port, action)| about(web(port), action));
    table.give_orders(&orders, me).unwrap();
    let records = |of_scope, now_ms| {
        let mut records = table.read_records(entry, KEY).unwrap().records;
        table.overrides(now_ms).apply((of_scope, upstream(b"api")), &mut records);
        let shown = |r: &Record| (r.params().down, r.weight, r.params().max_fails);
        records.iter().map(shown).collect::<Vec<_>>()
    };
    let (up, out) = ((false, 2, None), (true, 2, None));
    assert_eq!(
        records(scope("web", None), 5),
        [out, out, (false, 9, None), (false, 2, Some(0)), up]
    );
    for other in [scope("web", Some("dc2")), scope("api", None)] {
        assert_eq!(records(other, 5), [up, up, up, out, up], "another service's");
    }
}

#[test]
fn an_order_for_one_upstream_counts_more_there_and_nothing_elsewhere() {
    let (table, me) = table();
    let narrowed = |action| {
        let subject = Subject::Instance {
            scope: scope("web", None),
            upstream: upstream(b"api"),
            identity: 5,
        };
        Order { subject, ..about(5, action) }
    };
    table.give_orders(&[narrowed(Action::Up), about(5, Action::Down)], me).unwrap();
    let overrides = table.overrides(0);
    let of = |name: &[u8]| overrides.find((scope("web", None), upstream(name)), 5);
    assert_eq!((of(b"api"), of(b"other")), (Some(Action::Up), Some(Action::Down)));
    assert_eq!(overrides.find((scope("web", None), 0), 5), Some(Action::Down));
}

#[test]
fn orders_move_the_generation_of_their_service_s_sets_and_of_no_others() {
    let (table, me) = table();
    let made = [(1 << 64 | 1, "web"), (2 << 64 | 2, "api")];
    let entries = made.map(|(key, service)| {
        let entry = table.claim(key, me).unwrap();
        table.note_scope(entry, scope(service, None));
        table.publish((entry, key), &set([1, 2]), 1, me).unwrap();
        entry
    });
    let generations = || entries.map(|entry| table.generation(entry));
    let before = generations();
    table.give_orders(&[about(web(1), Action::Drain)], me).unwrap();
    assert_eq!(generations(), [before[0] + 2, before[1]]);
    assert_eq!(table.read(entries[0], made[0].0).unwrap().details().len(), 2);
    table.lift_orders(|_| true, me).unwrap();
    assert_eq!(generations(), [before[0] + 4, before[1]]);
    // The next set is as every other.
    table.publish((entries[0], made[0].0), &set([2]), 1, me).unwrap();
    let image = table.read(entries[0], made[0].0).unwrap();
    assert_eq!((image.generation, image.records.len()), (before[0] + 5, 1));
}

#[test]
fn an_order_is_in_force_until_its_time() {
    let (table, me) = table();
    let frozen =
        Order { subject: Subject::Target(KEY), until_ms: 2_000, ..about(0, Action::Freeze) };
    let drained = Order { until_ms: 3_000, ..about(5, Action::Drain) };
    table.give_orders(&[frozen, drained], me).unwrap();
    assert!(table.is_frozen(KEY, 1_999) && !table.is_frozen(KEY, 2_000));
    assert!(!table.is_frozen(KEY + 1, 0));
    assert!(!table.has_overdue(1_999) && table.has_overdue(2_000));
    assert!(!table.overrides(2_999).is_empty() && table.overrides(3_000).is_empty());
}

#[test]
fn whatever_a_killed_writer_has_left_is_no_order_and_its_cell_is_free() {
    let (table, me) = table();
    let (first, order) = (table.layout.orders, about(5, Action::Drain));
    let whole = order.encode();
    for written in 0..WORDS {
        table.word(H_ORDERS).store(1, Relaxed);
        // The digest is written last; as damage, it may be there already.
        for (at, word) in whole.iter().enumerate().take(written).skip(1) {
            table.word(first + at).store(*word, Relaxed);
        }
        assert_eq!(table.orders(), [], "{written} words");
        table.word(first).store(whole[0], Relaxed);
        let is_whole = whole[written..].iter().all(|word| *word == 0);
        assert_eq!(table.orders().is_empty(), !is_whole, "{written} words and the digest");
        for at in 0..WORDS {
            table.word(first + at).store(0, Relaxed);
        }
    }
    table.word(first).store(1, Relaxed);
    table.word(first + UNTIL).store(1, Relaxed);
    table.word(H_ORDERS).store(u64::MAX, Relaxed);
    assert!(table.orders().is_empty() && table.has_overdue(2));
    table.lift_orders(|_| false, me).unwrap();
    assert!(!table.has_overdue(2));
    table.give_orders(std::slice::from_ref(&order), me).unwrap();
    assert_eq!(table.orders(), [order]);
}

#[test]
fn of_two_about_the_same_the_later_one_holds() {
    let (table, me) = table();
    table.give_orders(&[about(5, Action::Drain), about(6, Action::Drain)], me).unwrap();
    // A writer that was killed before it cleared the old one.
    let later = Order { since_ms: 2_000, ..about(5, Action::Weight(2)) };
    let guard = table.lock(me);
    guard.write_order(9, &later);
    std::mem::forget(guard);
    let held: Vec<Action> = table.orders().iter().map(|order| order.action).collect();
    assert_eq!(held, [Action::Drain, Action::Weight(2)]);
    // The next one puts the workers in the picture, and the cells in order.
    table.word(super::super::H_LOCK).store(0, Relaxed);
    let entry = table.claim(KEY, me).unwrap();
    table.publish((entry, KEY), &set([1]), 1, me).unwrap();
    let before = table.generation(entry);
    table.word(super::super::H_DIRTY).store(1, Relaxed);
    table.heal(me);
    assert_eq!(table.generation(entry), before + 2);
    table.give_orders(&[about(5, Action::Up)], me).unwrap();
    assert_eq!((0..128).filter(|&cell| table.cell(cell).is_some()).count(), 2);
}

#[test]
fn who_may_not_wait_is_told_that_the_lock_is_held() {
    let (table, me) = table();
    let guard = table.lock(me);
    assert_eq!(table.give_orders(&[about(5, Action::Up)], me), Err(NotGiven::Busy));
    assert_eq!(table.lift_orders(|_| true, me), None);
    table.heal(me);
    drop(guard);
    table.give_orders(&[about(5, Action::Up)], me).unwrap();
}
