//! Threads that nobody waits for.

use std::mem;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Runs `body` in a thread that nobody waits for.
///
/// It is not detached: glibc's `pthread_detach()` crashes if the thread ends in that moment
/// (<https://sourceware.org/bugzilla/show_bug.cgi?id=19951>). Each call joins those that have ended.
pub fn spawn(body: impl FnOnce() + Send + 'static) {
    static RUNNING: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let (ended, mut rest): (Vec<_>, Vec<_>) =
        mem::take(&mut *running).into_iter().partition(JoinHandle::is_finished);
    rest.push(thread::spawn(body));
    *running = rest;
    drop(running);
    // A panic was printed when it happened.
    ended.into_iter().for_each(|thread| drop(thread.join()));
}
