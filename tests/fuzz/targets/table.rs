//! The reader of the shared table, over a zone in which any words have any values: whatever another
//! process has done to it, a reader ends, stays within it, and doesn't panic.
#![no_main]

use std::num::NonZeroU16;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use libfuzzer_sys::fuzz_target;
use nginx_consul_core::model::{Health, Peer, PeerSet, identity};
use nginx_consul_core::process::ProcessId;
use nginx_consul_core::table::{Image, Table};

/// Words of the zone: the smallest that holds a few targets and peers.
const WORDS: usize = 4096;
const LANES: usize = 16;
const KEYS: [u128; 3] = [1, 2 << 64, u128::MAX];

fn peers(count: u16, tag: &str) -> PeerSet {
    let peer = |port: u16| Peer {
        addr: ([127, 0, 0, 1], port).into(),
        weight: NonZeroU16::new(port).unwrap_or(NonZeroU16::MIN),
        identity: identity("node", &format!("id-{port}"), None),
        node: "node".to_owned(),
        id: format!("id-{port}"),
        tags: vec![tag.to_owned()],
        health: Health::Passing,
        datacenter: String::new(),
    };
    PeerSet::new((1..=count).map(peer).collect())
}

/// A table with sets of one to three peers, as publishers leave it.
fn publish(words: &[AtomicU64]) {
    let table = Table::create(words, LANES).expect("room for a table");
    let me = ProcessId::own();
    table.lead(me);
    for (count, key) in (1..).zip(KEYS) {
        let entry = table.claim(key, me).expect("room for an entry");
        for tag in ["old", "new"] {
            table.publish((entry, key), &peers(count, tag), 1, me).expect("room for a set");
        }
    }
}

/// Overwrites words: each eleven bytes are where (two), how (one) and with what (eight).
fn damage(words: &[AtomicU64], data: &[u8]) {
    for op in data.chunks_exact(11) {
        let word = &words[usize::from(u16::from_le_bytes([op[0], op[1]])) % WORDS];
        let mut value = [0; 8];
        value.copy_from_slice(&op[3..]);
        let value = u64::from_le_bytes(value);
        match op[2] % 4 {
            0 => word.store(value, Relaxed),
            1 => word.store(word.load(Relaxed) ^ value, Relaxed),
            2 => word.store(word.load(Relaxed).wrapping_add(value), Relaxed),
            _ => word.store(words[value as usize % WORDS].load(Relaxed), Relaxed),
        }
    }
}

fn look(table: Table<'_>, image: &Image) {
    for record in &image.records {
        let slot = record.slot as usize;
        assert!(record.text().len() <= 48 && record.weight > 0);
        let _ = (table.counters(slot), table.in_flight(slot), table.started(slot));
        let _ = table.is_failed(slot, 1, 10_000, 20_000);
    }
    let _ = image.details();
}

fuzz_target!(|data: &[u8]| {
    let words: Vec<AtomicU64> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
    publish(&words);
    damage(&words, data);
    let Some(table) = Table::attach(&words) else { return };
    let _ = table.usage();
    for entry in 0..table.entry_capacity() {
        let key = table.key(entry);
        let _ = (table.generation(entry), table.has_data(entry), table.freshness(entry));
        for image in [table.read(entry, key), table.read_records(entry, key)].iter().flatten() {
            look(table, image);
        }
    }
    for key in KEYS {
        let _ = table.find(key);
    }
});
