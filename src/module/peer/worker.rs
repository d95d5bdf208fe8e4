//! What this worker has of the shared memory.

use std::cell::Cell;
use std::ops::Deref;

use nginx_consul_core::process::ProcessId;
use nginx_consul_core::table::{Table, WorkerShard};

use super::clock::Interval;

/// What this worker has of the shared memory. A handle, because requests copy it.
#[derive(Clone, Copy)]
pub(crate) struct Worker(&'static Share);

pub(crate) struct Share {
    pub(crate) table: Table<'static>,
    /// `None` if other workers hold all shards: this one's requests are then not counted as in
    /// flight.
    shard: Cell<Option<WorkerShard>>,
    /// When a shard was last asked for.
    asked: Interval,
}

impl Worker {
    /// For as long as the process runs: made once. It has a shard if one is free.
    pub(crate) fn new(table: Table<'static>) -> Worker {
        let shard = Cell::new(table.claim_shard(ProcessId::own()));
        Worker(Box::leak(Box::new(Share { table, shard, asked: Interval::default() })))
    }

    pub(super) fn share(self) -> &'static Share {
        self.0
    }

    /// Where its requests and idle connections are counted; a worker that has no shard asks for one
    /// again, once a second at most.
    #[inline]
    pub(crate) fn shard(self) -> Option<WorkerShard> {
        let shard = self.0.shard.get();
        if shard.is_some() { shard } else { self.claim_shard() }
    }

    #[cold]
    fn claim_shard(self) -> Option<WorkerShard> {
        if self.0.asked.is_due() {
            self.0.shard.set(self.table.claim_shard(ProcessId::own()));
        }
        self.0.shard.get()
    }

    /// The worker ends: what it has counted as in flight ends with it.
    pub(crate) fn release_shard(self) {
        if let Some(shard) = self.0.shard.take() {
            self.table.clear_shard(shard);
            self.table.release_shard(shard);
        }
    }
}

impl Deref for Worker {
    type Target = Share;

    fn deref(&self) -> &Share {
        self.0
    }
}
