//! What the resolver needs of the table.

use std::time::Duration;

use crate::model::ServiceName;
use crate::table::LookupResult;
use crate::watch::Sink;

/// The table, as the resolver sees it.
pub trait ServiceStore: Sink {
    /// The number of the target of a key, made if there is none. A number stands for the same
    /// target for ever.
    ///
    /// # Errors
    ///
    /// There is no room; the text is for the log.
    fn add(&self, service: &ServiceName, key: u128) -> Result<usize, String>;

    /// Nobody asks for the target any more.
    fn remove(&self, target: usize);

    /// Whether the target's last set found no room.
    fn lacks_room(&self, target: usize) -> bool;

    /// How long ago a request last asked for the target.
    fn unused_for(&self, target: usize) -> Duration;

    /// Notes for the workers what became of a name, for so long.
    fn record_lookup(&self, key: u128, verdict: LookupResult, valid: Duration);

    /// The services that requests have named, with the numbers of their targets.
    fn services(&self) -> Vec<(ServiceName, usize)>;
}
