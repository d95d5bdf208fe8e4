//! What nginx's peers of a new snapshot take over from those of the one before.

use std::collections::HashMap;

use nginx_consul_core::balance::{Pair, pairs};
use nginx_sys::ngx_http_upstream_rr_peer_t;

use super::snapshot::{Key, Snapshot};

/// Requests in flight to instances that the present set lacks.
pub(super) type Departed = HashMap<Key, usize>;

/// Has the peers of `new` go on where those of `old` are. From then on the numbers of requests in
/// flight are right in `new`; requests that hold older peers are subtracted when they end.
pub(super) fn carry_over(old: Option<&Snapshot>, new: Option<&Snapshot>, departed: &mut Departed) {
    let peers = |snapshot: Option<&Snapshot>| -> Vec<_> {
        snapshot.into_iter().flat_map(Snapshot::peers).collect()
    };
    let (old, new) = (peers(old), peers(new));
    pairs(
        &old,
        &new,
        |(key, _)| *key,
        |pair| match pair {
            Pair::Both { old: i, new: j } => {
                if let (Some((_, before)), Some((_, peer))) = (old.get(i), new.get(j)) {
                    // SAFETY: peers of two snapshots, which nobody else uses in this moment.
                    unsafe { go_on(&mut *peer.as_ptr(), before.as_ref()) };
                }
            }
            Pair::Come(j) => {
                if let Some((key, peer)) = new.get(j) {
                    let conns = departed.remove(key).unwrap_or(0);
                    // SAFETY: as above.
                    unsafe { (*peer.as_ptr()).conns = conns };
                }
            }
            Pair::Gone(i) => {
                if let Some((key, peer)) = old.get(i) {
                    // SAFETY: as above.
                    departed.insert(*key, unsafe { peer.as_ref() }.conns);
                }
            }
        },
    );
    departed.retain(|_, conns| *conns != 0);
}

fn go_on(peer: &mut ngx_http_upstream_rr_peer_t, before: &ngx_http_upstream_rr_peer_t) {
    peer.conns = before.conns;
    if peer.weight == before.weight {
        peer.current_weight = before.current_weight;
    }
}
