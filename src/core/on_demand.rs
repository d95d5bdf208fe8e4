//! Services that requests name: `consul_dynamic $service`.
//!
//! ```text
//! worker ── Channel ──▶ ServiceResolver (threads of worker 0) ◀── names of all services ── Consul
//!   ▲                      │ exists              │ does not exist
//!   └── table: entry ◀─────┴─▶ Watcher           └─▶ table: lookup result
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `allow` | which names requests may use |
//! | `catalog` | the names of all services that a catalog lists |
//! | `template` | what a block asks for, whatever the name |
//! | `channel` | the queue from the workers to the resolver |
//! | `registry` | which services are followed, and which are dropped first |
//! | `store` | what the resolver needs of the table |
//! | `lookup` | finds out about one name; follows the service or drops another |
//! | `reconcile` | compares what is followed with what is needed |
//! | `reads` | the threads that read catalogs |
//! | `resolver` | the thread that reads the channel |
//!
//! Names come from outside. A name that a worker lets through ([`Allowed`]) is looked up in the
//! names that Consul's catalog lists ([`Catalog`]); Consul is never asked about a single name. A
//! service takes an entry of the table until no request names it any more; a name that does not
//! exist takes a cell of the lookup cache for a moment.
//!
//! The catalog is read when a request names a service that it did not list, once for all waiting
//! requests, and at most four times a second. So a service that was registered just before its first
//! request is found, and a flood of names costs Consul no more than that. A watch on the catalog
//! would not spare this read, since it is always a moment late, and Consul would send it all names
//! at every registration, even if no request names a new service. Only while requests name services
//! that exist without the tags they need, a blocking query says when that may have changed.

mod allow;
mod catalog;
mod template;
mod channel;
mod registry;
mod store;
mod lookup;
mod reconcile;
mod reads;
mod resolver;
#[cfg(test)]
mod tests;

pub use allow::{Allowed, Refusal};
pub use catalog::Catalog;
pub use channel::Channel;
pub use resolver::ServiceResolver;
pub use store::ServiceStore;
pub use template::{ServiceTarget, Template, Templates};
