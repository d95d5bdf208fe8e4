//! Which requests may try a peer that has failed.
//!
//! A dead service holds the connections of every request that tries it until a timeout of nginx's
//! ends it, and a worker has connections for all its services together. So once nothing but a
//! success can tell that a peer is back, few requests at a time try it.

use rand::RngCore;

use super::super::super::search;
use super::super::Tier;
use super::{InTier, PickContext, Picked};
use crate::table::{Outage, PROBE_PACE, Permit, WorkerShard};

/// How long every request may try a block's only peer after it has failed, milliseconds: the next
/// success ends its failure.
const SINGLE_GRACE: u64 = 1000;
/// So many peers are looked at in a millisecond by requests that find none to probe.
const LOOKS_PER_MS: u64 = 512;

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

    /// A peer that is out, when there is no other.
    ///
    /// Once it is known that they are all dead, each is probed by one request at a time, once a
    /// second. Before that, some more may try them: marks alone don't tell.
    pub(super) fn last_resort<R: RngCore>(
        &self,
        shared: &Shared<'z>,
        rng: &mut R,
    ) -> Option<Admitted<'a, 'z>> {
        if self.panic || self.is_refused() {
            return None;
        }
        let grace = shared.outage.filter(|outage| !outage.is_confirmed());
        let admitted =
            self.view.tiers.iter().find_map(|tier| self.try_out(tier, grace, shared.shard, rng));
        if admitted.is_none() && grace.is_none() {
            self.note_refused();
        }
        admitted
    }

    fn try_out<R: RngCore>(
        &self,
        tier: &'a Tier,
        grace: Option<Outage<'z>>,
        shard: Option<WorkerShard>,
        rng: &mut R,
    ) -> Option<Admitted<'a, 'z>> {
        let now = self.now.monotonic;
        let (mut permit, mut no_grace_left) = (None, false);
        let picked = search(&InTier { all: self, tier }, rng, |Picked { info, counters }| {
            let limits = info.limits();
            if no_grace_left || !counters.is_marked(limits.max_fails) {
                return false;
            }
            permit = match grace {
                Some(outage) => outage.take_permit(shard, now, limits.fail_timeout),
                None => counters.probe((info.identity, shard), limits, now, PROBE_PACE),
            };
            no_grace_left = grace.is_some() && permit.is_none();
            permit.is_some()
        })?;
        Some(Admitted { picked, permit })
    }

    /// Whether a request looked in vain a moment ago, and nobody has recovered since.
    fn is_refused(&self) -> bool {
        let refused = &self.view.refused;
        self.now.monotonic < refused.until.get()
            && self.table.recoveries() == refused.recoveries.get()
    }

    /// After a look at every peer, so that looks take a small part of a worker's time, however many
    /// peers there are.
    fn note_refused(&self) {
        if self.tried.count() == 0 {
            let pause = self.view.records.len() as u64 / LOOKS_PER_MS;
            self.view.refused.until.set(self.now.monotonic + pause);
            self.view.refused.recoveries.set(self.table.recoveries());
        }
    }
}
