//! nginx's `hash key` without `consistent`.
//!
//! Any change of the set moves nearly all keys, and hosts map keys alike only if they have the peers in
//! the same order. It exists for users who migrate a static block; [`super::ring`] is better.

use std::io::Write;

use crc32fast::Hasher;

/// How many peers `ngx_http_upstream_get_hash_peer()` looks at, besides those it has tried, before
/// it takes the next one of the round robin.
const LOOKS: usize = 21;
/// Number of values of nginx's hash. If the sum of weights is larger, the last peers would hardly ever
/// get a key, so for such sets, and only for them, the hash is not cut down to 15 bits.
const HASHES: u64 = 1 << 15;
/// Most digits of the count that is put before the key.
const DIGITS: usize = 20;

/// The weights of a set, ready to pick from.
#[derive(Debug)]
pub struct Modulo {
    /// `upto[i]` is the sum of the weights of peers 0 to i; empty if all are equal.
    upto: Vec<u64>,
    /// The weight of each, if all are equal.
    each: u64,
    sum: u64,
    /// Has detected the processor's features.
    crc: Hasher,
}

impl Modulo {
    /// Weights in the order of the peers; 0 counts as 1.
    pub fn new(weights: impl ExactSizeIterator<Item = u32> + Clone) -> Modulo {
        let each = u64::from(weights.clone().next().unwrap_or(1).max(1));
        if weights.clone().all(|weight| u64::from(weight.max(1)) == each) {
            let sum = each * weights.len() as u64;
            return Modulo { upto: Vec::new(), each, sum, crc: Hasher::new() };
        }
        let mut sum = 0;
        let upto = weights
            .map(|weight| {
                sum += u64::from(weight.max(1));
                sum
            })
            .collect();
        Modulo { upto, each, sum, crc: Hasher::new() }
    }

    /// The peers to try for a key, in turn; the same one may come several times. The walk always begins
    /// with the first one: the caller skips the `tried` peers that the request has tried. After the
    /// walk, and at once for an empty key, the caller falls back to round robin.
    pub fn walk<'a>(&'a self, key: &'a [u8], tried: usize) -> impl Iterator<Item = usize> + 'a {
        let looks = if self.sum == 0 || key.is_empty() { 0 } else { LOOKS + tried };
        let mut sum = 0u32;
        (0..looks).map(move |rehash| {
            let crc = self.hash(rehash, key);
            sum = sum.wrapping_add(if self.sum > HASHES { crc } else { (crc >> 16) & 0x7fff });
            self.at(u64::from(sum) % self.sum)
        })
    }

    /// The peer whose range of the cumulated weights contains `target`.
    fn at(&self, target: u64) -> usize {
        if self.upto.is_empty() {
            return (target / self.each) as usize;
        }
        self.upto.partition_point(|&upto| upto <= target)
    }

    /// CRC-32 of the key; from the second try on, the count is put before it (as in Cache::Memcached).
    #[inline]
    fn hash(&self, rehash: usize, key: &[u8]) -> u32 {
        let mut hasher = self.crc.clone();
        if rehash > 0 {
            put_before(&mut hasher, rehash);
        }
        hasher.update(key);
        hasher.finalize()
    }
}

#[cold]
fn put_before(hasher: &mut Hasher, rehash: usize) {
    let mut digits = [0; DIGITS];
    let mut rest = &mut digits[..];
    // Twenty digits are enough for any count.
    let _ = write!(rest, "{rehash}");
    let len = DIGITS - rest.len();
    hasher.update(&digits[..len]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::golden::{KEYS, SETS, is_up};
    use super::*;

    fn weights(servers: &[(String, u32)]) -> Vec<u32> {
        servers.iter().map(|(_, weight)| *weight).collect()
    }

    #[test]
    fn keys_go_where_stock_nginx_sends_them() {
        for set in SETS {
            let servers = (set.servers)();
            let modulo = Modulo::new(weights(&servers).into_iter());
            for (k, expected) in set.plain.iter().enumerate() {
                let key = format!("key{k}");
                let seen = modulo.walk(key.as_bytes(), 0).next();
                assert_eq!(seen, Some(*expected), "{key} of {}", set.name);
            }
        }
    }

    #[test]
    fn keys_of_servers_that_are_down_go_where_stock_nginx_sends_them() {
        let mut seen = 0;
        for set in SETS {
            let servers = (set.servers)();
            let modulo = Modulo::new(weights(&servers).into_iter());
            for (k, expected) in set.plain_down.iter().enumerate() {
                let key = format!("key{k}");
                let mut walk = modulo.walk(key.as_bytes(), 0);
                // Else nginx too took to the round robin.
                if let Some(found) = walk.find(|&peer| is_up(peer, servers.len())) {
                    assert_eq!(found, *expected, "{key} of {}", set.name);
                    seen += 1;
                }
            }
        }
        assert!(seen > 3 * KEYS, "{seen} of {} keys were found a server", SETS.len() * KEYS);
    }

    #[test]
    fn an_empty_key_and_an_empty_set_are_for_the_round_robin() {
        assert_eq!(Modulo::new([1, 2].into_iter()).walk(b"", 0).next(), None);
        assert_eq!(Modulo::new([].into_iter()).walk(b"k", 0).next(), None);
    }

    #[test]
    fn tried_peers_do_not_use_up_the_looks() {
        let modulo = Modulo::new([1; 4].into_iter());
        assert_eq!(modulo.walk(b"k", 0).count(), 21);
        assert_eq!(modulo.walk(b"k", 3).count(), 24);
    }

    #[test]
    fn a_sum_of_weights_beyond_nginx_s_hash_leaves_no_peer_without_keys() {
        let modulo = Modulo::new([1000; 100].into_iter());
        let mut seen = vec![0; 100];
        for k in 0..100_000 {
            seen[modulo.walk(format!("k{k}").as_bytes(), 0).next().unwrap()] += 1;
        }
        let (least, most) = (seen.iter().min().unwrap(), seen.iter().max().unwrap());
        assert!(*least > 850 && *most < 1150, "1000 each, but {least} to {most}");
    }

    /// `ngx_http_upstream_get_hash_peer()`, said plainly; `None` is the round robin.
    fn nginx(weights: &[u32], key: &str, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let total: u32 = weights.iter().sum();
        let (mut hash, mut rehash, mut tries) = (0u32, 0, 0);
        loop {
            let text = if rehash > 0 { format!("{rehash}{key}") } else { key.to_owned() };
            hash += (crc32fast::hash(text.as_bytes()) >> 16) & 0x7fff;
            rehash += 1;
            let mut w = hash % total;
            let mut peer = 0;
            while w >= weights[peer] {
                w -= weights[peer];
                peer += 1;
            }
            if usable(peer) {
                return Some(peer);
            }
            tries += 1;
            if tries > 20 {
                return None;
            }
        }
    }

    proptest! {
        #[test]
        fn every_key_has_nginx_s_peer(
            weights in prop_oneof![
                prop::collection::vec(1u32..50, 2..40),
                (1u32..50, 2usize..40).prop_map(|(weight, n)| vec![weight; n]),
            ],
            key in "[a-z0-9]{1,12}",
            down in prop::collection::vec(any::<bool>(), 40),
        ) {
            let modulo = Modulo::new(weights.iter().copied());
            let found = modulo.walk(key.as_bytes(), 0).find(|&peer| !down[peer]);
            prop_assert_eq!(found, nginx(&weights, &key, |peer| !down[peer]));
        }
    }
}
