//! The platform: atomic words, and which processes run. Under `scripts/model` a model replaces it, and
//! the rest of the table is the same.

use std::time::Duration;

pub(super) use std::sync::atomic;

use crate::process::ProcessId;

/// The monotonic clock, milliseconds.
pub(super) fn monotonic_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// Whether the process with this [`ProcessId::get`] still runs.
pub(super) fn is_alive(process: u64) -> bool {
    ProcessId::from_raw(process).is_alive()
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
