//! The last good answers on disk, so that an nginx that starts while Consul is down has peers.
//!
//! Worker 0's [`Saver`] asks a [`StateProvider`] for the [`State`] and writes the file; at start,
//! [`file::load`] reads it.
//!
//! | file | holds |
//! |---|---|
//! | `peers` | peers as JSON |
//! | `content` | what the file holds, and its bytes |
//! | `file` | reads the file and replaces it as a whole |
//! | `saver` | the thread that keeps it up to date |
//!
//! One file holds the sets of all targets: a first line with name, version and checksum, then JSON.
//! A token is never in it.
//!
//! ```text
//! nginx-consul-state 1 <SipHash-1-3-128 of the JSON, 32 hex digits>
//! {"written_ms":…,"boot":{"id":"…","monotonic_ms":…},
//!  "services":[{"key":…,"service":"web","index":…,"last_good_ms":…,"peers":[…]}],
//!  "overrides":[{"service":"web","node":"n1","id":"web-1","action":"drain",…}]}
//! ```
//!
//! Times are milliseconds since the epoch, as the wall clock had it at `written_ms`. In memory they
//! are moments of the monotonic clock. In the boot that wrote the file, `written_ms` and `monotonic_ms`
//! relate them exactly, whoever has set the wall clock since; in another boot, or without `boot`, as
//! earlier versions wrote it, only the wall clock does:
//!
//! | field | read in the same boot | in another boot |
//! |---|---|---|
//! | `last_good_ms`: age of a set, and whether it is still `valid` | exact | by the wall clock |
//! | `until_ms` of an override | exact | by the wall clock |
//! | `since_ms` of an override | only shown | only shown |
//! | `written_ms`: age of the file | exact | by the wall clock |
//!
//! When a request last named a service is not in the file: a restart counts as such a request.

mod peers;
mod content;
pub mod file;
pub mod saver;

pub use content::{Boot, Damage, Saved, State};
pub use file::LoadError;
pub use saver::{Saver, StateProvider, Version};

#[cfg(test)]
mod tests;
