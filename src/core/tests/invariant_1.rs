//! A pick allocates nothing, whatever the method and the number of peers.

use std::num::NonZeroU16;
use std::sync::atomic::AtomicU64;

use nginx_consul_core::balance::{Method, PickContext, ServerParams, Shared, Tried, View, pick};
use nginx_consul_core::clock::Clock;
use nginx_consul_core::model::{Health, Peer, PeerSet, identity};
use nginx_consul_core::process::ProcessId;
use nginx_consul_core::table::Table;
use rand::SeedableRng;
use rand::rngs::SmallRng;

const KEY: u128 = 1;

fn set(peers: u16) -> PeerSet {
    let peer = |n: u16| {
        let id = format!("web-{n}");
        Peer {
            addr: ([127, 0, 0, 1], 1000 + n).into(),
            weight: NonZeroU16::new(n % 5 + 1).expect("not 0"),
            identity: identity("n1", &id, None),
            node: "n1".into(),
            id,
            tags: Vec::new(),
            health: Health::Passing,
            datacenter: String::new(),
            params: Default::default(),
            meta: Default::default(),
        }
    };
    PeerSet::new((0..peers).map(peer).collect())
}

#[test]
fn invariant_1_a_pick_allocates_nothing() {
    for peers in [3, 10_000] {
        let words: Vec<AtomicU64> = (0..2 << 20).map(|_| AtomicU64::new(0)).collect();
        let table = Table::create(&words, 32).expect("room for a table");
        let me = ProcessId::own();
        let entry = table.claim(KEY, me).expect("room for an entry");
        table
            .publish((entry, KEY), &set(peers), Clock { wall: 1, monotonic: 1 }, me)
            .expect("room for the peers");
        let shard = table.claim_shard(me);
        let rules = ServerParams { max_conns: 1000, slow_start: 1000, ..ServerParams::default() };
        let mut rng = SmallRng::seed_from_u64(7);
        let methods = [
            Method::RoundRobin,
            Method::Random,
            Method::LeastConn,
            Method::LeastTime,
            Method::Hash { consistent: false },
            Method::Hash { consistent: true },
        ];
        for method in methods {
            let snapshot = table.read_records(entry, KEY).expect("a set");
            let view = View::new(vec![snapshot], &rules, method, None);
            let info = allocation_counter::measure(|| {
                for _ in 0..1000 {
                    assert_eq!(table.generation(entry), view.generations()[0]);
                    // Three tries of one request.
                    let tried = Tried::default();
                    for _ in 0..3 {
                        let now = 1000;
                        let candidates = PickContext {
                            view: &view,
                            table: &table,
                            tried: &tried,
                            now,
                            key: b"a key",
                            panic: false,
                            alone: true,
                        };
                        let shared = || Shared { outage: None, shard };
                        let peer = pick(method, &candidates, shared, &mut rng);
                        let peer = peer.expect("a peer that was not tried").picked;
                        let peer = peer.info.number as usize;
                        tried.insert(peer);
                        let record = &view.records()[peer];
                        table
                            .begin_request(record.slot, record.owner, shard)
                            .expect("a shard")
                            .end();
                    }
                }
            });
            assert_eq!(info.count_total, 0, "{method:?} of {peers} peers");
        }
    }
}
