//! The time.
//!
//! A deadline or an age is a moment of the monotonic clock, which nobody can set and which is the same
//! for all processes of a boot; in nginx it is `ngx_current_msec`. The wall clock is only shown and
//! stored on disk.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// The time by both clocks, milliseconds.
///
/// Moments of the monotonic clock are numbers modulo 2⁶⁴, since one of the state file may be before
/// the boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Since the epoch.
    pub wall: u64,
    /// Of the monotonic clock.
    pub monotonic: u64,
}

impl Clock {
    /// Asks the system; the request path has the time of the event loop's turn instead.
    pub fn now() -> Clock {
        let time = clock_gettime(ClockId::Monotonic);
        let monotonic = Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        // The difference is rounded, not the wall clock: so a moment is shown the same every time.
        let ahead = wall.unwrap_or_default().saturating_sub(monotonic).as_millis();
        let monotonic = monotonic.as_millis() as u64;
        Clock { wall: monotonic + ahead as u64, monotonic }
    }

    /// What the wall clock showed at a moment of the monotonic clock, if it always went as now.
    pub fn wall_at(self, at: u64) -> u64 {
        self.wall.wrapping_add(at.wrapping_sub(self.monotonic))
    }

    /// The moment of the monotonic clock at which the wall clock showed that time, if it always went as
    /// now. Never 0, which stands for "never".
    pub fn monotonic_at(self, wall: u64) -> u64 {
        self.monotonic.wrapping_add(wall.wrapping_sub(self.wall)).max(1)
    }
}

/// Identifies the boot, and so the monotonic clock; `None` if /proc can't be read.
pub fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim_end().to_owned())
}

/// Milliseconds from a moment of the monotonic clock to `now`; 0 if it is later. An event loop's time
/// may be some milliseconds behind that of a thread.
pub fn age(at: u64, now: u64) -> u64 {
    (now.wrapping_sub(at) as i64).max(0) as u64
}

#[cfg(test)]
impl Clock {
    /// Both clocks show the same.
    pub(crate) const fn at(ms: u64) -> Clock {
        Clock { wall: ms, monotonic: ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Clock = Clock { wall: 1_700_000_000_000, monotonic: 5_000 };

    #[test]
    fn a_moment_before_the_boot_has_an_age_and_a_wall_time() {
        let yesterday = NOW.wall - 86_400_000;
        let moment = NOW.monotonic_at(yesterday);
        assert_eq!((age(moment, NOW.monotonic), NOW.wall_at(moment)), (86_400_000, yesterday));
    }

    #[test]
    fn a_moment_that_an_event_loop_has_not_reached_yet_has_age_0() {
        assert_eq!([4_990, 5_000, 5_003].map(|at| age(at, 5_000)), [10, 0, 0]);
    }

    #[test]
    fn no_moment_is_taken_for_never() {
        assert_eq!(NOW.monotonic_at(NOW.wall - NOW.monotonic), 1);
    }

    #[test]
    fn the_monotonic_clock_goes_on_as_an_instant_does() {
        let (start, before) = (std::time::Instant::now(), Clock::now());
        while start.elapsed().as_millis() < 5 {}
        let passed = Clock::now().monotonic - before.monotonic;
        assert!((5..=start.elapsed().as_millis() as u64 + 1).contains(&passed), "{passed}");
    }
}
