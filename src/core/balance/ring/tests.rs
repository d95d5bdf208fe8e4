use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::super::golden::{KEYS, SETS, is_up};
use super::*;

mod updates;

#[derive(Clone, Debug)]
struct Peer {
    identity: u64,
    weight: u32,
    name: String,
}

impl Member for Peer {
    fn identity(&self) -> u64 {
        self.identity
    }

    fn weight(&self) -> u32 {
        self.weight
    }

    fn name(&self) -> impl AsRef<[u8]> {
        &self.name
    }

    fn is_named_as(&self, other: &Peer) -> bool {
        self.name == other.name
    }
}

fn peers(servers: &[(String, u32)]) -> Vec<Peer> {
    let numbered = servers.iter().enumerate();
    numbered
        .map(|(i, (name, weight))| Peer {
            identity: i as u64 * 7,
            weight: *weight,
            name: name.clone(),
        })
        .collect()
}

fn equal(n: usize) -> Vec<Peer> {
    let servers: Vec<_> =
        (0..n).map(|i| (format!("10.{}.{}.{}:80", i / 65536, i / 256 % 256, i % 256), 1)).collect();
    peers(&servers)
}

fn ring(peers: &[Peer]) -> Ring {
    Ring::new(peers, None)
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
    let ring = ring(peers);
    keys(keys_asked).map(|hash| &*peers[ring.walk(hash).next().unwrap()].name).collect()
}

fn without(peers: &[Peer], name: &str) -> Vec<Peer> {
    peers.iter().filter(|peer| peer.name != name).cloned().collect()
}

fn is_shared(one: &Ring, other: &Ring) -> bool {
    Rc::ptr_eq(&one.shared, &other.shared)
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
        let ring = ring(&peers(&(set.servers)()));
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
        let ring = ring(&peers(&servers));
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
    let first = ring(&peers);
    assert_eq!(points(&first), expected.iter().map(|point| point.1).collect::<Vec<_>>());

    let mut host = SmallRng::seed_from_u64(3);
    let names: Vec<_> = points(&first).into_iter().map(|i| peers[i].name.clone()).collect();
    peers.shuffle(&mut host);
    let seen: Vec<_> = points(&ring(&peers)).into_iter().map(|i| &peers[i].name).collect();
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
            let (both, one) = (ring(&set), without(&set, &leaving.name));
            assert_eq!(home(&both, &set), first.name);
            let left = Ring::new(&one, Some((&both, &set)));
            assert_eq!(home(&left, &one), heir.name);
            let back = Ring::new(&set, Some((&left, &one)));
            assert_eq!(home(&back, &set), first.name);
            assert!(is_shared(&both, &back), "built anew: the test shows nothing");
            seen += 1;
        }
    }
    assert!(seen > 4, "only {seen} shared hashes");
}

#[test]
fn a_hash_beyond_the_last_point_wraps_and_an_empty_ring_has_no_member() {
    let peers = equal(1);
    let one = ring(&peers);
    assert_eq!(one.walk(u32::MAX).count(), 160);
    assert!(one.walk(u32::MAX).all(|peer| peer == 0));
    let none = ring(&[]);
    assert!(none.is_empty());
    assert_eq!(none.walk(7).next(), None);
    assert_eq!(Ring::new(&[], Some((&one, &peers))).walk(7).next(), None);
    assert_eq!(points(&Ring::new(&peers, Some((&none, &[])))).len(), 160);
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
        let ring = ring(&equal(n));
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
    assert_eq!(ring(&two).len(), 101 * 160);
    let mut many = equal(600);
    many.iter_mut().for_each(|peer| peer.weight = 100);
    many[0].weight = 3;
    let ring = ring(&many);
    assert_eq!(ring.len(), (599 * 50 + 1) * 160, "all halved");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

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
        let (ring, nginx) = (ring(&peers), nginx_points(&peers));
        for hash in hashes.into_iter().chain([0, u32::MAX, nginx[5].0, nginx[5].0 + 1]) {
            let at = nginx_find(&nginx, hash);
            let expected = (at..at + LOOKS).map(|i| nginx[i % nginx.len()].1);
            prop_assert!(ring.walk(hash).take(LOOKS).eq(expected), "{:#x}", hash);
        }
    }
}
