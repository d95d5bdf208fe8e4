//! `consul_keepalive`: a worker's idle connections to the peers of an `upstream`.
//!
//! | file         | holds                                                                        |
//! |--------------|------------------------------------------------------------------------------|
//! | `options`    | what the directive says                                                      |
//! | `params`     | what a connection must have in common with what a request needs              |
//! | `connection` | an idle connection, its events and its end                                   |
//! | `pool`       | the idle connections, and the upstreams whose peers they lead to             |
//! | `sweeper`    | a timer that closes old connections, also while no request comes             |
//! | `lease`      | a request's connection: taken from the pool, or left in it                   |
//!
//! A connection belongs to the instance that it was opened to, not to its address: it is closed
//! when the instance leaves, and no other instance ever gets it.

mod options;
mod params;
mod connection;
mod pool;
mod sweeper;
mod lease;

pub(super) use lease::{InstanceRef, Lease, UpstreamPeer};
pub(crate) use options::Options;
pub(super) use params::ConnParams;
pub(crate) use pool::Keepalive;
pub(super) use pool::Member;
pub(crate) use sweeper::end;
