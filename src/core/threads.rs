//! Threads of this crate, all named `consul-watch`.
//!
//! A thread inherits the signal mask of the one that starts it: the caller must block all signals,
//! since the threads would otherwise run nginx's signal handlers.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bytes. A TLS handshake with a client certificate needs most of it: 48 KiB were used, and between
/// 96 and 128 without optimization.
const STACK: usize = if cfg!(debug_assertions) { 256 * 1024 } else { 96 * 1024 };

/// Name and stack size of a thread.
pub(crate) fn builder() -> thread::Builder {
    thread::Builder::new().name("consul-watch".to_owned()).stack_size(STACK)
}

/// Starts a thread.
pub(crate) fn spawn(body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    builder().spawn(body)
}

/// Waits for threads that are about to end; `false` if they have not ended by the deadline.
pub(crate) fn join_all(handles: Vec<JoinHandle<()>>, deadline: Instant) -> bool {
    handles.into_iter().all(|handle| {
        while !handle.is_finished() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_micros(200));
        }
        // Panics are caught within.
        let _ = handle.join();
        true
    })
}
