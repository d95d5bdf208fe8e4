//! The part of nginx-consul that needs no nginx: how Consul is asked, which answers are valid,
//! the table of peers shared by all workers, and how a peer is picked from it.
//!
//! Data flows one way:
//!
//! ```text
//! watch (threads) ─▶ consul::fetch ─▶ watch::publisher ─▶ Sink ─▶ table ─▶ balance
//! ```
#![forbid(unsafe_code)]

pub mod text;
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
