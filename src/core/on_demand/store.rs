//! What the resolver needs of the table.

use std::time::Duration;

use super::template::ServiceTarget;
use crate::model::ServiceName;
use crate::table::LookupResult;
use crate::watch::Sink;

/// The table, as the resolver sees it.
pub trait ServiceStore: Sink {
    /// The number of a target of the service, which is added if it is new. A number never stands for
    /// another target.
    ///
    /// # Errors
    ///
    /// There is no room, or the configuration is superseded; the text is for the log.
    fn add(&self, service: &ServiceName, target: &ServiceTarget) -> Result<usize, String>;

    /// Removes a target that no request names any more.
    fn remove(&self, target: usize);

    /// Whether the target's last set found no room.
    fn lacks_room(&self, target: usize) -> bool;

    /// How long ago a request last named the target.
    fn unused_for(&self, target: usize) -> Duration;

    /// Notes the result of a lookup for the workers, for as long as it is valid.
    fn record_lookup(&self, key: u128, result: LookupResult, valid: Duration);

    /// Forgets the result of a lookup.
    fn forget_lookup(&self, key: u128);

    /// Whether Consul has answered the last request for the target, and this process has asked.
    fn is_in_step(&self, target: usize) -> bool;

    /// Notes why a target that has no answer yet gets none soon, so that requests don't wait for it.
    fn note_unreachable(&self, target: usize, error: &str);

    /// Whether a newer configuration is in force, whose resolver adds services from now on.
    fn is_superseded(&self) -> bool;

    /// The services that requests have named, with the numbers of their targets.
    fn services(&self) -> Vec<(ServiceName, usize)>;
}
