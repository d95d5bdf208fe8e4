//! Consul's HTTP API: which requests are sent, and which answers are valid. No threads, no table.
//!
//! | file | holds |
//! |---|---|
//! | `server`, `token`, `tls`, `endpoint` | where Consul is, and with which credentials it is asked |
//! | `transport` | sockets that can be aborted |
//! | `query` | a query as the path of a request |
//! | `client` | one HTTP request |
//! | `instances`, `kv`, `overview` | bodies of answers |
//! | `blocking` | the rules of blocking queries, without I/O |
//! | `fetch` | one request and the validation of its answer |
//! | `removal` | when an answer may remove peers |
//!
//! Data flows from a query down to the socket and back up as an answer:
//!
//! ```text
//! blocking: Fetch ─▶ fetch ─▶ client ─▶ transport ─▶ Consul
//!    ▲ result          └─ validates ◀─ response: headers, instances
//! ```

pub mod server;
pub mod token;
pub mod tls;
pub mod endpoint;
pub(crate) mod transport;
pub mod query;
pub mod client;
pub mod instances;
pub mod kv;
pub mod overview;
pub mod blocking;
pub(crate) mod fetch;
pub mod removal;
