//! Names of services that requests ask for.

/// Longest name of a service, in bytes.
pub const MAX_NAME: usize = 128;

/// A service that a request named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceName {
    /// [`Template::key`](crate::on_demand::Template::key) of what is asked for it.
    pub template: u128,
    /// Its name, at most [`MAX_NAME`] bytes.
    pub name: String,
}
