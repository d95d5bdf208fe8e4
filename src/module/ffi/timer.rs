//! A timer of the event loop that repeats.

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use nginx_sys::{ngx_cycle, ngx_event_t, ngx_msec_t};

use crate::ffi::{bits, catch_panic, event};

/// Belongs to the process that has made it.
pub(crate) struct Timer(NonNull<Repeated>);

struct Repeated {
    event: ngx_event_t,
    /// Milliseconds.
    every: ngx_msec_t,
    /// `false`: not again, until it is started anew.
    body: fn() -> bool,
}

impl Timer {
    /// Not started yet. An exit does not wait for it.
    pub(crate) fn new(every: ngx_msec_t, body: fn() -> bool) -> Timer {
        // SAFETY: all zeros are an event that is not set.
        let event: ngx_event_t = unsafe { MaybeUninit::zeroed().assume_init() };
        let repeated = NonNull::from(Box::leak(Box::new(Repeated { event, every, body })));
        // SAFETY: just made. A worker's cycle and its log live as long as the worker.
        unsafe {
            let event = &mut (*repeated.as_ptr()).event;
            event.handler = Some(run);
            event.log = (*ngx_cycle).log;
            event.data = repeated.as_ptr().cast();
            bits::event::CANCELABLE.set(event, true);
        }
        Timer(repeated)
    }

    /// Unless it runs.
    pub(crate) fn start(&mut self) {
        // SAFETY: the event is there until this is dropped.
        unsafe {
            let repeated = self.0.as_ptr();
            if !bits::event::TIMER_SET.get(&raw const (*repeated).event) {
                event::add_timer(&raw mut (*repeated).event, (*repeated).every);
            }
        }
    }

    pub(crate) fn stop(&mut self) {
        // SAFETY: the event is there until this is dropped.
        unsafe { event::del_timer(&raw mut (*self.0.as_ptr()).event) };
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
    // SAFETY: the caller's promise; the body does not drop the timer that runs it.
    unsafe {
        let repeated = (*event).data.cast::<Repeated>();
        let body = (*repeated).body;
        // First, so that a panic of the body does not end it.
        event::add_timer(event, (*repeated).every);
        if !catch_panic(true, body) {
            event::del_timer(event);
        }
    }
}
