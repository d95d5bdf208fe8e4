//! The last changes of a set: who joined and who left.
//!
//! It lies at the end of the set's block, so it is whole whenever the set is, stays over reloads, and
//! goes with the entry. A publisher copies what the block before had, and adds its own.

use std::collections::HashMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::record::PeerRecord;
use super::words::pack;
use crate::model::PeerSet;

/// Changes that are kept.
const MAX_CHANGES: usize = 10;
/// Addresses of a change that are kept, of each kind.
const MAX_NAMED: usize = 8;
/// Bytes of a history. The model has none: it doesn't look at text, and blocks of one length are
/// what it needs.
const MAX_BYTES: usize = if cfg!(all(test, loom)) { 0 } else { 1024 };

/// A change of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Change"))]
#[serde(deny_unknown_fields)]
pub struct Changed {
    /// When, milliseconds since the epoch.
    pub time_ms: u64,
    /// The generation that it made.
    pub generation: u64,
    /// The first addresses of those who joined, in order.
    pub joined: Vec<String>,
    /// The first addresses of those who left, in order.
    pub left: Vec<String>,
    /// How many joined.
    pub joined_total: usize,
    /// How many left.
    pub left_total: usize,
    /// How many stayed with another address, weight or parameter.
    pub changed_total: usize,
}

/// As words of a block; none if there is nothing to keep. `changes` are newest first.
pub(super) fn encode(mut changes: Vec<Changed>) -> Vec<u64> {
    changes.truncate(MAX_CHANGES);
    while !changes.is_empty() {
        let bytes = postcard::to_stdvec(&changes).unwrap_or_default();
        if bytes.len() <= MAX_BYTES {
            return pack(&bytes);
        }
        changes.pop();
    }
    Vec::new()
}

/// Of the words after the details of a block; nothing of what is damaged.
pub(super) fn decode(words: impl Iterator<Item = u64>) -> Vec<Changed> {
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    postcard::from_bytes(&bytes).unwrap_or_default()
}

impl Changed {
    /// What `set`, of a new generation, changes of the peers before.
    pub(super) fn of(
        set: &PeerSet,
        before: &HashMap<u64, PeerRecord>,
        (generation, time_ms): (u64, u64),
    ) -> Changed {
        let (mut gone, mut changed_total) = (before.clone(), 0);
        let mut joined = Vec::new();
        for peer in set.peers() {
            match gone.remove(&peer.identity) {
                Some(held) => {
                    changed_total += usize::from(PeerRecord::new(peer, held.place) != held)
                }
                None => joined.push(peer.addr),
            }
        }
        let left: Vec<SocketAddr> = gone.values().map(PeerRecord::addr).collect();
        let (joined_total, left_total) = (joined.len(), left.len());
        let [joined, left] = [joined, left].map(|mut addresses| {
            addresses.sort_unstable();
            addresses.iter().take(MAX_NAMED).map(ToString::to_string).collect()
        });
        Changed { time_ms, generation, joined, left, joined_total, left_total, changed_total }
    }

