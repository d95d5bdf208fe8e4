//! Shards: each worker counts its requests in flight in a column of its own, in every slot. Only the
//! worker itself writes it, so when a worker is killed its column is all that has to be cleared.

use super::layout::{Table, WorkerShard, slot};
use super::permits;
use super::platform::atomic::AtomicU64;
use super::platform::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use super::platform::is_alive;
use crate::process::ProcessId;

impl<'z> Table<'z> {
    /// Takes a shard for the calling process, and clears what a killed process left in it.
    /// `None` if running processes hold all shards; the caller's requests are then not counted.
    pub fn claim_shard(&self, me: ProcessId) -> Option<WorkerShard> {
        let can_be_taken = |holder| holder == 0 || !is_alive(holder);
        let shard = self.shards().find(|shard| self.seize(*shard, me, can_be_taken))?;
        self.shard_words.fetch_max(u64::from(shard.0) / 2 + 1, AcqRel);
        self.clear_shard(shard);
        Some(shard)
    }

    /// Clears and frees the shards of killed processes.
    pub fn clear_dead_shards(&self) {
        let me = ProcessId::own();
        let is_left = |holder| holder != 0 && !is_alive(holder);
        for shard in self.shards().filter(|shard| self.seize(*shard, me, is_left)) {
            self.clear_shard(shard);
            self.release_shard(shard);
        }
    }

    fn shards(&self) -> impl Iterator<Item = WorkerShard> {
        (0..(self.layout.entries - self.layout.shards) as u32).map(WorkerShard)
    }

    fn holder(&self, shard: WorkerShard) -> &'z AtomicU64 {
        self.word(self.layout.shards + shard.0 as usize)
    }

    /// Takes a shard if `can_be_taken` from its holder, unless another process is quicker.
    fn seize(&self, shard: WorkerShard, me: ProcessId, can_be_taken: impl Fn(u64) -> bool) -> bool {
        let holder = self.holder(shard).load(Acquire);
        let take = || self.holder(shard).compare_exchange(holder, me.get(), AcqRel, Acquire);
        can_be_taken(holder) && take().is_ok()
    }

    /// Clears the requests in flight of a shard, and their permits. Only its holder may.
    pub fn clear_shard(&self, shard: WorkerShard) {
        for slot in 0..self.layout.slot_count {
            let (word, shift) = self.shard_word(slot, shard);
            let left = word.load(Relaxed) >> shift & u64::from(u32::MAX);
            if left != 0 {
                word.fetch_sub(left << shift, AcqRel);
            }
            permits::clear(self.slot_word(slot, slot::PROBE), shard);
        }
        self.clear_permits(shard);
    }

    /// Gives the shard back. The next holder clears what is still in it.
    pub fn release_shard(&self, shard: WorkerShard) {
        self.holder(shard).store(0, Release);
    }

    fn shard_word(&self, slot: usize, shard: WorkerShard) -> (&'z AtomicU64, u32) {
        (self.slot_word(slot, slot::WORDS + shard.0 as usize / 2), shard.0 % 2 * 32)
    }
}
