//! The shared table, over a zone in which any words have any values: whatever another process has
//! done to it, who reads it, counts in it or publishes to it ends, stays within it, and doesn't
//! panic. Only the lock word is whole: it is what a publisher may wait for.
#![no_main]

use std::num::NonZeroU16;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use nginx_consul_core::clock::Clock;
use nginx_consul_core::model::{
    Action, Health, Mode, Override, Peer, PeerSet, Pending, Reason, identity,
};
use nginx_consul_core::process::ProcessId;
use nginx_consul_core::table::{FailureLimits, PROBE_PACE, PeerSnapshot, Table, WorkerShard};

const LIMITS: FailureLimits = FailureLimits { max_fails: 1, fail_timeout: 10_000 };

/// Words of the zone: the smallest that holds a few targets and peers.
const WORDS: usize = 4096;
const SHARDS: usize = 16;
const KEYS: [u128; 3] = [1, 2 << 64 | 1, u128::MAX];
/// Where the lock word is.
const LOCK: usize = 1;

/// What every run starts from; made once.
struct Start {
    words: Vec<u64>,
    me: ProcessId,
    shard: Option<WorkerShard>,
}

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
        params: Default::default(),
        meta: Default::default(),
    };
    PeerSet::new((1..=count).map(peer).collect())
}

