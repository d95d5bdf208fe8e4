//! Zones and sets for tests.

use std::num::NonZeroU16;

use super::platform::atomic::AtomicU64;
use crate::model::{Health, Meta, Peer, PeerSet, identity};
use crate::params::Params;

pub(crate) fn zone(words: usize) -> &'static [AtomicU64] {
    Vec::leak((0..words).map(|_| AtomicU64::new(0)).collect())
}

pub(crate) fn peer(port: u16, weight: u16) -> Peer {
    let id = format!("web-{port}");
    Peer {
        addr: ([127, 0, 0, 1], port).into(),
        weight: NonZeroU16::new(weight).unwrap(),
        identity: identity("n1", &id, None),
        node: "n1".into(),
        id,
        tags: vec!["v1".into()],
        health: Health::Passing,
        datacenter: "dc1".into(),
        params: Params::default(),
        meta: Meta::new(),
    }
}

pub(crate) fn set(ports: impl IntoIterator<Item = u16>) -> PeerSet {
    PeerSet::new(ports.into_iter().map(|p| peer(p, 1)).collect())
}
