//! The part of nginx-consul that needs no nginx: it queries Consul, validates the answers, keeps the
//! table of peers that all workers share, and picks peers from it.
//!
//! Data flows one way, from the threads of worker 0 to the event loops of all workers:
//!
//! ```text
//! consul ─▶ watch ─▶ table_writer ─▶ table (shared zone) ─▶ balance (each worker)
//! ```
//!
//! From the ground up:
//!
//! | module | holds |
//! |---|---|
//! | `text` `clock` `file` `address` `process` `stop` `threads` `params` | the ground |
//! | `model` | the vocabulary: queries, peers, reasons, overrides |
//! | `resolve` | host names to addresses |
//! | `consul` | Consul's HTTP API: requests, answers and their validation |
//! | `table` | the shared zone |
//! | `labels` `idle` | labels of peers for variables; idle connections |
//! | `balance` | picks a peer |
//! | `watch` | follows services, in threads of worker 0 |
//! | `on_demand` | services that requests name |
//! | `state` | the state file |
//! | `control` | the control API |
//! | `table_writer` | writes what `watch` finds into `table` |
//! | `status` `dashboard` | the status and its page |
//! | `directives` | parameters of directives |
//!
//! A module imports only from modules that are declared above it, and so do the files within each:
//! `scripts/check` verifies it.
#![forbid(unsafe_code)]

pub mod text;
pub mod clock;
pub mod file;
pub mod address;
pub mod process;
pub mod stop;
pub(crate) mod threads;
pub mod params;
pub mod model;
pub mod resolve;
pub mod consul;
pub mod table;
pub mod labels;
pub mod idle;
pub mod balance;
pub mod watch;
pub mod on_demand;
pub mod state;
pub mod control;
pub mod table_writer;
pub mod status;
pub mod dashboard;
pub mod directives;
