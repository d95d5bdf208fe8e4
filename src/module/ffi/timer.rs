//! A timer of the event loop that repeats.

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use nginx_sys::{ngx_event_t, ngx_msec_t};

use super::bits;
use super::catch_panic::catch_panic;
use super::event::{self, add_timer, del_timer};
use super::process;

/// Belongs to the worker that has made it, whose thread alone uses it.
pub(crate) struct Timer(NonNull<Repeated>);

/// Where nginx has pointers to it.
struct Repeated {
    event: MaybeUninit<ngx_event_t>,
    /// Milliseconds.
    every: ngx_msec_t,
    /// `false`: not again, until it is started anew.
    body: fn() -> bool,
}

impl Timer {
    /// Not started yet. An exit does not wait for it. The body does not drop the timer.
    pub(crate) fn new(every: ngx_msec_t, body: fn() -> bool) -> Timer {
        let repeated = Repeated { event: MaybeUninit::uninit(), every, body };
        let timer = Timer(NonNull::from(Box::leak(Box::new(repeated))));
        // SAFETY: the memory is there until the timer is dropped. A worker's cycle and its log live
        // as long as the worker.
        unsafe {
            event::init(timer.event(), run, timer.0.as_ptr().cast(), process::log());
            bits::event::CANCELABLE.set(timer.event(), true);
        }
        timer
    }

    fn event(&self) -> *mut ngx_event_t {
        // SAFETY: the memory is there until this is dropped.
        unsafe { (&raw mut (*self.0.as_ptr()).event).cast() }
    }

    /// Unless it runs.
    pub(crate) fn start(&mut self) {
        // SAFETY: the event was made by new(); nobody writes how often it repeats.
        unsafe {
            if !bits::event::TIMER_SET.get(self.event()) {
                add_timer(self.event(), (*self.0.as_ptr()).every);
            }
        }
    }

    pub(crate) fn stop(&mut self) {
        // SAFETY: the event was made by new().
        unsafe { del_timer(self.event()) };
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.stop();
        // SAFETY: Box::leak() has given it, and nginx has its event no more.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// # Safety
///
/// nginx calls it in the event loop, with the event of a [`Timer`].
unsafe extern "C" fn run(event: *mut ngx_event_t) {
    // SAFETY: new() has set `data`; a timer that is dropped is no longer called.
    let (every, body) = unsafe {
        let repeated = (*event).data.cast::<Repeated>();
        ((*repeated).every, (*repeated).body)
    };
    // First, so that a panic of the body does not end it.
    // SAFETY: the event is a timer's.
    unsafe { add_timer(event, every) };
    if !catch_panic(true, body) {
        // SAFETY: the body has not dropped the timer.
        unsafe { del_timer(event) };
    }
}
