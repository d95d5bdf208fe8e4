//! The JSON of a state file.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Damage, State, distinct};
use crate::model::{Peer, PeerSet, identity};
use crate::text::printable;

pub(super) fn read(content: &[u8]) -> Result<State, Damage> {
    let state: State = serde_json::from_slice(content)
        .map_err(|error| Damage::Content(printable(&error.to_string()).into_owned()))?;
    let mut keys = HashSet::from([0]);
    if let Some(bad) = state.targets.iter().find(|saved| !keys.insert(saved.key)) {
        let name = bad.service.escape_debug();
        return Err(Damage::Content(format!("service \"{name}\": its key is not its own")));
    }
    if state.overrides.iter().any(|held| !held.is_valid()) {
        return Err(Damage::Content("an override is none".to_owned()));
    }
    Ok(state)
}

#[derive(Serialize, Deserialize)]
struct Saved<'a> {
    #[serde(flatten)]
    peer: Cow<'a, Peer>,
    /// Its identity has its address in it: it is one of several of a host name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    one_of_several: bool,
}

/// Writes the peers of a set, without their identities: another build may compute others.
pub(super) fn serialize<S: Serializer>(set: &PeerSet, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(set.peers().iter().map(|peer| Saved {
        peer: Cow::Borrowed(peer),
        one_of_several: peer.identity != identity(&peer.node, &peer.id, None),
    }))
}

pub(super) fn deserialize<'d, D: Deserializer<'d>>(deserializer: D) -> Result<PeerSet, D::Error> {
    let peers = Vec::<Saved<'_>>::deserialize(deserializer)?.into_iter().map(|saved| {
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
