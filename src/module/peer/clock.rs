//! The event loop's time, and what is not done each time.

use std::cell::Cell;

use nginx_consul_core::balance::Clock;

use crate::ffi::process;

/// What a block does not do for each request, it does at most so often, in milliseconds: saying
/// that there is no usable instance, and looking for its entry while it has none.
const INTERVAL: u64 = 1000;

/// When something was last done, on the event loop's clock.
#[derive(Default)]
pub(super) struct Interval(Cell<u64>);

impl Interval {
    /// Whether it is time to do it again; then it counts as done.
    pub(super) fn is_due(&self) -> bool {
        let now = monotonic();
        let last = self.0.get();
        let due = last == 0 || now.wrapping_sub(last) >= INTERVAL;
        if due {
            self.0.set(now.max(1));
        }
        due
    }
}

/// The event loop's time.
#[inline]
pub(super) fn now() -> Clock {
    Clock { millis: process::time_ms(), monotonic: monotonic() }
}

/// The event loop's monotonic time in milliseconds, the same for all processes.
#[inline]
pub(crate) fn monotonic() -> u64 {
    process::current_msec() as u64
}
