//! The table's protocol, model-checked: `scripts/model`.
//!
//! loom runs each test again and again, in every order of the threads' accesses and with every
//! value that Rust's memory model lets a load see. It is the table's own code that runs, over
//! words that loom watches ([`super::platform`]).

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use loom::thread::{JoinHandle, spawn};

use super::block::{PEER_RECORD, PeerMetadata};
use super::layout::{Layout, Table, entry, header, lookup_cache, overrides, slot};
use super::lookup_cache::LookupResult;
use super::platform::atomic::{AtomicU64, Ordering::Relaxed};
use super::platform::{killed_after, process};
use super::publish::Claim;
use super::words;
use crate::clock::Clock;
use crate::model::{Health, Peer, PeerSet, service_scope};
use crate::params::Params;
use crate::process::ProcessId;

mod requests;
mod with_overrides;

/// Two shards, so that they share a word.
const SHARDS: usize = 2;
const SLOTS: usize = 4;
/// Words of the arena: three blocks of one peer, with some to spare.
const ARENA: usize = 132;
const KEY: u128 = 1 << 64 | 5;
const OTHER: u128 = 2 << 64 | 6;

/// The smallest zone that a table fits in.
struct Zone(Vec<AtomicU64>);

impl Zone {
    fn new() -> Arc<Zone> {
        let list = header::WORDS + 4 * lookup_cache::WORDS_PER_ENTRY;
        let shards = list + 4 * overrides::WORDS;
        let entries = shards + SHARDS;
        let slots = entries + 4 * entry::WORDS;
        let arena = slots + SLOTS * (slot::WORDS + SHARDS / 2);
        let word = |at: usize| {
            let watched = if at < list {
                // Of the lookup cache what the first names have.
                at < header::WORDS + lookup_cache::WORDS_PER_ENTRY
            } else if at < shards {
                // Of each area of overrides the first two words.
                (at - list) % (4 * overrides::WORDS / 2) < 2
            } else if at < entries {
                true
            } else if at < slots {
                // The first two entries, without what only the status page reads.
                (at - entries) / entry::WORDS < 2 && (at - entries) % entry::WORDS < entry::RESTORED
            } else if at < arena {
                let word = (at - slots) % (slot::WORDS + SHARDS / 2);
                word == slot::OWNER || word >= slot::WORDS
            } else {
                // Of a record slot and weight, identity, port and address; not its text.
                (at - arena) % block_len() < 4
            };
            if watched { AtomicU64::watched(0) } else { AtomicU64::new(0) }
        };
        let zone = Zone((0..arena + ARENA).map(word).collect());
        let table = Table::create(&zone.0, SHARDS).expect("room for a table");
        assert_eq!((table.layout.slot_count, table.layout.arena), (SLOTS, arena));
        Arc::new(zone)
    }

    fn table(&self) -> Table<'_> {
        Table::over(&self.0, Layout::new(self.0.len(), SHARDS).expect("as made"))
    }
}

fn peer(n: u16) -> Peer {
    Peer {
        addr: SocketAddr::from(([127, 0, 0, n as u8], n)),
        weight: NonZeroU16::new(n).expect("not 0"),
        identity: u64::from(n),
        node: "n".into(),
        id: n.to_string(),
        tags: Vec::new(),
        health: Health::Passing,
        datacenter: String::new(),
        params: Params::default(),
        meta: Default::default(),
    }
}

fn set(peers: &[u16]) -> PeerSet {
    PeerSet::new(peers.iter().map(|n| peer(*n)).collect())
}

/// Words of a block of one peer.
fn block_len() -> usize {
    PEER_RECORD + words::pack(&PeerMetadata::encode(&set(&[1]))).len()
}

/// Publishes and expects that it changed something.
fn publish(table: Table<'_>, key: u128, peers: &[u16], me: ProcessId) {
    let entry = table.find(key).expect("an entry");
    let change = table.publish((entry, key), &set(peers), Clock::at(1), me).expect("room");
    assert!(change.is_some(), "a change");
}

/// The peers of `key`, each of them whole.
fn read(table: Table<'_>, entry: usize, key: u128) -> Option<(u64, Vec<u16>)> {
    let snapshot = table.try_read(entry, key, false)?;
    let ports = snapshot.records.iter().map(|record| {
        let expected = peer(record.addr().port());
        assert_eq!(record.addr(), expected.addr, "a record of two peers");
        assert_eq!(record.weight, u32::from(expected.weight.get()), "a record of two peers");
        assert_eq!(record.identity, expected.identity, "a record of two peers");
        record.addr().port()
    });
    Some((snapshot.generation, ports.collect()))
}

