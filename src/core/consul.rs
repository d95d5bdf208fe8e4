//! How Consul is asked, and which of its answers are believed.

pub mod catalog;
pub mod client;
pub mod validate;
pub mod health;
pub mod instances;
pub mod kv;
pub mod overview;
pub mod removal;
pub mod query;
pub mod server;
pub mod tls;
pub mod token;
pub mod endpoint;
pub(crate) mod transport;
pub mod blocking;
