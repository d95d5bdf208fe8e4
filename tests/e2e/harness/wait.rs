//! Waiting for conditions; the tests know no other way to let time pass.

use std::fmt::Debug;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Has every wait, now and later, end by unwinding, so that whatever was started is stopped.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// Whether [`interrupt`] was called.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Lets a little time pass; unwinds without a message after [`interrupt`].
pub fn pause() {
    thread::sleep(STEP);
    if is_interrupted() && !thread::panicking() {
        resume_unwind(Box::new("interrupted"));
    }
}

/// Between two looks at a condition.
const STEP: Duration = Duration::from_millis(3);

/// Looks until `condition` holds; returns how long that took.
///
/// # Panics
/// After `timeout`, naming `what`.
#[track_caller]
pub fn until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    until_some(what, timeout, || condition().then_some(()));
    start.elapsed()
}

/// Looks until `look` finds something.
///
/// # Panics
/// After `timeout`, naming `what`.
#[track_caller]
pub fn until_some<T>(what: &str, timeout: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < timeout, "waited {timeout:?} in vain: {what}");
        pause();
    }
}

/// Looks until `look` returns `expected`.
///
/// # Panics
/// After `timeout`, with what was seen last.
#[track_caller]
pub fn until_eq<T: PartialEq + Debug + ?Sized, S: std::borrow::Borrow<T> + Debug>(
    what: &str,
    timeout: Duration,
    expected: &T,
    mut look: impl FnMut() -> S,
) -> Duration {
    let start = Instant::now();
    loop {
        let seen = look();
        if seen.borrow() == expected {
            return start.elapsed();
        }
        assert!(
            start.elapsed() < timeout,
            "waited {timeout:?} in vain: {what}\n     seen: {seen:?}\n expected: {expected:?}"
        );
        pause();
    }
}

/// The shortest of several measurements of how long something takes, at most `tries`, ending with the
/// first within `limit`: what else the machine does only adds to it.
pub fn at_best(limit: Duration, tries: usize, mut measure: impl FnMut() -> Duration) -> Duration {
    let mut least = Duration::MAX;
    for _ in 0..tries {
        least = least.min(measure());
        if least <= limit {
            break;
        }
    }
    least
}

/// Checks all through `span` that `condition` keeps holding.
///
/// # Panics
/// As soon as it doesn't.
#[track_caller]
pub fn holds(what: &str, span: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < span {
        assert!(condition(), "no longer after {:?}: {what}", start.elapsed());
        pause();
    }
}
