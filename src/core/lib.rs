//! The part of nginx-consul that needs no nginx: how Consul is asked, which answers are believed,
//! the table of peers shared by all workers, and how a peer is picked from it.
//!
//! Data flows one way:
//!
//! ```text
//! sync (threads) ─▶ consul::{client, health} ─▶ snapshot ─▶ Sink ─▶ table ─▶ balance
//! ```
#![forbid(unsafe_code)]

pub mod address;
pub mod balance;
pub mod consul;
pub mod control;
pub mod idle;
pub mod labels;
pub mod model;
pub mod on_demand;
pub mod params;
pub mod process;
pub mod resolve;
pub mod snapshot;
pub mod state;
pub mod status;
pub mod stop;
pub mod watch;
pub mod table;
pub mod text;
