//! The vocabulary of the crate: types that several rooms share, without any behaviour of their own.
//!
//! | file | types |
//! |---|---|
//! | `meta` | `Service.Meta` as variables show it |
//! | `query` | what a watch asks Consul for, and which instances an `upstream` takes |
//! | `peer` | instances, peers and sets of peers |
//! | `secret` | text that must not be shown |
//! | `mode` | how a service is followed |
//! | `reason` | why an answer changes nothing; a removal that waits for confirmation |
//! | `connections` | connections to Consul, and what limits them |
//! | `service_name` | services that requests name |
//! | `override_` | what an operator wants of an instance or a service |
//! | `level` | levels of log lines |

mod meta;
mod query;
mod peer;
mod secret;
mod mode;
mod reason;
mod connections;
mod service_name;
mod override_;
mod level;

pub use connections::{Connections, Limit};
pub use level::Level;
pub use meta::{Meta, MetaKeys};
pub use mode::Mode;
#[cfg(test)]
pub(crate) use override_::of_instance;
pub use override_::{Action, Override, service_scope};
pub use peer::{Health, Instance, Instances, Peer, PeerSet, Skipped, identity};
pub use query::{Admit, Consistency, Query, Selection, Source};
pub use reason::{Pending, Reason};
pub use secret::Secret;
pub use service_name::{MAX_NAME, ServiceName};
