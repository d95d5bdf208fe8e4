//! Threads block all signals: nginx's main thread handles them. A start keeps those pending that
//! nginx has no handlers for yet.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use libc::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, c_int, sigset_t};

/// Signals that an nginx which runs acts on, and that would kill one that starts.
const EARLY: [c_int; 3] = [SIGHUP, SIGUSR1, SIGUSR2];
/// Signals that end nginx.
const ENDS: [c_int; 3] = [SIGTERM, SIGINT, SIGQUIT];

/// Blocks all signals in this thread, and in threads that it starts, until dropped: nginx's
/// handlers must run in its main thread.
pub(crate) struct SignalsBlocked(sigset_t);

impl SignalsBlocked {
    pub(crate) fn new() -> SignalsBlocked {
        SignalsBlocked(set_mask(libc::SIG_SETMASK, &all()))
    }

    /// Lets signals through that end nginx, if they were not blocked before.
    pub(crate) fn let_ends_through(&self) {
        let mut mask = all();
        for signal in ENDS.into_iter().filter(|signal| !has(&self.0, *signal)) {
            // SAFETY: changes a set of our own.
            unsafe { libc::sigdelset(&mut mask, signal) };
        }
        set_mask(libc::SIG_SETMASK, &mask);
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        set_mask(libc::SIG_SETMASK, &self.0);
    }
}

thread_local! {
    /// The mask of a process that is starting, before [`hold`].
    static BEFORE: Cell<Option<sigset_t>> = const { Cell::new(None) };
}

/// The next fork makes the daemon.
static IS_DAEMON_NEXT: AtomicBool = AtomicBool::new(false);
/// Those of [`EARLY`] that were pending before that fork, a bit each.
static PENDING: AtomicU32 = AtomicU32::new(0);

/// Keeps the signals pending that nginx has no handlers for while it starts. Its master blocks them
/// too, and takes them when it has started its workers.
pub(crate) fn hold() {
    let mut early = none();
    for signal in EARLY {
        // SAFETY: changes a set of our own.
        unsafe { libc::sigaddset(&mut early, signal) };
    }
    BEFORE.set(Some(set_mask(libc::SIG_BLOCK, &early)));
}

/// The next fork makes the daemon: the signals that are pending then are sent to it, since a child
/// begins without any.
pub(crate) fn pass_on() {
    // SAFETY: the module is never unloaded, and both functions may run around a fork.
    let rc = unsafe { libc::pthread_atfork(Some(before_fork), None, Some(in_daemon)) };
    IS_DAEMON_NEXT.store(rc == 0, Relaxed);
}

/// A process without a master takes the signals from now on, as its handlers are installed.
pub(crate) fn release() {
    if let Some(mask) = BEFORE.take() {
        set_mask(libc::SIG_SETMASK, &mask);
    }
}

extern "C" fn before_fork() {
    if !IS_DAEMON_NEXT.load(Relaxed) {
        return;
    }
    let mut pending = none();
    // SAFETY: writes the set.
    unsafe { libc::sigpending(&mut pending) };
    let bits = EARLY.iter().filter(|signal| has(&pending, **signal)).map(|signal| 1 << signal);
    PENDING.store(bits.sum(), Relaxed);
}

extern "C" fn in_daemon() {
    if IS_DAEMON_NEXT.swap(false, Relaxed) {
        let pending = PENDING.load(Relaxed);
        for signal in EARLY.into_iter().filter(|signal| pending >> signal & 1 != 0) {
            // SAFETY: a signal to ourselves, which is blocked.
            unsafe { libc::kill(libc::getpid(), signal) };
        }
    }
}

/// Changes the mask of this thread; gives the one before.
fn set_mask(how: c_int, signals: &sigset_t) -> sigset_t {
    let mut before = none();
    // SAFETY: reads the one set and writes the other.
    unsafe { libc::pthread_sigmask(how, signals, &mut before) };
    before
}

fn has(set: &sigset_t, signal: c_int) -> bool {
    // SAFETY: reads the set.
    unsafe { libc::sigismember(set, signal) == 1 }
}

fn none() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset() fills the set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

fn all() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset() fills the set.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}
