//! What the failures of a block's instances mean to its requests.

use nginx_consul_core::balance::{PickContext, Shared};
use nginx_consul_core::table::Outage;

use super::super::worker::Worker;
use super::Upstream;

impl Upstream {
    /// What the requests to its instances share while these have failed.
    #[cold]
    pub(in super::super) fn outage(&self, worker: Worker) -> Option<Outage<'static>> {
        let entry = self.sources.iter().find_map(|source| source.present(worker.table))?;
        Some(worker.table.outage(entry))
    }

    #[cold]
    pub(in super::super) fn shared(&self, worker: Worker) -> Shared<'static> {
        Shared { outage: self.outage(worker), shard: worker.shard() }
    }

    /// Whether it has one peer and nobody else to ask, so that no failure keeps that one out.
    pub(crate) fn is_single(&self) -> bool {
        let view = self.view.borrow();
        !self.has_fallback() && view.as_ref().is_some_and(|view| view.len() == 1)
    }

    /// Whether so many peers have failed that failures are not to count. Looked at once a second,
    /// because that takes a look at each peer.
    pub(super) fn is_in_panic(&self, candidates: &PickContext<'_, '_>) -> bool {
        let Some(percent) = self.options.panic else { return false };
        if self.counted.is_due() {
            self.in_panic.set(candidates.healthy_percent() < usize::from(percent));
        }
        self.in_panic.get()
    }
}
