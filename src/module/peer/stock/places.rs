//! Where attempts live: not in their requests' pools, since what is more there than with `server`
//! lines would at times be one block of the pool more, which costs as much as all the rest.

use std::alloc::{Layout, alloc};
use std::cell::Cell;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;

use nginx_sys::{ngx_pool_cleanup_t, ngx_pool_t};

use super::attempt::StockAttempt;
use crate::ffi::fence;

/// A place for one. Never given back, since nginx looks at `cleanup.next` once more after the value
/// was dropped; there are as many as there were requests at a time.
struct Place {
    /// Has the pool drop the value.
    cleanup: ngx_pool_cleanup_t,
    value: MaybeUninit<StockAttempt>,
    /// The next place that is free, if this one is.
    next: *mut Place,
}

/// The first place that is free.
struct Free(Cell<*mut Place>);

// SAFETY: only the event loop's thread has requests.
unsafe impl Sync for Free {}

static FREE: Free = Free(Cell::new(ptr::null_mut()));

/// Makes an attempt that is dropped with the pool. Null if memory is short, and then it is not made.
///
/// # Safety
///
/// Called from the event loop. `pool` is valid; the attempt must not be used after it is destroyed.
#[inline(always)]
pub(super) unsafe fn make(
    pool: *mut ngx_pool_t,
    attempt: impl FnOnce() -> StockAttempt,
) -> *mut StockAttempt {
    let mut place = FREE.0.get();
    if place.is_null() {
        place = another();
        if place.is_null() {
            return ptr::null_mut();
        }
    }
    // SAFETY: the place is valid and nobody's; the pool is valid (the caller's promise).
    unsafe {
        FREE.0.set((*place).next);
        (*place).cleanup.next = (*pool).cleanup;
        (*pool).cleanup = &raw mut (*place).cleanup;
        let value = (&raw mut (*place).value).cast::<StockAttempt>();
        value.write(attempt());
        value
    }
}

#[cold]
fn another() -> *mut Place {
    // SAFETY: the layout is not of size 0; what is given is written before anything else.
    unsafe {
        let place = alloc(Layout::new::<Place>()).cast::<Place>();
        if !place.is_null() {
            let cleanup = ngx_pool_cleanup_t {
                handler: Some(leave),
                data: place.cast(),
                next: ptr::null_mut(),
            };
            place.write(Place { cleanup, value: MaybeUninit::uninit(), next: ptr::null_mut() });
        }
        place
    }
}

/// The attempt that a pool has to clean up, if this is one.
///
/// # Safety
///
/// `entry` is in the list of a pool that was not destroyed, and no callback of the attempt runs.
pub(in crate::peer) unsafe fn attempt_of<'a>(
    entry: &ngx_pool_cleanup_t,
) -> Option<&'a mut StockAttempt> {
    const LEAVE: unsafe extern "C" fn(*mut c_void) = leave;
    if !ptr::fn_addr_eq(entry.handler?, LEAVE) {
        return None;
    }
    // SAFETY: make() has put it there, with a place that holds an attempt until the pool is
    // destroyed.
    Some(unsafe { &mut *(&raw mut (*entry.data.cast::<Place>()).value).cast::<StockAttempt>() })
}

/// The handler of `cleanup`.
unsafe extern "C" fn leave(place: *mut c_void) {
    fence((), || {
        let place = place.cast::<Place>();
        // SAFETY: the pool runs it once for each time that make() put it there, with the place.
        unsafe {
            (*place).value.assume_init_drop();
            (*place).next = FREE.0.replace(place);
        }
    });
}
