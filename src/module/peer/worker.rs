//! A worker's part of the shared memory.

use std::ops::Deref;

use nginx_consul_core::table::{Table, WorkerShard};

/// What this worker has of the shared memory. A handle, because requests copy it.
#[derive(Clone, Copy)]
pub(crate) struct Worker(&'static Share);

pub(crate) struct Share {
    pub(crate) table: Table<'static>,
    /// `None` if all shards are held by others: requests are then not counted as in flight.
    pub(crate) shard: Option<WorkerShard>,
}

impl Worker {
    pub(super) fn share(self) -> &'static Share {
        self.0
    }

    /// For as long as the process runs; made once, or again when it gets a shard after all.
    pub(crate) fn new(table: Table<'static>, shard: Option<WorkerShard>) -> Worker {
        Worker(Box::leak(Box::new(Share { table, shard })))
    }
}

impl Deref for Worker {
    type Target = Share;

    fn deref(&self) -> &Share {
        self.0
    }
}
