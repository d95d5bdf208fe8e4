//! Peers as a state file has them.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{Peer, PeerSet, identity};

#[derive(Serialize, Deserialize)]
struct SavedPeer<'a> {
    #[serde(flatten)]
    peer: Cow<'a, Peer>,
    /// Its host name has several addresses, so its identity contains the address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    one_of_several: bool,
}

/// Writes the peers of a set, without their identities: another build may compute others.
pub(super) fn serialize<S: Serializer>(set: &PeerSet, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(set.peers().iter().map(|peer| SavedPeer {
        peer: Cow::Borrowed(peer),
        one_of_several: peer.identity != identity(&peer.node, &peer.id, None),
    }))
}

pub(super) fn deserialize<'d, D: Deserializer<'d>>(deserializer: D) -> Result<PeerSet, D::Error> {
    let peers = Vec::<SavedPeer<'_>>::deserialize(deserializer)?.into_iter().map(|saved| {
        let mut peer = saved.peer.into_owned();
        if peer.addr.port() == 0 {
            return Err(D::Error::custom(format_args!("the address {} has no port", peer.addr)));
        }
        let address = saved.one_of_several.then_some(peer.addr);
        peer.identity = identity(&peer.node, &peer.id, address);
        Ok(peer)
    });
    Ok(distinct(peers.collect::<Result<_, _>>()?))
}

/// A set without the peers whose identity an earlier one has.
pub(super) fn distinct(peers: Vec<Peer>) -> PeerSet {
    let mut seen = HashSet::with_capacity(peers.len());
    PeerSet::new(peers.into_iter().filter(|peer| seen.insert(peer.identity)).collect())
}