/// A zone led by `leader`, with a set of one peer as the first generation of `KEY`.
fn published(leader: ProcessId) -> Arc<Zone> {
    let zone = Zone::new();
    let claim = Claim { scope: service_scope("web", None), ..KEY.into() };
    zone.table().claim(claim, leader).expect("room");
    publish(zone.table(), KEY, &[1], leader);
    zone.table().acquire_leadership(leader);
    zone
}

/// Runs `work` on the zone in a thread of its own.
fn start(zone: &Arc<Zone>, work: impl Fn(Table<'_>) + 'static) -> JoinHandle<()> {
    let zone = Arc::clone(zone);
    spawn(move || work(zone.table()))
}

/// Tries every execution of `model` with at most so many switches away from a running thread.
/// `LOOM_MAX_PREEMPTIONS` sets another number.
fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    builder.max_branches = 10_000;
    let executions = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&executions);
    builder.check(move || {
        count.fetch_add(1, Relaxed);
        model();
    });
    println!("{} executions", executions.load(Relaxed));
}

#[test]
fn a_reader_never_sees_a_set_mixed_of_two_generations() {
    check(2, || {
        let me = process(1);
        let zone = published(me);
        let table = zone.table();
        let first = table.block(0, 1).map(|block| block.records);
        let publisher = start(&zone, move |table| {
            publish(table, KEY, &[2], me);
            publish(table, KEY, &[3], me);
        });
        if let Some((generation, peers)) = read(table, 0, KEY) {
            assert_eq!(peers, [generation as u16]);
        }
        publisher.join().expect("published");
        assert_eq!(read(table, 0, KEY), Some((3, vec![3])));
        assert_eq!(
            table.block(0, 3).map(|block| block.records),
            first,
            "the first block is used again"
        );
    });
}

#[test]
fn a_reader_never_sees_the_set_of_the_target_that_its_entry_passed_to() {
    check(2, || {
        let me = process(1);
        let zone = published(me);
        let publisher = start(&zone, move |table| {
            table.retain(&[], &[], me);
            assert_eq!(table.claim(OTHER, me), Ok(0), "the entry is used again");
            publish(table, OTHER, &[2], me);
        });
        let seen = read(zone.table(), 0, KEY);
        assert!(seen.is_none() || seen == Some((1, vec![1])), "{seen:?}");
        publisher.join().expect("published");
        assert_eq!(read(zone.table(), 0, KEY), None);
        assert_eq!(read(zone.table(), 0, OTHER), Some((3, vec![2])));
    });
}

