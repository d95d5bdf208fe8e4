use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::super::golden::{KEYS, SETS, is_up};
use super::*;

#[derive(Clone, Debug)]
struct Peer {
    slot: u32,
    weight: u32,
    name: String,
}

fn peers(servers: &[(String, u32)]) -> Vec<Peer> {
    let numbered = servers.iter().enumerate();
    numbered
        .map(|(i, (name, weight))| Peer { slot: i as u32 * 7, weight: *weight, name: name.clone() })
        .collect()
}

fn equal(n: usize) -> Vec<Peer> {
    let servers: Vec<_> =
        (0..n).map(|i| (format!("10.{}.{}.{}:80", i / 65536, i / 256 % 256, i % 256), 1)).collect();
    peers(&servers)
}

fn ring(peers: &[Peer], before: Option<&Ring>) -> Ring {
    let members = peers.iter();
    Ring::new(
        members.map(|p| Member { slot: p.slot, weight: p.weight, name: p.name.as_bytes() }),
        before,
    )
}

/// The points as requests see them.
fn points(ring: &Ring) -> Vec<usize> {
    ring.walk(0).collect()
}

fn keys(n: usize) -> impl Iterator<Item = u32> {
    (0..n).map(|k| Ring::hash(format!("key{k}").as_bytes()))
}

/// The name of the peer each key goes to.
fn homes(peers: &[Peer], keys_asked: usize) -> Vec<&str> {
    let ring = ring(peers, None);
    keys(keys_asked).map(|hash| &*peers[ring.walk(hash).next().unwrap()].name).collect()
}

/// nginx's `ngx_http_upstream_update_chash()`, said plainly, for servers in the order of their names.
fn nginx_points(peers: &[Peer]) -> Vec<(u32, usize)> {
    let mut order: Vec<usize> = (0..peers.len()).collect();
    order.sort_by_key(|&i| &peers[i].name);
    let mut all = Vec::new();
    for i in order {
        let (host, port) = peers[i].name.rsplit_once(':').unwrap();
        let mut previous = [0; 4];
        for _ in 0..peers[i].weight * 160 {
            let text = [host.as_bytes(), b"\0", port.as_bytes(), &previous].concat();
            let hash = crc32fast::hash(&text);
            all.push((hash, i));
            previous = hash.to_le_bytes();
        }
    }
    all.sort_by_key(|point| point.0);
    all.dedup_by_key(|point| point.0);
    all
}

/// nginx's `ngx_http_upstream_find_chash_point()`.
fn nginx_find(points: &[(u32, usize)], hash: u32) -> usize {
    let (mut i, mut j) = (0, points.len());
    while i < j {
        let k = (i + j) / 2;
        if hash > points[k].0 {
            i = k + 1;
        } else if hash < points[k].0 {
            j = k;
        } else {
            return k;
        }
    }
    i
}

#[test]
fn keys_go_where_stock_nginx_sends_them() {
    for set in SETS {
        let ring = ring(&peers(&(set.servers)()), None);
        for (k, hash) in keys(KEYS).enumerate() {
            let seen = ring.walk(hash).next();
            assert_eq!(seen, Some(set.consistent[k]), "key{k} of {}", set.name);
        }
    }
}

#[test]
fn keys_of_servers_that_are_down_go_where_stock_nginx_sends_them() {
    let mut seen = 0;
    for set in SETS {
        let servers = (set.servers)();
        let ring = ring(&peers(&servers), None);
        for (k, hash) in keys(KEYS).enumerate() {
            let mut walk = ring.walk(hash).take(LOOKS);
            // Else nginx too took to the round robin.
            if let Some(found) = walk.find(|&peer| is_up(peer, servers.len())) {
                assert_eq!(found, set.consistent_down[k], "key{k} of {}", set.name);
                seen += 1;
            }
        }
    }
    assert!(seen > 3 * KEYS, "{seen} of {} keys were found a server", SETS.len() * KEYS);
}

#[test]
fn equal_hashes_go_to_the_first_by_name_on_every_host() {
    let mut peers = equal(3000);
    let expected = nginx_points(&peers);
    assert!(expected.len() < 3000 * 160, "no two hashes are equal: the test shows nothing");
    let first = ring(&peers, None);
    assert_eq!(points(&first), expected.iter().map(|point| point.1).collect::<Vec<_>>());

    let mut host = SmallRng::seed_from_u64(3);
    let names: Vec<_> = points(&first).into_iter().map(|i| peers[i].name.clone()).collect();
    peers.shuffle(&mut host);
    let mut slots: Vec<u32> = (0..3000).collect();
    slots.shuffle(&mut host);
    peers.iter_mut().zip(slots).for_each(|(peer, slot)| peer.slot = slot);
    let seen: Vec<_> = points(&ring(&peers, None)).into_iter().map(|i| &peers[i].name).collect();
    assert!(seen.into_iter().eq(&names), "another host has another ring");
}

