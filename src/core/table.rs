//! The table of peers that all processes share: a slice of words in nginx's shared zone.
//!
//! Data flows from `publish`, which worker 0 calls with each new set, through the zone to `read`,
//! with which every worker copies the set. Requests count in `counters`. From the ground up:
//!
//! | file | holds |
//! |---|---|
//! | `platform` | atomic words, and which processes live; a model of both under `scripts/model` |
//! | `words` | numbers and text as words |
//! | `layout` | [`Table`], and the map of the zone: every offset |
//! | `permits` | a **permit**, in an entry or a slot, lets a request try what has failed |
//! | `counters` | the counters of one instance, in its **slot** |
//! | `membership` | to whom a slot belongs: it stays with its instance also while that is in no set |
//! | `failures` | the failures of an instance, in its slot |
//! | `outage` | what is known while all instances of a target have failed |
//! | `shards` | a **shard** is one worker's column of in-flight counts in every slot |
//! | `block` | a **block**, in the arena, is one published set of peers, with its last changes |
//! | `entry` | an **entry** is one target (a selection of a service's instances): its generation, its block, its freshness |
//! | `read` | copies of a block that wait for nobody |
//! | `configuration` | which configuration is in force |
//! | `lock` | the publishers' lock, and what a killed holder leaves behind |
//! | `overrides` | what operators want of instances and selections |
//! | `resync` | requests of workers to worker 0, and what it holds back for them |
//! | `slots` | finds slots for the instances of a set |
//! | `publish` | claims entries, and replaces the block of an entry |
//! | `lookup_cache` `connection_budget` `state_file` | other tenants of the zone |
//!
//! A block is never changed: a new set is a new block, and the store of the entry's generation makes
//! it the current one. A reader copies the block and loads the generation again.
//!
//! Which parts of the arena are free is not stored anywhere: it follows from the entries, and so does
//! which owners of slots are members of a set. So a publisher may be killed at any instruction, and the
//! next one only has to note that those whom no block names have left.

#[cfg(not(all(test, loom)))]
mod platform;
#[cfg(all(test, loom))]
#[path = "table/model/platform.rs"]
mod platform;
mod words;
mod layout;
mod permits;
mod counters;
mod membership;
mod failures;
mod outage;
mod shards;
mod block;
mod entry;
mod read;
mod configuration;
mod lock;
mod overrides;
mod resync;
mod slots;
mod publish;
mod lookup_cache;
mod connection_budget;
mod state_file;
#[cfg(all(test, loom))]
mod model;
#[cfg(test)]
pub(crate) mod testing;

pub use block::{PeerMetadata, PeerRecord, SetChange};
pub use counters::{CounterValues, InFlight, PeerCounters};
pub use entry::Freshness;
pub use failures::{FailureLimits, PROBE_PACE};
pub use layout::{SlotRef, Table, WorkerShard, entries_in, shards_for};
pub use lookup_cache::LookupResult;
pub use outage::{Outage, PERMITS};
pub use overrides::{NotSet, Overrides};
pub use permits::Permit;
pub use publish::{Claim, Full};
pub use read::PeerSnapshot;
pub use resync::FrozenDiff;
