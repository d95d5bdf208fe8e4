//! The balancer: the peers of an `upstream` are the instances of a service, as the shared table has
//! them, and requests are spread over them. It knows no configuration: that makes an [`Upstream`]
//! with [`Options`], and puts it into the [`Slot`] that requests find.
//!
//! | room           | is for                                                                     |
//! |----------------|----------------------------------------------------------------------------|
//! | `options`      | what the configuration says of the picks                                   |
//! | `servers`      | the `server` lines of an upstream                                          |
//! | `worker`       | a worker's clock, debug log and part of the shared memory                  |
//! | `set`          | the sets of peers, read from the table                                     |
//! | `delegate`     | another balancer behind our callbacks                                      |
//! | `nginx_method` | a load balancing method of nginx that picks                                |
//! | `keepalive`    | idle connections                                                           |
//! | `upstream`     | an upstream: sets, method and idle connections together                    |
//! | `report`       | what it tells the status page, probes and variables                        |
//! | `counters`     | what the shared counters learn of an attempt                               |
//! | `trace`        | debug lines                                                                |
//! | `attempt`      | a request's way through the peers                                          |
//! | `on_demand`    | an upstream whose service requests name                                    |
//! | `slot`         | what requests find of their upstream                                       |
//! | `callbacks`    | what nginx calls: init, get, free, the header filter                       |
//! | `init_upstream`| what nginx calls when it has read the configuration                        |
//! | `guard`        | callbacks around those of other modules                                    |
//! | `request_peer` | the peer that a request went to, for variables                             |
//!
//! A request goes `callbacks` -> `set` (its view) -> `attempt` (the pick) -> `counters`, and back.

mod options;
pub(crate) mod servers;
mod worker;
mod set;
mod delegate;
mod nginx_method;
pub(crate) mod keepalive;
mod upstream;
mod report;
mod counters;
pub(crate) mod trace;
mod attempt;
pub(crate) mod on_demand;
mod slot;
mod callbacks;
mod init_upstream;
mod guard;
mod request_peer;

pub(crate) use callbacks::install_header_filter;
pub(crate) use guard::guard;
pub(crate) use init_upstream::ngx_http_upstream_init_consul;
#[cfg(nginx_keepalive_anywhere)]
pub(crate) use init_upstream::replace_keepalive;
pub(crate) use keepalive::{Keepalive, end as end_keepalive};
pub(crate) use nginx_method::{NginxMethod, Snapshots};
pub(crate) use on_demand::{Lookup, New, OnDemandUpstream, Why};
pub(crate) use options::{Balance, Options};
pub(crate) use request_peer::RequestPeer;
pub(crate) use set::WatchedSet;
pub(crate) use slot::Slot;
pub(crate) use upstream::Upstream;
pub(crate) use worker::{Interval, Worker, is_traced};
