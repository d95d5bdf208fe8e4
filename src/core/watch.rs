//! Follows every service of a configuration in Consul, and hands its peers to a [`Sink`].
//!
//! ```text
//! configuration ─▶ Plan (queries, targets) ─▶ Watcher (threads) ─▶ Sink (table, reports, log)
//! on demand ─────▶ follow, forget ───────────────┘
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `log_labels` | names of queries and targets in log lines |
//! | `plan` | which queries are repeated, and for which targets |
//! | `sink` | who receives peers, reports and log lines |
//! | `limits` | how many threads and descriptors the system leaves |
//! | `outages` | one log line for services that fail together, and a rate limit for their reads |
//! | `snapshot` | instances to peers: host names, tags, health |
//! | `publisher` | an answer to the sets of its targets, unless a removal has to be confirmed |
//! | `subscription` | one query, repeated: request, answer, publication, report |
//! | `overview_watch` | a blocking query about all services of a datacenter |
//! | `initial` | the first answers, before there are workers |
//! | `watcher` | the threads, and which of them does what |
//!
//! With enough connections each query blocks. Otherwise overview watches block on what all services
//! have in common and say which of them to read (`watcher/connection_plan.rs` decides).

mod log_labels;
mod plan;
mod sink;
mod limits;
mod outages;
mod snapshot;
mod warnings;
mod publisher;
mod subscription;
mod overview_watch;
mod initial;
mod watcher;
#[cfg(test)]
pub(crate) mod testing;

pub use crate::consul::endpoint::{Endpoint, Timing, WatchedQuery};
pub use crate::consul::removal::{Confirm, OnEmpty, Policy};
pub use crate::consul::server::{Server, ServerError};
pub use crate::consul::tls::{Tls, TlsError, TlsOptions};
pub use crate::consul::token::{Token, TokenError};
pub use initial::first_answers;
pub use plan::{Plan, Target, WatchPlan};
pub use sink::{Published, Report, Sink};
pub use watcher::Watcher;
