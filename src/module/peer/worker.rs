//! What a worker has at hand for every request: its clock, whether debug lines are written, and its
//! part of the shared memory.

use std::cell::Cell;
use std::ops::Deref;

use nginx_consul_core::process::ProcessId;
use nginx_consul_core::table::{Table, WorkerShard};
use nginx_sys::{NGX_LOG_DEBUG_HTTP, ngx_current_msec, ngx_log_t};

/// The event loop's monotonic time in milliseconds, the same for all processes.
#[inline]
pub(super) fn monotonic() -> u64 {
    // SAFETY: a word that the main thread writes.
    unsafe { ngx_current_msec as u64 }
}

/// Shortest time between two events of an [`Interval`], milliseconds.
const INTERVAL: u64 = 1000;

/// Lets something be done once a second at most.
#[derive(Default)]
pub(crate) struct Interval(Cell<u64>);

impl Interval {
    /// Whether it may be done now; then it counts as done.
    pub(crate) fn is_due(&self) -> bool {
        let now = monotonic();
        let last = self.0.get();
        let due = last == 0 || now.wrapping_sub(last) >= INTERVAL;
        if due {
            self.0.set(now.max(1));
        }
        due
    }
}

/// Whether debug lines are written. If not, a request does nothing else for them.
#[inline(always)]
pub(crate) fn is_traced(log: *const ngx_log_t) -> bool {
    // SAFETY: nginx passes valid logs; a request's connection has one.
    unsafe { (*log).log_level & NGX_LOG_DEBUG_HTTP as usize != 0 }
}

/// What this worker has of the shared memory. A handle, because requests copy it.
#[derive(Clone, Copy)]
pub(crate) struct Worker(&'static Share);

pub(crate) struct Share {
    pub(crate) table: Table<'static>,
    /// `None` if other workers hold all shards: this one's requests are then not counted as in
    /// flight.
    shard: Cell<Option<WorkerShard>>,
    /// When a shard was last asked for.
    claimed: Interval,
}

impl Worker {
    /// For as long as the process runs: made once. It has a shard if one is free.
    pub(crate) fn new(table: Table<'static>) -> Worker {
        let shard = Cell::new(table.claim_shard(ProcessId::own()));
        Worker(Box::leak(Box::new(Share { table, shard, claimed: Interval::default() })))
    }

    /// The shared memory, for as long as the process runs.
    #[inline]
    pub(super) fn table(self) -> &'static Table<'static> {
        &self.0.table
    }

    /// Where its requests and idle connections are counted. A worker without a shard tries to claim
    /// one again, once a second at most.
    #[inline]
    pub(crate) fn shard(self) -> Option<WorkerShard> {
        let shard = self.0.shard.get();
        if shard.is_some() { shard } else { self.claim_shard() }
    }

    #[cold]
    #[inline(never)]
    fn claim_shard(self) -> Option<WorkerShard> {
        if self.0.claimed.is_due() {
            self.0.shard.set(self.table.claim_shard(ProcessId::own()));
        }
        self.0.shard.get()
    }

    /// The worker ends, and with it the requests that it has counted as in flight.
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