/// Kills a publisher before each of the stores of `work`, until one lives to its end; for each,
/// `then` looks at what it left behind while a reader reads.
fn kill_at_every_store(
    preemptions: usize,
    work: fn(Table<'_>, ProcessId),
    then: fn(Table<'_>, ProcessId),
) {
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    for stores in 0.. {
        let seen = Arc::clone(&done);
        check(preemptions, move || {
            let (old, new) = (process(1), process(2));
            let zone = published(old);
            let lived = killed_after(stores, old, || work(zone.table(), old));
            seen.store(lived, Relaxed);
            let successor = start(&zone, move |table| then(table, new));
            if let Some((_, peers)) = read(zone.table(), 0, KEY) {
                assert!([&[1][..], &[2, 3], &[2, 4]].contains(&&peers[..]), "{peers:?}");
            }
            successor.join().expect("went on");
        });
        if done.load(Relaxed) {
            assert!(stores > 5, "only {stores} stores to be killed at");
            return;
        }
    }
}

/// After any history, only the one set is in use.
fn assert_nothing_leaked(table: Table<'_>, peers: &[u16]) {
    let (_, mut seen) = read(table, 0, KEY).expect("a set");
    seen.sort_unstable();
    assert_eq!(seen, peers);
    let metadata = words::pack(&PeerMetadata::encode(&set(peers))).len();
    let peer_words = PEER_RECORD + table.layout.slot_words;
    let words = table.layout.slots + metadata + peers.len() * peer_words;
    assert_eq!(table.usage(), words * 8, "bytes in use");
    assert_eq!(table.free_entries(), table.entry_capacity() - 1);
}

#[test]
fn a_publisher_killed_at_any_store_leaves_a_whole_set_and_the_next_one_goes_on() {
    kill_at_every_store(
        1,
        |table, old| publish(table, KEY, &[2, 3], old),
        |table, new| {
            let (_, left) = read(table, 0, KEY).expect("a set");
            assert!(left == [1] || left == [2, 3], "{left:?}");
            table.acquire_leadership(new);
            publish(table, KEY, &[2, 4], new);
            assert_nothing_leaked(table, &[2, 4]);
        },
    );
}

#[test]
fn a_publisher_killed_while_targets_come_and_go_loses_no_entry() {
    kill_at_every_store(
        1,
        |table, old| {
            assert_eq!(table.claim(OTHER, old), Ok(1));
            publish(table, OTHER, &[3], old);
            table.retain(&[KEY], &[], old);
        },
        |table, new| {
            table.acquire_leadership(new);
            // Worker 0 frees what its configuration doesn't name only when it is the last one.
            if table.find(OTHER).is_some() {
                table.retain(&[KEY], &[], new);
            }
            publish(table, KEY, &[2, 4], new);
            assert_nothing_leaked(table, &[2, 4]);
        },
    );
}

#[test]
fn a_publisher_killed_while_it_releases_a_service_loses_no_entry() {
    kill_at_every_store(
        1,
        |table, old| {
            assert_eq!(table.claim(OTHER, old), Ok(1));
            publish(table, OTHER, &[3], old);
            table.release(1, OTHER, old);
        },
        |table, new| {
            table.acquire_leadership(new);
            if table.find(OTHER).is_some() {
                table.release(1, OTHER, new);
            }
            publish(table, KEY, &[2, 4], new);
            assert_nothing_leaked(table, &[2, 4]);
        },
    );
}

#[test]
fn two_publishers_never_both_hold_the_lock_and_see_all_that_the_other_did() {
    check(3, || {
        let zone = Zone::new();
        let other = start(&zone, |table| count_under_lock(table, process(1)));
        count_under_lock(zone.table(), process(2));
        other.join().expect("had the lock");
        assert_eq!(zone.table().load(header::STATE_WRITTEN), 2);
    });
}

/// Adds one to a word that only the lock guards.
fn count_under_lock(table: Table<'_>, me: ProcessId) {
    let _guard = table.lock(me);
    assert_eq!(table.load(header::LOCK), me.get());
    let count = table.word(header::STATE_WRITTEN);
    count.store(count.load(Relaxed) + 1, Relaxed);
    assert_eq!(table.load(header::LOCK), me.get());
}

/// As [`count_under_lock`], and killed before it lets go of the lock.
fn die_with_the_lock(table: Table<'_>, me: ProcessId) {
    let lived = killed_after(3, me, || {
        count_under_lock(table, me);
    });
    assert!(!lived);
}

#[test]
fn of_two_who_take_the_lock_over_from_a_killed_publisher_one_waits() {
    check(3, || {
        let zone = Zone::new();
        die_with_the_lock(zone.table(), process(3));
        let other = start(&zone, |table| count_under_lock(table, process(1)));
        count_under_lock(zone.table(), process(2));
        other.join().expect("had the lock");
        assert_eq!(zone.table().load(header::STATE_WRITTEN), 3);
    });
}

#[test]
fn an_old_leader_never_replaces_the_set_of_the_new_one() {
    check(2, || {
        let (old, new) = (process(1), process(2));
        let zone = published(old);
        let successor = start(&zone, move |table| {
            table.acquire_leadership(new);
            publish(table, KEY, &[3], new);
        });
        let late = zone.table().publish((0, KEY), &set(&[2]), Clock::at(1), old).expect("room");
        successor.join().expect("published");
        assert_eq!(read(zone.table(), 0, KEY).expect("a set").1, [3], "{late:?}");
        assert_nothing_leaked(zone.table(), &[3]);
    });
}

#[test]
fn an_older_configuration_frees_nothing_that_the_next_one_has_claimed() {
    check(2, || {
        let (old, master) = (process(1), process(2));
        let zone = published(old);
        let next = start(&zone, move |table| {
            let table = table.announce_configuration();
            assert_eq!(table.claim(OTHER, master), Ok(1));
            publish(table, OTHER, &[2], master);
            table.put_in_force();
        });
        zone.table().retain(&[KEY], &[], old);
        next.join().expect("published");
        let table = zone.table();
        assert_eq!(read(table, 1, OTHER).expect("a set").1, [2]);
        assert!(!table.acquire_leadership(old) && table.is_leader(old));
    });
}

#[test]
fn of_two_results_of_lookups_that_are_noted_at_once_none_is_lost() {
    check(2, || {
        let zone = Zone::new();
        let note = |table: Table<'_>, key, by| {
            let valid = (0, Duration::from_secs(1));
            table.note_lookup_result(key, LookupResult::Absent, valid, process(by));
        };
        let other = start(&zone, move |table| note(table, 5, 1));
        note(zone.table(), 6, 2);
        other.join().expect("noted");
        let results = [5, 6].map(|key| zone.table().lookup_result(key, 0));
        assert_eq!(results, [Some(LookupResult::Absent); 2]);
    });
}
