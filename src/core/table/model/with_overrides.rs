//! Overrides: a new generation of the same block, and the list of them.

use super::*;
use crate::model::{Action, Override, of_instance};

fn drain(id: &str) -> Override {
    of_instance(id, Action::Drain)
}

#[test]
fn a_set_that_is_to_be_looked_at_anew_is_whole_and_so_is_the_next_one() {
    check(2, || {
        let me = process(1);
        let zone = published(me);
        let writer = start(&zone, move |table| {
            table.set_overrides(&[drain("1")], me).expect("room");
            publish(table, KEY, &[2], me);
        });
        if let Some((generation, peers)) = read(zone.table(), 0, KEY) {
            assert!(matches!((generation, &peers[..]), (1 | 3, [1]) | (4, [2])), "{generation}");
        }
        writer.join().expect("ordered");
        assert_eq!(read(zone.table(), 0, KEY), Some((4, vec![2])));
    });
}

#[test]
fn a_reader_never_sees_a_list_mixed_of_two() {
    check(2, || {
        let me = process(1);
        let zone = published(me);
        let writer = start(&zone, move |table| {
            for id in ["1", "2", "3"] {
                table.set_overrides(&[drain(id)], me).expect("room");
            }
        });
        let all = ["1", "2", "3"].map(drain);
        if let Some(seen) = zone.table().all_overrides() {
            assert!(seen == all[..seen.len()], "{seen:?}");
        }
        writer.join().expect("ordered");
        assert_eq!(zone.table().all_overrides().as_deref(), Some(&all[..]));
    });
}

#[test]
fn an_override_whose_writer_is_killed_anywhere_is_known_to_everybody_or_to_nobody() {
    kill_at_every_store(
        1,
        |table, me| {
            table.set_overrides(&[drain("1")], me).expect("room");
        },
        |table, me| {
            table.recover_orphaned_lock(me);
            let held = table.all_overrides().expect("nobody writes");
            assert!(held.is_empty() || held == [drain("1")], "{held:?}");
            assert!(held.is_empty() || table.generation(0) > 1, "nobody was told");
        },
    );
}
