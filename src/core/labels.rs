//! Labels of the peers of a set (names, tags and metadata), for variables.

use std::cell::OnceCell;

use crate::table::{PeerMetadata, PeerSnapshot};

/// The labels of a set's peers, each decoded when it is first used.
#[derive(Debug)]
pub struct LabelSet {
    /// A line of JSON for each peer, in the order of the table.
    lines: Vec<u8>,
    /// Of each peer, in the order of a view, where those with `backup` are last.
    labels: Vec<Label>,
}

#[derive(Debug)]
struct Label {
    /// Where its line begins.
    at: u32,
    metadata: OnceCell<Option<Box<PeerMetadata>>>,
}

impl LabelSet {
    /// Takes the metadata out of a snapshot; `None` if it was read without.
    pub fn take(snapshot: &mut PeerSnapshot) -> Option<LabelSet> {
        let lines = snapshot.take_metadata()?;
        let ends = lines.iter().zip(1..).filter(|(byte, _)| **byte == b'\n').map(|(_, end)| end);
        let starts = std::iter::once(0).chain(ends).zip(&snapshot.records);
        let mut labels: Vec<(bool, Label)> = starts
            .map(|(at, record)| (record.is_backup(), Label { at, metadata: OnceCell::new() }))
            .collect();
        // The order of a view.
        labels.sort_by_key(|(is_backup, _)| *is_backup);
        Some(LabelSet { lines, labels: labels.into_iter().map(|(_, label)| label).collect() })
    }

    /// The labels of a peer, by its number within the set in the order of a view; `None` if they
    /// can't be read. The texts are untrusted: whoever registers an instance chooses them.
    pub fn get(&self, peer: usize) -> Option<&PeerMetadata> {
        let Label { at, metadata } = self.labels.get(peer)?;
        let line = self.lines.get(*at as usize..)?.split(|byte| *byte == b'\n').next()?;
        metadata.get_or_init(|| PeerMetadata::decode(line).map(Box::new)).as_deref()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::clock::Clock;
    use crate::model::{Meta, Peer, PeerSet};
    use crate::params::Params;
    use crate::process::ProcessId;
    use crate::table::Table;
    use crate::table::testing::peer;

    /// The set as a worker reads it.
    fn snapshot(peers: Vec<Peer>) -> PeerSnapshot {
        let words: &[AtomicU64] = Vec::leak((0..1 << 17).map(|_| AtomicU64::new(0)).collect());
        let (table, me) = (Table::create(words, 16).unwrap(), ProcessId::own());
        table.acquire_leadership(me);
        let entry = table.claim(1, me).unwrap();
        table.publish((entry, 1), &PeerSet::new(peers), Clock::at(1), me).unwrap();
        table.read(entry, 1).unwrap()
    }

    #[test]
    fn each_peer_has_its_own_labels() {
        let meta = Meta::from([("group".to_owned(), "blue".to_owned())]);
        let tagged = Peer { tags: vec!["a".into(), "b c".into()], meta, ..peer(2, 1) };
        let set = LabelSet::take(&mut snapshot(vec![peer(1, 1), tagged, peer(3, 1)])).unwrap();
        let id = |n| set.get(n).map(|labels| labels.id.as_str());
        assert_eq!(
            (id(2), id(0), id(1), id(3)),
            (Some("web-3"), Some("web-1"), Some("web-2"), None)
        );
        let labels = set.get(1).unwrap();
        assert_eq!((&*labels.node, &*labels.datacenter), ("n1", "dc1"));
        assert_eq!((&*labels.tags.join(","), &*labels.meta["group"]), ("a,b c", "blue"));
    }

    #[test]
    fn backups_come_last_as_in_a_view() {
        let backup = Params { backup: true, ..Params::default() };
        let peers = vec![Peer { params: backup, ..peer(1, 1) }, peer(2, 1), peer(3, 1)];
        let mut snapshot = snapshot(peers);
        let set = LabelSet::take(&mut snapshot).unwrap();
        snapshot.records.sort_by_key(crate::table::PeerRecord::is_backup);
        for (n, record) in snapshot.records.iter().enumerate() {
            let id = format!("web-{}", record.addr().port());
            assert_eq!(set.get(n).unwrap().id, id);
        }
    }

    #[test]
    fn an_empty_set_and_one_read_without_metadata_have_none() {
        assert!(LabelSet::take(&mut snapshot(Vec::new())).unwrap().get(0).is_none());
        assert!(LabelSet::take(&mut PeerSnapshot::default()).is_none());
    }
}
