//! How Consul is asked, and which of its answers are believed.

pub mod client;
pub mod gate;
pub mod health;
pub mod policy;
pub mod query;
pub mod server;
pub mod tls;
pub mod token;
pub(crate) mod transport;
pub mod watch;
