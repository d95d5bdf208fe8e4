//! What the master and worker 0 write into the shared table: valid answers of the watch threads,
//! sets of the state file, and the expiry of overrides.
//!
//! | file | holds |
//! |---|---|
//! | `planned` | the targets of the plan, and their entries |
//! | `numbers` | which numbers targets have that requests have named |
//! | `lines` | log lines that wait for the event loop |
//! | `writer` | [`TableWriter`]: the watch threads' [`Sink`](crate::watch::Sink) |
//! | `overrides` | ends overrides whose time is over, and asks Consul for what workers want |
//! | `state_file` | restores sets from the state file, and gives those in the table to its thread |

mod planned;
mod numbers;
mod lines;
mod writer;
mod overrides;
mod state_file;

pub use lines::Line;
pub use overrides::{Resync, end_expired};
pub use state_file::{StateFile, TableState, parent};
pub use writer::TableWriter;
