//! The part of nginx-consul that needs no nginx: how Consul is asked, which answers are believed,
//! the table of peers shared by all workers, and how a peer is picked from it.
//!
//! Data flows one way:
//!
//! ```text
//! sync (threads) ─▶ consul::{client, health} ─▶ snapshot ─▶ Sink ─▶ table ─▶ balance
//! ```
#![forbid(unsafe_code)]

pub mod text;
pub mod address;
pub mod process;
pub mod stop;
pub mod params;
pub mod model;
pub mod resolve;
pub mod consul;
pub mod snapshot;
pub mod table;
pub mod labels;
pub mod idle;
pub mod balance;
pub mod watch;
pub mod on_demand;
pub mod state;
pub mod control;
pub mod status;
pub mod directives;
