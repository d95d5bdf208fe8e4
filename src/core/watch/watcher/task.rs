//! What a thread can do, and what waits for a thread.

use std::sync::Arc;
use std::time::Instant;

use super::scopes::OverviewId;
use crate::watch::overview_watch::OverviewWatch;
use crate::watch::subscription::{QueryLoop, Subscription, poll_interval};

/// What waits in the queue, by the number of the subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    ConcurrentRead(u64),
    Query(u64),
}

/// Work for a thread.
pub(super) enum Task {
    /// One request of a subscription's query.
    Query(u64, Box<QueryLoop>),
    /// A read while the query is under way in another thread.
    ConcurrentRead(u64, Arc<Subscription>),
    /// One request of an overview watch.
    Overview(OverviewId, Box<OverviewWatch>),
}

impl Task {
    /// Whether it may take long.
    pub(super) fn blocks(&self) -> bool {
        match self {
            Task::Query(_, query) => query.rules.will_block(),
            Task::ConcurrentRead(..) => false,
            Task::Overview(_, overview) => overview.will_block(),
        }
    }
}

/// A subscription and when its query is due.
pub(super) struct Entry {
    pub(super) subscription: Arc<Subscription>,
    /// Of the service, by [`overview::key`](crate::consul::overview::key).
    pub(super) name: u64,
    /// `None` while a thread has it.
    pub(super) query: Option<Box<QueryLoop>>,
    /// Its place in the queue, while the query is here.
    pub(super) due: Instant,
    /// A thread has the query, and it blocks.
    pub(super) is_blocking: bool,
    /// When a read is due while the query blocks.
    pub(super) concurrent_read: Option<Instant>,
    /// It is to have a blocking query.
    pub(super) shall_block: bool,
    /// Its blocking queries are short until then.
    pub(super) new_until: Instant,
    /// Something has happened that it has to be read for, while a thread had the query.
    pub(super) read_when_back: bool,
    /// Its read is a part of the full poll that is under way.
    pub(super) is_in_full_poll: bool,
    /// The scope whose overview watches can cover it.
    pub(super) scope: Option<usize>,
}

impl Entry {
    /// Whether its query can block at all.
    pub(super) fn can_block(&self) -> bool {
        poll_interval(&self.subscription.watched).is_none()
    }
}
