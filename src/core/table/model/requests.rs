//! Requests in flight, counted by workers that may be killed.

use super::super::membership::owner;
use super::*;
use crate::table::{SlotRef, WorkerShard};

/// The first slot.
fn first(table: Table<'_>) -> SlotRef {
    table.slot_at(0).expect("a slot")
}

/// One request, from its beginning to its end.
fn request(table: Table<'_>, shard: WorkerShard) {
    table.begin_request(first(table), owner(KEY, 1), Some(shard)).expect("a shard").end();
}

#[test]
fn what_two_workers_have_in_flight_adds_up_and_ends_at_zero() {
    check(3, || {
        let zone = published(process(3));
        let work = |number| {
            move |table: Table<'_>| {
                let shard = table.claim_shard(process(number)).expect("a shard");
                request(table, shard);
                let one =
                    table.begin_request(first(table), owner(KEY, 1), Some(shard)).expect("a shard");
                assert!((1..=2).contains(&table.in_flight(first(table))));
                one.end();
                table.release_shard(shard);
            }
        };
        let other = start(&zone, work(1));
        work(2)(zone.table());
        other.join().expect("served");
        assert_eq!(zone.table().in_flight(first(zone.table())), 0);
    });
}

#[test]
fn a_killed_workers_requests_are_taken_out_and_nobody_elses() {
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    for stores in 0.. {
        let seen = Arc::clone(&done);
        check(2, move || {
            let zone = published(process(3));
            let table = zone.table();
            let mine = table.claim_shard(process(1)).expect("a shard");
            seen.store(
                killed_after(stores, process(2), || {
                    let shard = table.claim_shard(process(2)).expect("a shard");
                    request(table, shard);
                    let one = table
                        .begin_request(first(table), owner(KEY, 1), Some(shard))
                        .expect("a shard");
                    request(table, shard);
                    one.end();
                    table.release_shard(shard);
                }),
                Relaxed,
            );
            let cleaner = start(&zone, |table| table.clear_dead_shards());
            let successor = start(&zone, |table| {
                if let Some(shard) = table.claim_shard(process(3)) {
                    request(table, shard);
                }
            });
            request(table, mine);
            let _stays = table.begin_request(first(table), owner(KEY, 1), Some(mine));
            for thread in [cleaner, successor] {
                thread.join().expect("done");
            }
            assert_eq!(table.in_flight(first(table)), 1);
        });
        if done.load(Relaxed) {
            assert!(stores > 5, "only {stores} stores to be killed at");
            return;
        }
    }
}

/// Where the instance of this number is.
fn slot_of(table: Table<'_>, number: u64) -> SlotRef {
    let records = table.read_records(0, KEY).expect("a set").records;
    records.iter().find(|record| record.identity == number).expect("a member").slot
}

#[test]
fn an_instance_that_leaves_and_returns_meanwhile_keeps_its_requests_in_flight() {
    check(2, || {
        let me = process(3);
        let zone = published(me);
        let table = zone.table();
        let shard = table.claim_shard(process(1)).expect("a shard");
        let before =
            table.begin_request(first(table), owner(KEY, 1), Some(shard)).expect("counted");
        let publisher = start(&zone, move |table| {
            publish(table, KEY, &[2], me);
            publish(table, KEY, &[1], me);
        });
        let during =
            table.begin_request(first(table), owner(KEY, 1), Some(shard)).expect("counted");
        publisher.join().expect("published");
        assert_eq!(slot_of(table, 1), first(table));
        assert_eq!(table.in_flight(first(table)), 2);
        [before, during].into_iter().for_each(|request| request.end());
        assert_eq!(table.in_flight(first(table)), 0);
    });
}

#[test]
fn a_slot_passes_to_another_instance_only_while_no_request_counts_in_it() {
    check(3, || {
        let zone = published(process(3));
        let table = zone.table();
        let shard = table.claim_shard(process(1)).expect("a shard");
        let publisher = start(&zone, |table| {
            if table.take_slot(first(table)) {
                table.give_slot(first(table), owner(OTHER, 2), (1, 1));
            }
        });
        let request = table.begin_request(first(table), owner(KEY, 1), Some(shard));
        publisher.join().expect("done");
        let is_own = table.peer_counters(first(table)).belongs_to(owner(KEY, 1));
        assert!(is_own || request.is_none(), "it counts for another instance");
        assert_eq!(table.in_flight(first(table)), u64::from(request.is_some()));
    });
}

#[test]
fn a_publisher_killed_while_an_instance_leaves_or_returns_takes_no_slot_from_it() {
    kill_at_every_store(
        1,
        |table, old| {
            publish(table, KEY, &[2, 3], old);
            publish(table, KEY, &[1], old);
        },
        |table, new| {
            table.acquire_leadership(new);
            publish(table, KEY, &[2, 4], new);
            publish(table, KEY, &[1], new);
            assert_eq!(slot_of(table, 1), first(table));
        },
    );
}