    /// Whether anybody came, went or changed. What only the status shows doesn't count.
    pub(super) fn is_any(&self) -> bool {
        self.joined_total + self.left_total + self.changed_total > 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::Table;
    use super::super::tests::{peer, set, zone};
    use super::*;
    use crate::process::ProcessId;

    fn addr(port: u16) -> String {
        format!("127.0.0.1:{port}")
    }

    #[test]
    fn who_joined_and_left_is_kept_newest_first() {
        let (table, me) = (Table::create(zone(1 << 17), 16).unwrap(), ProcessId::own());
        table.lead(me);
        let e = table.claim(1, me).unwrap();
        table.publish((e, 1), &set(1..=2), 100, me).unwrap();
        table.publish((e, 1), &set(2..=3), 200, me).unwrap();
        table.publish((e, 1), &PeerSet::new(vec![peer(2, 1), peer(3, 9)]), 300, me).unwrap();
        let history = table.read(e, 1).unwrap().history();
        let totals = |c: &Changed| (c.time_ms, c.generation, c.joined_total, c.left_total);
        let seen: Vec<_> = history.iter().map(totals).collect();
        assert_eq!(seen, [(300, 3, 0, 0), (200, 2, 1, 1), (100, 1, 2, 0)]);
        assert_eq!(history[0].changed_total, 1);
        assert_eq!((&history[1].joined, &history[1].left), (&vec![addr(3)], &vec![addr(1)]));
        assert_eq!(history[2].joined, [addr(1), addr(2)]);
    }

    #[test]
    fn a_change_of_text_alone_is_none() {
        let (table, me) = (Table::create(zone(1 << 17), 16).unwrap(), ProcessId::own());
        table.lead(me);
        let e = table.claim(1, me).unwrap();
        table.publish((e, 1), &set(1..=1), 100, me).unwrap();
        let mut tagged = peer(1, 1);
        tagged.tags = vec!["other".into()];
        table.publish((e, 1), &PeerSet::new(vec![tagged]), 200, me).unwrap();
        let image = table.read(e, 1).unwrap();
        assert_eq!((image.generation, image.history().len()), (2, 1));
        assert_eq!(image.details()[0].tags, ["other"]);
    }

    #[test]
    fn details_are_the_same_one_at_a_time() {
        let (table, me) = (Table::create(zone(1 << 17), 16).unwrap(), ProcessId::own());
        let e = table.claim(1, me).unwrap();
        table.publish((e, 1), &set(1..=5), 100, me).unwrap();
        let image = table.read(e, 1).unwrap();
        let mut at = 0;
        let taken: Vec<_> = std::iter::from_fn(|| image.next_detail(&mut at)).collect();
        assert_eq!((taken.len(), taken), (5, image.details()));
    }

    #[test]
    fn it_stays_short_however_much_changes() {
        let (table, me) = (Table::create(zone(1 << 17), 16).unwrap(), ProcessId::own());
        table.lead(me);
        let e = table.claim(1, me).unwrap();
        for round in 0..30u16 {
            let first = 1 + round % 2 * 100;
            table.publish((e, 1), &set(first..first + 60), u64::from(round), me).unwrap();
        }
        let history = table.read(e, 1).unwrap().history();
        assert!((2..=MAX_CHANGES).contains(&history.len()), "{}", history.len());
        assert_eq!(history[0].time_ms, 29);
        assert!(history.iter().all(|c| c.joined.len() == MAX_NAMED && c.joined_total == 60));
        assert!(encode(history).len() * 8 <= MAX_BYTES + 16);
    }

    #[test]
    fn a_zone_without_room_for_it_still_takes_the_set() {
        let me = ProcessId::own();
        // The largest set that fits twice, found from above.
        let table = Table::create(zone(4096), 16).unwrap();
        table.lead(me);
        let e = table.claim(1, me).unwrap();
        let fits = (1..200u16).rev().find(|&n| table.publish((e, 1), &set(1..=n), 1, me).is_ok());
        assert!(fits.is_some_and(|n| n > 5), "{fits:?}");
        assert_eq!(table.read(e, 1).unwrap().records.len(), usize::from(fits.unwrap()));
    }

    #[test]
    fn damaged_words_are_no_history() {
        let decode = |words: &[u64]| decode(words.iter().copied());
        assert_eq!(decode(&[]), []);
        assert_eq!(decode(&[u64::MAX, 7]), []);
        let words = encode(vec![Changed {
            time_ms: 1,
            generation: 2,
            joined: vec![addr(1)],
            left: Vec::new(),
            joined_total: 1,
            left_total: 0,
            changed_total: 0,
        }]);
        assert_eq!(decode(&words).len(), 1);
        let mut damaged = words.clone();
        damaged[1] = u64::MAX;
        assert_eq!(decode(&damaged), []);
        assert_eq!(decode(&words[..2]), []);
    }
}
