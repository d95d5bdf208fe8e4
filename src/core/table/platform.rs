//! What the table asks of the machine: atomic words, and which processes live. `scripts/model`
//! puts a model of it in its place; the rest of the table is the same there.

use std::time::Duration;

pub(super) use std::sync::atomic;

use crate::process::ProcessId;

/// Whether the process lives whose [`ProcessId::get`] this is.
pub(super) fn is_alive(process: u64) -> bool {
    ProcessId::from_raw(process).is_alive()
}

/// Spins a little, then sleeps: a publisher works for microseconds, or milliseconds at 10,000 peers.
#[allow(clippy::disallowed_methods)]
pub(super) fn wait(tries: &mut u32) {
    *tries += 1;
    if *tries < 100 {
        std::hint::spin_loop();
    } else {
        std::thread::sleep(Duration::from_micros(100));
    }
}
