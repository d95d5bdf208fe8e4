use super::super::testing::{peer, set, zone};
use super::*;
use crate::clock::Clock;
use crate::process::ProcessId;

fn addr(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

#[test]
fn who_joined_and_left_is_kept_newest_first() {
    let (table, me) = (Table::create(zone(1 << 17), 16).unwrap(), ProcessId::own());
    table.acquire_leadership(me);
    let e = table.claim(1, me).unwrap();
    table.publish((e, 1), &set(1..=2), Clock::at(100), me).unwrap();
    table.publish((e, 1), &set(2..=3), Clock::at(200), me).unwrap();
    table.publish((e, 1), &PeerSet::new(vec![peer(2, 1), peer(3, 9)]), Clock::at(300), me).unwrap();
    let history = table.read(e, 1).unwrap().history();
    let totals = |c: &SetChange| (c.time_ms, c.generation, c.joined_total, c.left_total);
    let seen: Vec<_> = history.iter().map(totals).collect();
    assert_eq!(seen, [(300, 3, 0, 0), (200, 2, 1, 1), (100, 1, 2, 0)]);
    assert_eq!(history[0].changed_total, 1);
    assert_eq!((&history[1].joined, &history[1].left), (&vec![addr(3)], &vec![addr(1)]));
    assert_eq!(history[2].joined, [addr(1), addr(2)]);
}

#[test]
fn a_change_of_text_alone_is_none() {
    let (table, me) = (Table::create(zone(1 << 17), 16).unwrap(), ProcessId::own());
    table.acquire_leadership(me);
    let e = table.claim(1, me).unwrap();
    table.publish((e, 1), &set(1..=1), Clock::at(100), me).unwrap();
    let mut tagged = peer(1, 1);
    tagged.tags = vec!["other".into()];
    table.publish((e, 1), &PeerSet::new(vec![tagged]), Clock::at(200), me).unwrap();
    let snapshot = table.read(e, 1).unwrap();
    assert_eq!((snapshot.generation, snapshot.history().len()), (2, 1));
    assert_eq!(snapshot.metadata()[0].tags, ["other"]);
}

#[test]
fn metadata_is_the_same_one_at_a_time() {
    let (table, me) = (Table::create(zone(1 << 17), 16).unwrap(), ProcessId::own());
    let e = table.claim(1, me).unwrap();
    table.publish((e, 1), &set(1..=5), Clock::at(100), me).unwrap();
    let snapshot = table.read(e, 1).unwrap();
    let mut at = 0;
    let taken: Vec<_> = std::iter::from_fn(|| snapshot.next_metadata(&mut at)).collect();
    assert_eq!((taken.len(), taken), (5, snapshot.metadata()));
}

#[test]
fn it_stays_short_however_much_changes() {
    let (table, me) = (Table::create(zone(1 << 17), 16).unwrap(), ProcessId::own());
    table.acquire_leadership(me);
    let e = table.claim(1, me).unwrap();
    for round in 0..30u16 {
        let first = 1 + round % 2 * 100;
        table.publish((e, 1), &set(first..first + 60), Clock::at(u64::from(round)), me).unwrap();
    }
    let history = table.read(e, 1).unwrap().history();
    assert!((2..=MAX_CHANGES).contains(&history.len()), "{}", history.len());
    assert_eq!(history[0].time_ms, 29);
    assert!(history.iter().all(|c| c.joined.len() == MAX_NAMED && c.joined_total == 60));
    assert!(encode_history(history).len() * 8 <= MAX_BYTES + 16);
}

#[test]
fn a_zone_without_room_for_it_still_takes_the_set() {
    let me = ProcessId::own();
    // The largest set that fits twice, found from above.
    let table = Table::create(zone(4096), 16).unwrap();
    table.acquire_leadership(me);
    let e = table.claim(1, me).unwrap();
    let fits =
        (1..200u16).rev().find(|&n| table.publish((e, 1), &set(1..=n), Clock::at(1), me).is_ok());
    assert!(fits.is_some_and(|n| n > 5), "{fits:?}");
    assert_eq!(table.read(e, 1).unwrap().records.len(), usize::from(fits.unwrap()));
}

#[test]
fn damaged_words_are_no_history() {
    let decode = |words: &[u64]| decode_history(words.iter().copied());
    assert_eq!(decode(&[]), []);
    assert_eq!(decode(&[u64::MAX, 7]), []);
    let words = encode_history(vec![SetChange {
        time_ms: 1,
        generation: 2,
        joined: vec![addr(1)],
        left: Vec::new(),
        joined_total: 1,
        left_total: 0,
        changed_total: 0,
    }]);
    assert_eq!(decode(&words).len(), 1);
    let mut damaged = words.clone();
    damaged[1] = u64::MAX;
    assert_eq!(decode(&damaged), []);
    assert_eq!(decode(&words[..2]), []);
}