/// A table with sets of one to three peers, as publishers leave it, and a shard of a worker.
fn start() -> Start {
    let words: Vec<AtomicU64> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
    let table = Table::create(&words, SHARDS).expect("room for a table");
    let me = ProcessId::own();
    table.acquire_leadership(me);
    for (count, key) in (1..).zip(KEYS) {
        let entry = table.claim(key, me).expect("room for an entry");
        for tag in ["old", "new"] {
            table
                .publish((entry, key), &peers(count, tag), Clock { wall: 1, monotonic: 1 }, me)
                .expect("room for a set");
        }
    }
    let shard = table.claim_shard(me);
    Start { words: words.iter().map(|w| w.load(Relaxed)).collect(), me, shard }
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

/// What a reader does with the set it got.
fn look(table: Table<'_>, snapshot: &PeerSnapshot) {
    for record in &snapshot.records {
        let slot = record.slot;
        assert!(record.weight > 0);
        let counters = table.peer_counters(slot);
        let _ = (table.counter_values(slot), table.in_flight(slot), counters.started());
        let _ = counters.is_failed(LIMITS, 20_000);
    }
    let _ = (snapshot.metadata(), snapshot.history());
}

/// What the requests of a worker write, for each peer of the set it got.
fn count(table: Table<'_>, snapshot: &PeerSnapshot, shard: Option<WorkerShard>) {
    for record in &snapshot.records {
        let (slot, owner) = (record.slot, record.owner);
        let owed = table.begin_request(slot, owner, shard);
        let counters = table.peer_counters(slot);
        counters.note_checked(owner, LIMITS, 12_000);
        counters.note_failed((owner, record.address_id()), 1_000);
        if let Some(permit) = counters.probe((owner, shard), LIMITS, 2_000, PROBE_PACE) {
            permit.end();
        }
        counters.note_success(owner, LIMITS, 1_000, 1_000);
        let _ = counters.failing_for(LIMITS, 3_000);
        counters.clear_fails(owner);
        if let Some(request) = owed {
            request.end();
        }
    }
}

/// What requests write while all peers of a target have failed.
fn fail(table: Table<'_>, entry: usize, shard: Option<WorkerShard>) {
    let outage = table.outage(entry);
    outage.note_marked(1_000);
    outage.note_failed(1_001);
    let _ = outage.is_confirmed();
    if let Some(permit) = outage.take_permit(shard, 1_002, LIMITS.fail_timeout) {
        permit.end();
    }
    table.note_recovered();
}

/// What the watch of a target writes.
fn note(table: Table<'_>, entry: usize) {
    table.note_restored(entry, 1, 2);
    table.note_pending(entry, Some(Pending { removals: 1, confirmed: 2, of: 3 }));
    for &reason in Reason::ALL {
        table.count_refusal(entry, reason);
    }
    table.note_retry(entry, u64::MAX);
    table.note_confirmed(entry, ProcessId::own());
    let text = "\u{e9}".repeat(300);
    table.note_failure(entry, &text, u64::MAX, 1);
    let seen = table.freshness(entry);
    assert!(text.starts_with(&seen.error) && !seen.error.is_empty(), "{:?}", seen.error);
    assert!(table.refusals(entry).len() <= Reason::ALL.len());
    table.note_good(entry, 1, 0, Mode::Polling { delay: Duration::from_millis(1) }, 2);
    assert_eq!((table.freshness(entry).failures, table.last_good(entry)), (0, 2));
}

fn weighted(id: &str, deadline: Option<u64>) -> Override {
    let text = || "\u{e9}".repeat(30);
    Override {
        service: text(),
        node: "node".to_owned(),
        id: id.to_owned(),
        upstream: Some(text()),
        action: Action::Weight,
        weight: NonZeroU16::new(7),
        by: text(),
        since_ms: 1,
        until_ms: deadline,
        deadline,
        ..Override::default()
    }
}

/// What operators order, and what workers make of it: whatever lies there.
fn order_all(table: Table<'_>, me: ProcessId) {
    let held = |table: Table<'_>| table.all_overrides().expect("nobody else writes");
    let _ = (table.is_frozen(KEYS[0], 5), table.take_resyncs());
    let overrides = table.overrides(5).expect("nobody else writes");
    for key in KEYS {
        let snapshot = table.find(key).and_then(|entry| table.read_records(entry, key));
        if let Some(mut snapshot) = snapshot {
            overrides.apply((1, b"api"), &mut snapshot.records);
            assert!(snapshot.records.iter().all(|record| record.weight > 0));
        }
    }
    table.recover_orphaned_lock(me);
    let both = [weighted("id-1", None), weighted("id-2", Some(9))];
    let _ = table.set_overrides(&both, me);
    assert!(held(table).len() <= table.override_capacity());
    let removed = table.remove_overrides(|_| true, me).expect("nobody else has the lock");
    assert!(removed.len() <= table.override_capacity() && held(table).is_empty());
    table.set_overrides(&both, me).expect("there is room now");
    assert_eq!(held(table), both);
}

/// What publishers do, having found whatever they find. A zone without room is no fault.
fn publish(table: Table<'_>, me: ProcessId, shard: Option<WorkerShard>) {
    for (count, key) in (2..).zip(KEYS) {
        if let Ok(entry) = table.claim(key, me) {
            let _ = table.publish(
                (entry, key),
                &peers(count, "newer"),
                Clock { wall: 3, monotonic: 3 },
                me,
            );
        }
    }
    table.retain(&KEYS[1..], &[], me);
    assert!(table.find(KEYS[0]).is_none() && table.free_entries() > 0);
    if let Some(shard) = shard {
        table.clear_shard(shard);
    }
}

fuzz_target!(|data: &[u8]| {
    static START: OnceLock<Start> = OnceLock::new();
    let Start { words, me, shard } = START.get_or_init(start);
    let words: Vec<AtomicU64> = words.iter().map(|w| AtomicU64::new(*w)).collect();
    damage(&words, data);
    words[LOCK].store(0, Relaxed);
    let Some(table) = Table::attach(&words) else { return };
    let _ = (table.usage(), table.state_file());
    for entry in 0..table.entry_capacity() {
        let key = table.key(entry);
        let _ = (table.generation(entry), table.has_data(entry), table.freshness(entry));
        for snapshot in [table.read(entry, key), table.read_records(entry, key)].iter().flatten() {
            look(table, snapshot);
            count(table, snapshot, *shard);
            fail(table, entry, *shard);
        }
        note(table, entry);
    }
    order_all(table, *me);
    publish(table, *me, *shard);
});
