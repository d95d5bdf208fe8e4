//! Timers and posted events. nginx has these as inline functions, and those that nginx-sys has for
//! them use bit fields where bindgen takes them to be.

use std::ffi::c_void;
use std::ptr;

use nginx_sys::{
    NGX_TIMER_LAZY_DELAY, ngx_event_t, ngx_event_timer_rbtree, ngx_msec_t, ngx_posted_events,
    ngx_queue_insert_before, ngx_rbtree_delete, ngx_rbtree_insert,
};

use super::bits;
use super::log::Log;
use super::process::current_msec;

/// Makes an event of ours, with nothing set: zeros in all its bytes.
///
/// # Safety
///
/// There is room for an event, which stays where it is until it is in use no more.
pub(crate) unsafe fn init(
    event: *mut ngx_event_t,
    handler: unsafe extern "C" fn(*mut ngx_event_t),
    data: *mut c_void,
    log: Log<'_>,
) {
    // SAFETY: the caller's promise; all zeros are a valid event.
    unsafe {
        event.write_bytes(0, 1);
        (*event).handler = Some(handler);
        (*event).data = data;
        (*event).log = log.as_ptr();
    }
}

/// `ngx_add_timer()`: has the event's handler called in so many milliseconds, whatever was set before.
///
/// # Safety
///
/// As of [`del_timer`]; the event stays where it is until its handler is called or the timer deleted.
#[inline]
pub(crate) unsafe fn add_timer(event: *mut ngx_event_t, delay: ngx_msec_t) {
    // SAFETY: the caller's promise. The event loop's tree is that of this thread alone, and an event
    // is in it as long as `timer_set` says so.
    unsafe {
        let key = current_msec().wrapping_add(delay);
        if bits::event::TIMER_SET.get(event) {
            // What is as good as the new time is left alone, as nginx does.
            if key.abs_diff((*event).timer.key) < NGX_TIMER_LAZY_DELAY as ngx_msec_t {
                return;
            }
            del_timer(event);
        }
        (*event).timer.key = key;
        ngx_rbtree_insert(&raw mut ngx_event_timer_rbtree, &raw mut (*event).timer);
        bits::event::TIMER_SET.set(event, true);
    }
}

/// `ngx_del_timer()`, if a timer is set.
///
/// # Safety
///
/// This is the thread of the event loop. The event is one of [`init`], or nginx's.
#[inline]
pub(crate) unsafe fn del_timer(event: *mut ngx_event_t) {
    // SAFETY: as in add_timer().
    unsafe {
        if !bits::event::TIMER_SET.get(event) {
            return;
        }
        ngx_rbtree_delete(&raw mut ngx_event_timer_rbtree, &raw mut (*event).timer);
        (*event).timer.left = ptr::null_mut();
        (*event).timer.right = ptr::null_mut();
        (*event).timer.parent = ptr::null_mut();
        bits::event::TIMER_SET.set(event, false);
    }
}

/// `ngx_post_event()`: has the event's handler called in this turn of the event loop.
///
/// # Safety
///
/// As of [`add_timer`].
pub(crate) unsafe fn post(event: *mut ngx_event_t) {
    // SAFETY: the caller's promise. An event is in a queue as long as `posted` says so.
    unsafe {
        if !bits::event::POSTED.get(event) {
            bits::event::POSTED.set(event, true);
            ngx_queue_insert_before(&raw mut ngx_posted_events, &raw mut (*event).queue);
        }
    }
}