#[test]
fn a_peer_that_leaves_a_shared_hash_leaves_it_to_the_other() {
    let all = equal(3000);
    let mut points: Vec<_> = (0..3000)
        .flat_map(|i| points::hashes(all[i].name.as_bytes(), 1).map(move |hash| (hash, i)))
        .collect();
    points.sort_unstable();
    let pairs = points.windows(2).filter(|pair| pair[0].0 == pair[1].0);
    let mut seen = 0;
    for pair in pairs {
        let (hash, one, other) = (pair[0].0, &all[pair[0].1], &all[pair[1].1]);
        let (first, second) = if one.name < other.name { (one, other) } else { (other, one) };
        let home = |ring: &Ring, set: &[Peer]| set[ring.walk(hash).next().unwrap()].name.clone();
        for (leaving, heir) in [(first, second), (second, first)] {
            let mut set: Vec<Peer> = all.iter().step_by(100).cloned().collect();
            set.retain(|peer| peer.name != first.name && peer.name != second.name);
            set.extend([first.clone(), second.clone()]);
            let both = ring(&set, None);
            assert_eq!(home(&both, &set), first.name);
            set.retain(|peer| peer.name != leaving.name);
            let left = ring(&set, Some(&both));
            assert_eq!(home(&left, &set), heir.name);
            set.push(leaving.clone());
            assert_eq!(home(&ring(&set, Some(&left)), &set), first.name);
            seen += 1;
        }
    }
    assert!(seen > 4, "only {seen} shared hashes");
}

#[test]
fn a_hash_beyond_the_last_point_wraps_and_an_empty_ring_has_no_member() {
    let one = ring(&equal(1), None);
    assert_eq!(one.walk(u32::MAX).count(), 160);
    assert!(one.walk(u32::MAX).all(|peer| peer == 0));
    let none = ring(&[], None);
    assert!(none.is_empty());
    assert_eq!(none.walk(7).next(), None);
    assert_eq!(ring(&[], Some(&one)).walk(7).next(), None);
    assert_eq!(points(&ring(&equal(1), Some(&none))).len(), 160);
}

#[test]
fn one_of_n_peers_leaving_or_joining_moves_exactly_its_own_keys() {
    const KEYS: usize = 10_000;
    for n in [2, 10, 50] {
        let all = equal(n);
        let before = homes(&all, KEYS);
        for leaving in [0, n / 2, n - 1] {
            let mut rest = all.clone();
            let gone = rest.remove(leaving).name;
            let after = homes(&rest, KEYS);
            let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
            assert!(before.iter().zip(&after).all(|(a, b)| a == b || *a == gone), "{gone} of {n}");
            let own = before.iter().filter(|home| **home == gone).count();
            assert_eq!(moved, own, "all of its keys, and no others");
            let (share, fair) = (moved as f64 / KEYS as f64, 1.0 / n as f64);
            assert!(share < fair * 1.35, "{gone} of {n}: {share} of the keys moved");
        }
    }
}

#[test]
fn equal_weights_get_what_160_points_give_and_weights_count() {
    const KEYS: usize = 100_000;
    for n in [3, 20, 100] {
        let ring = ring(&equal(n), None);
        let mut seen = vec![0.0; n];
        keys(KEYS).for_each(|hash| seen[ring.walk(hash).next().unwrap()] += 1.0);
        // Stretches of random points: a share has a deviation of 1/√160 = 8 % of itself, to which
        // the number of keys adds n / KEYS in square.
        let fair = KEYS as f64 / n as f64;
        let variance = 1.0 / 160.0 + n as f64 / KEYS as f64;
        let chi: f64 = seen.iter().map(|s| (s / fair - 1.0).powi(2) / variance).sum();
        let limit = n as f64 + 4.0 * (2.0 * n as f64).sqrt();
        assert!(chi < limit, "{n} peers: {chi} of {limit}: {seen:?}");
        let most = seen.iter().copied().fold(0.0, f64::max);
        assert!(most < 1.35 * fair, "{n} peers: {most} of {fair}");
    }
    let mut weighted = equal(10);
    weighted[3].weight = 10;
    let home = weighted[3].name.clone();
    let seen = homes(&weighted, KEYS).into_iter().filter(|name| *name == home).count();
    let share = seen as f64 / KEYS as f64;
    assert!((0.48..0.58).contains(&share), "10 of 19: {share}");
}

