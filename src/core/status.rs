//! The status of the module: what it says, and its formats. `docs/status.md` describes it.
//!
//! The module collects values and hands them to a [`Document`] one after the other, so that thousands
//! of peers don't keep a worker from its requests. From the ground up:
//!
//! | file | holds |
//! |---|---|
//! | `ask` | what a request asks for: format and service |
//! | `document` | the values, and [`Document`], which takes them |
//! | `json` `metrics` | the formats |
//! | `ready` | `consul_ready`: whether there is data to serve from |

mod ask;
mod document;
mod json;
mod metrics;
pub mod ready;
#[cfg(test)]
mod testing;

pub use ask::{Ask, Format, UnknownFormat};
pub use document::{
    Connections, Document, Nginx, OnDemand, Peer, PeerConnections, PeerState, Service, StateFile,
    Status, Tier, Upstream, VERSION, Version, Zone,
};

/// A document with its head. HTML is a page of its own, [`dashboard`](crate::dashboard), which
/// requests JSON. `with_peers`: metrics include each peer.
pub fn document(format: Format, with_peers: bool, head: Status) -> Box<dyn Document> {
    match format {
        Format::Html | Format::Json => Box::new(json::Json(head)),
        Format::Text => Box::new(metrics::Metrics::new(&head, false, with_peers)),
        Format::OpenMetrics => Box::new(metrics::Metrics::new(&head, true, with_peers)),
    }
}
