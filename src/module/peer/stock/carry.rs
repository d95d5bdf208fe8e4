//! What nginx's peers know is carried over when they are made anew, instance by instance.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use nginx_sys::{ngx_http_upstream_rr_peer_t, ngx_int_t};

use super::snapshot::Snapshot;

/// Identity of an instance, and which of the block's sets it is from: nodes of several datacenters
/// can have the same names.
pub(super) type Key = (u64, usize);

/// Requests in flight to instances that the present set lacks.
type Gone = HashMap<Key, usize>;

/// Makes the peers of `new` go on where those of `old` are. From then on the numbers of requests in
/// flight are right in `new`; requests that hold older peers tell when they end ([`note_end`]).
pub(super) fn over(old: Option<&Snapshot>, new: Option<&Snapshot>, gone: &mut Gone) {
    let mut kept = vec![false; old.map_or(0, |old| old.view().len())];
    let mut next = 0;
    for number in 0..new.map_or(0, |new| new.view().len()) {
        let Some((new, peer)) = new.and_then(|new| Some((new, new.peer(number)?))) else {
            continue;
        };
        let key = new.key(number);
        // SAFETY: peers of the two snapshots, which nobody else uses in this moment.
        let peer = unsafe { &mut *peer.as_ptr() };
        // Most instances of a changed set follow the same one as before.
        let place = old.and_then(|old| {
            let is_next = next < kept.len() && old.key(next) == key;
            if is_next { Some(next) } else { old.number_of(key) }
        });
        let before = old.zip(place).and_then(|(old, place)| old.peer(place));
        if let (Some(place), Some(before)) = (place, before) {
            next = place + 1;
            kept[place] = true;
            // SAFETY: as above.
            go_on(peer, unsafe { &mut *before.as_ptr() });
        } else if let Some(conns) = gone.remove(&key) {
            peer.conns = conns;
        }
    }
    let left = kept.iter().enumerate().filter(|(_, kept)| !**kept);
    for (old, number) in old.into_iter().flat_map(|old| left.clone().map(move |(n, _)| (old, n))) {
        // SAFETY: as above.
        let conns = old.peer(number).map_or(0, |peer| unsafe { (*peer.as_ptr()).conns });
        if conns != 0 {
            gone.insert(old.key(number), conns);
        }
    }
}

/// A request to a peer of an older snapshot has ended.
pub(super) fn note_end(current: Option<&Snapshot>, key: Key, gone: &mut Gone) {
    let peer = current.and_then(|current| current.peer(current.number_of(key)?));
    if let Some(peer) = peer {
        // SAFETY: a peer of the present snapshot; nobody else uses it in this moment.
        let conns = unsafe { &mut (*peer.as_ptr()).conns };
        *conns = conns.saturating_sub(1);
    } else if let Entry::Occupied(mut conns) = gone.entry(key) {
        *conns.get_mut() -= 1;
        if *conns.get() == 0 {
            conns.remove();
        }
    }
}

fn go_on(peer: &mut ngx_http_upstream_rr_peer_t, before: &mut ngx_http_upstream_rr_peer_t) {
    peer.conns = before.conns;
    peer.fails = before.fails;
    peer.accessed = before.accessed;
    peer.checked = before.checked;
    peer.current_weight = scaled(before.current_weight, before.weight, peer.weight);
    let effective = scaled(before.effective_weight, before.weight, peer.weight);
    peer.effective_weight = effective.clamp(0, peer.weight);
    #[cfg(nginx_ssl)]
    {
        peer.ssl_session = std::mem::replace(&mut before.ssl_session, std::ptr::null_mut());
    }
}

fn scaled(value: ngx_int_t, from: ngx_int_t, to: ngx_int_t) -> ngx_int_t {
    if from == to || from == 0 {
        return value;
    }
    (value as i128 * to as i128 / from as i128) as ngx_int_t
}