#[test]
fn weights_beyond_the_limit_count_as_the_limit() {
    let mut two = equal(2);
    two[0].weight = 65_535;
    assert_eq!(ring(&two, None).len(), 101 * 160);
    let mut many = equal(600);
    many.iter_mut().for_each(|peer| peer.weight = 100);
    many[0].weight = 3;
    let ring = ring(&many, None);
    assert_eq!(ring.len(), (599 * 50 + 1) * 160, "all halved");
}

#[test]
fn an_update_of_one_shares_all_stretches_it_does_not_touch() {
    let mut peers = equal(2000);
    let before = ring(&peers, None);
    peers[77].name = "10.99.0.1:80".into();
    let after = ring(&peers, Some(&before));
    let (shared, all) = (after.buckets.shared_with(&before.buckets), after.buckets.count());
    assert!(all >= 1024 && shared >= all - 320, "{shared} of {all}");
    assert_eq!(points(&after), points(&ring(&peers, None)));
    let same = ring(&peers, Some(&after));
    assert_eq!(same.buckets.shared_with(&after.buckets), all);
}

/// A change of a set; numbers mean a peer modulo how many there are.
#[derive(Clone, Debug)]
enum Change {
    Join(usize),
    Leave(usize),
    LeaveMany(usize),
    Weigh(usize, u32),
    Rename(usize),
    /// Another instance gets the slot of one that leaves.
    TakeSlot(usize),
    Turn(usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (1usize..4).prop_map(Change::Join),
        1 => (20usize..60).prop_map(Change::Join),
        3 => any::<usize>().prop_map(Change::Leave),
        1 => (1usize..50).prop_map(Change::LeaveMany),
        3 => (any::<usize>(), 1u32..12).prop_map(|(i, weight)| Change::Weigh(i, weight)),
        2 => any::<usize>().prop_map(Change::Rename),
        1 => any::<usize>().prop_map(Change::TakeSlot),
        1 => any::<usize>().prop_map(Change::Turn),
    ]
}

#[derive(Default)]
struct Model {
    peers: Vec<Peer>,
    next: u32,
    spare_slots: Vec<u32>,
}

impl Model {
    fn name(&mut self) -> String {
        self.next += 1;
        format!("10.1.{}.{}:8{}", self.next / 256, self.next % 256, self.next % 7)
    }

    fn join(&mut self) {
        let name = self.name();
        let slot = self.spare_slots.pop().unwrap_or(self.next);
        let weight = if self.next % 5 == 0 { 3 } else { 1 };
        let place = self.next as usize * 31 % (self.peers.len() + 1);
        self.peers.insert(place, Peer { slot, weight, name });
    }

    fn apply(&mut self, change: &Change) {
        let count = self.peers.len();
        match *change {
            Change::Join(n) => (0..n).for_each(|_| self.join()),
            _ if count == 0 => {}
            Change::Leave(i) => {
                let gone = self.peers.remove(i % count);
                self.spare_slots.push(gone.slot);
            }
            Change::LeaveMany(n) => self.peers.truncate(count.saturating_sub(n)),
            Change::Weigh(i, weight) => self.peers[i % count].weight = weight,
            Change::Rename(i) => self.peers[i % count].name = self.name(),
            Change::TakeSlot(i) => {
                let gone = self.peers.remove(i % count);
                self.spare_slots.push(gone.slot);
                self.join();
            }
            Change::Turn(i) => self.peers.rotate_left(i % count),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_updates_give_the_ring_of_a_build_from_nothing(
        changes in prop::collection::vec(change(), 1..25)
    ) {
        let mut model = Model::default();
        let mut updated = ring(&[], None);
        for change in &changes {
            model.apply(change);
            updated = ring(&model.peers, Some(&updated));
            let fresh = ring(&model.peers, None);
            prop_assert_eq!(updated.len(), fresh.len(), "after {:?}", change);
            prop_assert!(points(&updated) == points(&fresh), "after {:?}", change);
        }
    }

    #[test]
    fn every_hash_has_nginx_s_points(
        weights in prop::collection::vec(1u32..9, 2..30), seed: u64, hashes: [u32; 32]
    ) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let servers: Vec<_> = weights
            .iter()
            .enumerate()
            .map(|(i, &weight)| (format!("10.0.{i}.{}:{}", rng.random::<u8>(), rng.random::<u16>()), weight))
            .collect();
        let peers = peers(&servers);
        let (ring, nginx) = (ring(&peers, None), nginx_points(&peers));
        for hash in hashes.into_iter().chain([0, u32::MAX, nginx[5].0, nginx[5].0 + 1]) {
            let at = nginx_find(&nginx, hash);
            let expected = (at..at + LOOKS).map(|i| nginx[i % nginx.len()].1);
            prop_assert!(ring.walk(hash).take(LOOKS).eq(expected), "{:#x}", hash);
        }
    }
}
