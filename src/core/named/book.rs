//! What the threads that answer need of others.

use crate::sync::{Engine, Sink, Target};
use crate::table::{Named, Verdict};

/// The table, as these threads see it.
pub trait Book: Sink {
    /// The number of the target of a key, made if there is none. A number stands for the same
    /// target for ever.
    ///
    /// # Errors
    ///
    /// There is no room; the text is for the log.
    fn open(&self, service: &Named, key: u128) -> Result<usize, String>;

    /// Nobody asks for the target any more.
    fn close(&self, target: usize);

    /// Whether the target has its place still.
    fn is_open(&self, target: usize) -> bool;

    /// When a request last asked for the target, milliseconds since the epoch.
    fn last_used(&self, target: usize) -> u64;

    /// What became of a key.
    fn rule(&self, key: u128, verdict: Verdict, until_ms: u64);

    /// The targets of services that requests have named: number, key and service.
    fn named(&self) -> Vec<(usize, u128, Named)>;

    /// Milliseconds since the epoch.
    fn now_ms(&self) -> u64;
}

/// Who follows what was found.
pub trait Follow: Send + Sync {
    /// Follows a target from here on.
    fn follow(&self, number: usize, target: Target);

    /// Follows it no more.
    fn forget(&self, number: usize);
}

impl Follow for Engine {
    fn follow(&self, number: usize, target: Target) {
        Engine::follow(self, number, target);
    }

    fn forget(&self, number: usize) {
        Engine::forget(self, number);
    }
}
