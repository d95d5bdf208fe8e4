//! Which requests may try a peer that has failed.
//!
//! A dead service holds the connections of every request that tries it until a timeout of nginx's
//! ends it, and a worker has connections for all its services together. So once nothing but a
//! success can tell that a peer is back, few requests at a time try it.

use super::context::{PickContext, Picked};
use crate::table::{Outage, Permit, WorkerShard};

/// How long every request may try a block's only peer after it has failed, milliseconds: the next
/// success ends its failure.
const SINGLE_GRACE: u64 = 1000;

/// What the requests of all workers share, and which of them this one is of.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'z> {
    /// Of the block's first set; `None` if the table has lost it.
    pub outage: Option<Outage<'z>>,
    /// The worker's.
    pub shard: Option<WorkerShard>,
}

/// Whether a request may try a peer.
#[derive(Debug)]
pub enum Admission<'z> {
    /// As any other request.
    Free,
    /// As long as it holds the permit.
    With(Permit<'z>),
    /// Not now.
    Refused,
}

/// A peer that a request may try.
#[derive(Debug)]
#[must_use]
pub struct Admitted<'a, 'z> {
    /// The peer.
    pub picked: Picked<'a, 'z>,
    /// To be ended when the response header has come, or the attempt is over.
    pub permit: Option<Permit<'z>>,
}

impl<'a, 'z> PickContext<'a, 'z> {
    /// Whether the request may try a peer that is not out.
    ///
    /// One whose `fail_timeout` is over is probed by one request; so is one that a panic lets in. A
    /// block's only peer is never out, but has few requests waiting while all it does is fail.
    pub fn admit(&self, peer: Picked<'a, 'z>, shared: &Shared<'z>) -> Admission<'z> {
        if self.is_single() {
            return self.admit_to_single(peer, shared);
        }
        let Picked { info, counters } = peer;
        let limits = info.limits();
        if !counters.is_marked(limits.max_fails) {
            return Admission::Free;
        }
        let prober = (info.identity, shared.shard);
        match counters.probe(prober, limits, self.now.monotonic, self.probe_pace()) {
            Some(permit) => Admission::With(permit),
            None => Admission::Refused,
        }
    }

    fn admit_to_single(&self, peer: Picked<'a, 'z>, shared: &Shared<'z>) -> Admission<'z> {
        let (limits, now) = (peer.info.limits(), self.now.monotonic);
        let Some(failing) = peer.counters.failing_for(now) else { return Admission::Free };
        let Some(outage) = shared.outage.filter(|_| limits.max_fails != 0) else {
            return Admission::Free;
        };
        match outage.take_permit(shared.shard, now, limits.fail_timeout) {
            Some(permit) => Admission::With(permit),
            None if failing < SINGLE_GRACE => Admission::Free,
            None => Admission::Refused,
        }
    }
}
