//! The platform: atomic words, and which processes run. Under `scripts/model` a model replaces it, and
//! the rest of the table is the same.

use std::time::Duration;

pub(super) use std::sync::atomic;

use crate::clock::Clock;
use crate::process::ProcessId;

/// Whether the process with this [`ProcessId::get`] still runs.
pub(super) fn is_alive(process: u64) -> bool {
    ProcessId::from_raw(process).is_alive()
}

/// Milliseconds of the monotonic clock.
pub(super) fn monotonic_ms() -> u64 {
    Clock::now().monotonic
}

/// Spins a little, then sleeps: a publisher holds the lock for microseconds, or for milliseconds at
/// 10,000 peers.
#[allow(clippy::disallowed_methods)]
pub(super) fn wait(tries: &mut u32) {
    *tries += 1;
    if *tries < 100 {
        std::hint::spin_loop();
    } else {
        std::thread::sleep(Duration::from_micros(100));
    }
}
