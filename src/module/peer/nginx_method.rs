//! A load balancing method of nginx that stands before `consul_dynamic`: it picks, over peers that
//! are made anew of each set.
//!
//! | file         | holds                                                                        |
//! |--------------|------------------------------------------------------------------------------|
//! | `method`     | the method, as the configuration names it                                    |
//! | `snapshot`   | nginx's peers of one view, made by the method's `init_upstream`              |
//! | `carry_over` | what the peers of the next snapshot take over                                |
//! | `snapshots`  | a worker's snapshots of an upstream: when a new one is made                  |
//! | `attempt`    | a request's picks by the method                                              |
//!
//! Each worker has peers of its own, as in an `upstream` without `zone`. Requests hold the snapshot
//! that they pick from.

mod method;
mod snapshot;
mod carry_over;
mod snapshots;
mod attempt;

pub(super) use attempt::MethodAttempt;
pub(crate) use method::{InitUpstream, NginxMethod};
pub(crate) use snapshots::Snapshots;
