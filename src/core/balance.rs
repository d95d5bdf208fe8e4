//! Which peer a request goes to.
//!
//! A worker turns what it read from the table into a [`View`], and picks from it for each request.
//! From the ground up:
//!
//! | file | holds |
//! |---|---|
//! | `latency` | how long an instance takes to answer (`least_time`) |
//! | `pairs` | which members of a set are those of the set before |
//! | `schedule` | weights: the order of round robin, and peers drawn by weight |
//! | `modulo` `ring` | which peers a key belongs to (`hash`, `hash consistent`) |
//! | `candidates` | what a method asks of peers, and how it goes on when one may be unusable |
//! | `view` | the methods of `consul_balance`, and a worker's copy of the sets of an upstream, made for one |
//! | `context` | a view with the counters and the request: whether a peer can be used |
//! | `admission` | which requests may try a peer that has failed |
//! | `pick` | [`pick()`]: the tiers in turn, and the methods within a tier |
//!
//! Every method costs the same at 3 and at 10,000 peers, because all it does for a request is look
//! at a few candidates: round robin walks a precomputed schedule, the others draw candidates in
//! proportion to their weights from a table of cumulated weights. A candidate that can't be used
//! (it was tried, it failed, it is full) costs one more look. Only when candidates keep failing is
//! the whole set looked at, so a usable peer is found if there is one. However many can't be used,
//! those that can get first tries by weight.

#[cfg(test)]
mod golden;
pub mod latency;
mod pairs;
mod schedule;
pub mod modulo;
pub mod ring;
mod candidates;
mod view;
mod context;
mod admission;
mod pick;

pub use admission::{Admission, Admitted, Shared};
pub use candidates::{FULL_SHARE, Peers};
pub use context::{Obstacle, PickContext, Picked, slow_start_share};
pub use latency::Latency;
pub use pairs::{Pair, pairs};
pub use pick::pick;
pub use schedule::{Schedule, WeightTable};
pub use view::{Method, PeerInfo, ServerParams, Tier, Tried, View};
