//! Threads block all signals: nginx's main thread handles them.

use std::mem::MaybeUninit;
use std::ptr;

/// Blocks all signals in this thread, and in threads that it starts, until dropped: nginx's
/// handlers must run in its main thread.
pub(crate) struct SignalsBlocked(libc::sigset_t);

impl SignalsBlocked {
    pub(crate) fn new() -> SignalsBlocked {
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the sets are our own; sigfillset() fills the one, pthread_sigmask() the other.
        unsafe {
            let mut all = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            SignalsBlocked(before.assume_init())
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: reads the set that pthread_sigmask() has filled.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}
