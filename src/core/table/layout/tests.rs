use super::super::testing::{peer, zone};
use super::*;
use crate::clock::Clock;
use crate::model::{Peer, PeerSet};
use crate::process::ProcessId;

#[test]
fn a_table_is_found_again_in_its_zone_and_nowhere_else() {
    let words = zone(1 << 17);
    assert!(Table::attach(words).is_none());
    let made = Table::create(words, 16).unwrap();
    assert_eq!(Table::attach(words).unwrap().layout, made.layout);
    assert!(Table::attach(&words[..1 << 16]).is_none(), "another size is another layout");
}

#[test]
fn a_zone_too_small_for_anything_is_refused() {
    assert!(Table::create(zone(200), 16).is_none());
}

#[test]
fn ten_megabytes_have_room_for_1280_targets_and_ten_thousand_instances() {
    let layout = Layout::new(10 * 1024 * 1024 / 8, shards_for(8)).unwrap();
    assert_eq!(layout.entry_count, 1280);
    assert!(layout.slot_count > 10_000, "{layout:?}");
}

#[test]
fn an_instance_takes_at_most_800_bytes_while_its_set_is_replaced() {
    let table = Table::create(zone(10 * 1024 * 1024 / 8), shards_for(16)).unwrap();
    let me = ProcessId::own();
    table.acquire_leadership(me);
    let n: u16 = 5000;
    let instance = |i: u16| Peer {
        node: format!("ip-10-20-{}-{}.eu-central-1.compute.internal", i / 256, i % 256),
        id: format!("payments-api-10-20-{}-{}-8080", i / 256, i % 256),
        tags: ["v1.24.3", "http", "team=payments"].map(str::to_owned).to_vec(),
        datacenter: "eu-central-1".into(),
        ..peer(i, 1)
    };
    let empty = table.usage();
    let entry = table.claim(1, me).unwrap();
    let set = PeerSet::new((1..=n).map(instance).collect());
    table.publish((entry, 1), &set, Clock::at(1), me).unwrap();
    let used = table.usage() - empty;
    // The old block and the new one are both there until the generation moves.
    let block = used - usize::from(n) * table.layout.slot_words * 8;
    let each = (used + block) / usize::from(n);
    assert!((500..=800).contains(&each), "{each} bytes");
}
