//! What variables tell of the instances of a set: names, tags and metadata, ready to be used.

use std::cell::OnceCell;

use crate::table::{Detail, Image, Record};
use crate::text::printable;

/// The labels of a set's peers, read when somebody first asks for one.
#[derive(Debug)]
pub struct LabelSet {
    /// A line of JSON for each peer, in the order of the table.
    lines: Vec<u8>,
    /// Where each peer, in the order of a view, has its line: those with `backup` are last there.
    /// Empty if the order is the same.
    order: Vec<u32>,
    read: OnceCell<Read>,
}

/// The lines, found.
#[derive(Debug)]
struct Read {
    /// Where each line begins, and where the last one ends.
    starts: Vec<u32>,
    labels: Box<[OnceCell<Option<Box<Labels>>>]>,
}

/// What variables tell of one instance.
///
/// Whoever registers an instance chooses these texts, and they go into headers: control characters
/// are written out, as in [`printable`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Name of the node.
    pub node: String,
    /// Service id.
    pub service_id: String,
    /// Datacenter, empty if not known.
    pub datacenter: String,
    /// Tags, joined by commas.
    pub tags: String,
    /// What is kept of `Service.Meta`, by the variables' names, sorted.
    meta: Vec<(String, String)>,
}

impl LabelSet {
    /// Takes the details of a copy of a set; `None` if it was read without.
    pub fn take(image: &mut Image) -> Option<LabelSet> {
        let lines = image.take_details()?;
        let mut order = Vec::new();
        if image.records.iter().any(Record::is_backup) {
            order.extend(0..image.records.len() as u32);
            // As a view sorts them.
            order.sort_by_key(|&at| image.records[at as usize].is_backup());
        }
        Some(LabelSet { lines, order, read: OnceCell::new() })
    }

    /// The labels of a peer, by its number within the set in the order of a view; `None` if they
    /// can't be read.
    pub fn get(&self, peer: usize) -> Option<&Labels> {
        let line = match self.order.is_empty() {
            true => peer,
            false => *self.order.get(peer)? as usize,
        };
        let read = self.read.get_or_init(|| Read::new(&self.lines));
        let range = *read.starts.get(line)? as usize..*read.starts.get(line + 1)? as usize;
        let labels = || Detail::decode(&self.lines[range]).map(|detail| Box::new(detail.into()));
        read.labels.get(line)?.get_or_init(labels).as_deref()
    }
}

impl Read {
    fn new(lines: &[u8]) -> Read {
        let ends = lines.iter().zip(1..).filter(|(byte, _)| **byte == b'\n').map(|(_, end)| end);
        let starts: Vec<u32> = std::iter::once(0).chain(ends).collect();
        let labels = starts.iter().skip(1).map(|_| OnceCell::new()).collect();
        Read { starts, labels }
    }
}

impl Labels {
    /// What is kept of `Service.Meta` for the variable of this name.
    pub fn meta(&self, name: &[u8]) -> Option<&str> {
        let pair = self.meta.iter().find(|(key, _)| key.as_bytes() == name)?;
        Some(&pair.1)
    }
}

impl From<Detail> for Labels {
    fn from(detail: Detail) -> Labels {
        let shown = |text: &str| printable(text).into_owned();
        Labels {
            node: shown(&detail.node),
            service_id: shown(&detail.id),
            datacenter: shown(&detail.datacenter),
            tags: shown(&detail.tags.join(",")),
            meta: detail.meta.into_iter().map(|(name, value)| (name, shown(&value))).collect(),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::model::{Meta, Peer, PeerSet};
    use crate::params::Params;
    use crate::process::ProcessId;
    use crate::table::Table;
    use crate::table::tests::peer;

    /// The set as a worker reads it.
    fn image(peers: Vec<Peer>) -> Image {
        let words: &[AtomicU64] = Vec::leak((0..1 << 17).map(|_| AtomicU64::new(0)).collect());
        let (table, me) = (Table::create(words, 16).unwrap(), ProcessId::own());
        table.lead(me);
        let entry = table.claim(1, me).unwrap();
        table.publish((entry, 1), &PeerSet::new(peers), 1, me).unwrap();
        table.read(entry, 1).unwrap()
    }

    #[test]
    fn each_peer_has_its_own_labels() {
        let meta = Meta::from([("group".to_owned(), "blue".to_owned())]);
        let tagged = Peer { tags: vec!["a".into(), "b c".into()], meta, ..peer(2, 1) };
        let set = LabelSet::take(&mut image(vec![peer(1, 1), tagged, peer(3, 1)])).unwrap();
        let id = |n| set.get(n).map(|labels| labels.service_id.as_str());
        assert_eq!(
            (id(2), id(0), id(1), id(3)),
            (Some("web-3"), Some("web-1"), Some("web-2"), None)
        );
        let labels = set.get(1).unwrap();
        assert_eq!((&*labels.node, &*labels.datacenter, &*labels.tags), ("n1", "dc1", "a,b c"));
        assert_eq!((labels.meta(b"group"), labels.meta(b"other")), (Some("blue"), None));
    }

    #[test]
    fn backups_come_last_as_in_a_view() {
        let backup = Params { backup: true, ..Params::default() };
        let peers = vec![Peer { params: backup, ..peer(1, 1) }, peer(2, 1), peer(3, 1)];
        let mut image = image(peers);
        let set = LabelSet::take(&mut image).unwrap();
        image.records.sort_by_key(Record::is_backup);
        for (n, record) in image.records.iter().enumerate() {
            let id = format!("web-{}", record.addr().port());
            assert_eq!(set.get(n).unwrap().service_id, id);
        }
    }

    #[test]
    fn what_others_wrote_is_one_line_of_printable_text() {
        let hostile = "x\r\nSet-Cookie: a=b\u{1b}[31m\0".to_owned();
        let meta = Meta::from([("v".to_owned(), hostile.clone())]);
        let tags = vec![hostile.clone(), "\n".to_owned()];
        let peers = vec![Peer { id: hostile.clone(), node: hostile, tags, meta, ..peer(1, 1) }];
        let set = LabelSet::take(&mut image(peers)).unwrap();
        let labels = set.get(0).unwrap();
        let all = [&labels.node, &labels.service_id, &labels.tags, labels.meta(b"v").unwrap()];
        for text in all {
            assert!(
                text.starts_with(r"x\r\nSet-Cookie") && !text.contains(char::is_control),
                "{text}"
            );
        }
    }

    #[test]
    fn an_empty_set_has_none_and_one_read_without_details_neither() {
        assert!(LabelSet::take(&mut image(Vec::new())).unwrap().get(0).is_none());
        assert!(LabelSet::take(&mut Image::default()).is_none());
    }
}
