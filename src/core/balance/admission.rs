//! Which requests may try a peer that has failed.
//!
//! A request to a dead peer holds a connection until one of nginx's timeouts ends it, and all
//! services share the connections of a worker. So only few requests at a time try a failed peer.

use rand::RngCore;

use super::candidates::{Peers, search};
use super::context::{PickContext, Picked};
use crate::table::{Outage, PROBE_PACE, Permit, WorkerShard};

/// How long every request may still try an upstream's only peer after it has failed, milliseconds.
const SINGLE_GRACE: u64 = 1000;

/// Peers that requests without success look at per millisecond, at most.
const LOOKS_PER_MS: u64 = 512;

/// The outage that the requests of all workers share, and the shard of this worker.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'z> {
    /// Of the upstream's first set; `None` if the set has no entry in the table.
    pub outage: Option<Outage<'z>>,
    /// The worker's shard, if it has one.
    pub shard: Option<WorkerShard>,
}

/// Whether a request may try a peer.
#[derive(Debug)]
pub enum Admission<'z> {
    /// Without conditions.
    Free,
    /// While it holds the permit.
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
    /// The caller ends it when the response header has come or the attempt is over.
    pub permit: Option<Permit<'z>>,
}

impl<'a, 'z> PickContext<'a, 'z> {
    /// Whether the request may try a peer of the view that another balancer has picked.
    #[inline]
    pub fn admit_picked(
        &self,
        picked: Picked<'a, 'z>,
        shared: impl Fn() -> Shared<'z>,
    ) -> Admission<'z> {
        if picked.info.plain && !picked.counters.has_fails() {
            return Admission::Free;
        }
        self.admit_restricted(picked, &shared())
    }

    #[inline(never)]
    fn admit_restricted(&self, picked: Picked<'a, 'z>, shared: &Shared<'z>) -> Admission<'z> {
        let usable = self.is_usable(picked.info.number as usize);
        if usable { self.admit(picked, shared) } else { Admission::Refused }
    }

    /// Whether the request may try a peer that [`is_out`](PickContext::is_out) doesn't exclude.
    ///
    /// If its `fail_timeout` has passed, or `consul_panic` ignores its failures, one request at a time
    /// probes it. An upstream's only peer is never excluded, but few requests at a time try it while
    /// it only fails.
    pub fn admit(&self, peer: Picked<'a, 'z>, shared: &Shared<'z>) -> Admission<'z> {
        if self.is_single() {
            return self.admit_to_single(peer, shared);
        }
        let Picked { info, counters } = peer;
        let limits = info.limits();
        if !counters.is_marked(limits) {
            return Admission::Free;
        }
        let prober = (info.owner, shared.shard);
        match counters.probe(prober, limits, self.now, self.probe_pace()) {
            Some(permit) => Admission::With(permit),
            None => Admission::Refused,
        }
    }

    fn admit_to_single(&self, peer: Picked<'a, 'z>, shared: &Shared<'z>) -> Admission<'z> {
        let (limits, now) = (peer.info.limits(), self.now);
        let Some(failing) = peer.counters.failing_for(limits, now) else { return Admission::Free };
        let Some(outage) = shared.outage.filter(|_| limits.max_fails != 0) else {
            return Admission::Free;
        };
        match outage.take_permit(shared.shard, now, limits.fail_timeout) {
            Some(permit) => Admission::With(permit),
            None if failing < SINGLE_GRACE => Admission::Free,
            None => Admission::Refused,
        }
    }

    /// A peer that failures exclude, with a permit: of the outage during its `grace`, else to probe the
    /// peer.
    pub(super) fn try_out<P: Peers<Peer = Picked<'a, 'z>>, R: RngCore>(
        &self,
        peers: &P,
        grace: Option<Outage<'z>>,
        shard: Option<WorkerShard>,
        rng: &mut R,
    ) -> Option<Admitted<'a, 'z>> {
        let now = self.now;
        let (mut permit, mut no_grace_left) = (None, false);
        let picked = search(peers, rng, |Picked { info, counters }| {
            let limits = info.limits();
            if no_grace_left || !counters.is_marked(limits) {
                return false;
            }
            permit = match grace {
                Some(outage) => outage.take_permit(shard, now, limits.fail_timeout),
                None => counters.probe((info.owner, shard), limits, now, PROBE_PACE),
            };
            no_grace_left = grace.is_some() && permit.is_none();
            permit.is_some()
        })?;
        Some(Admitted { picked, permit })
    }

    /// Whether a request found no peer to probe a moment ago, and none has recovered since.
    pub(super) fn has_none_to_probe(&self) -> bool {
        let none_to_probe = &self.view.none_to_probe;
        self.now < none_to_probe.until.get()
            && self.table.recoveries() == none_to_probe.recoveries.get()
    }

    /// Notes that a look at every peer found none to probe. The pause keeps such looks to a small part
    /// of a worker's time, however many peers there are.
    pub(super) fn note_none_to_probe(&self) {
        if self.tried.count() == 0 {
            let pause = self.view.records.len() as u64 / LOOKS_PER_MS;
            self.view.none_to_probe.until.set(self.now + pause);
            self.view.none_to_probe.recoveries.set(self.table.recoveries());
        }
    }
}
