//! Where attempts live: not in their requests' pools, since what is more there than with `server`
//! lines would at times be one block of the pool more, which costs as much as all the rest.

use std::alloc::{Layout, alloc};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use nginx_sys::{ngx_pool_cleanup_t, ngx_pool_t};

use super::Attempt;
use crate::ffi::catch_panic;

/// Has one attempt at a time. Never given back, since nginx looks at `cleanup.next` once more after
/// the attempt was dropped; there are as many as there were requests at a time.
struct Cell {
    /// Has the pool drop the attempt.
    cleanup: ngx_pool_cleanup_t,
    attempt: MaybeUninit<Attempt>,
    /// The next free cell, if this one is.
    next: *mut Cell,
}

/// The first free cell. Only the event loop's thread has requests.
static FREE: AtomicPtr<Cell> = AtomicPtr::new(ptr::null_mut());

/// Makes an attempt that is dropped with the pool. Null if memory is short, and then it is not made.
///
/// # Safety
///
/// Called from the event loop. `pool` is valid; the attempt must not be used after it is destroyed.
#[inline(always)]
pub(in super::super) unsafe fn make(
    pool: *mut ngx_pool_t,
    attempt: impl FnOnce() -> Attempt,
) -> *mut Attempt {
    let mut cell = FREE.load(Relaxed);
    if cell.is_null() {
        cell = another();
        if cell.is_null() {
            return ptr::null_mut();
        }
    }
    // SAFETY: the cell is valid and nobody's; the pool is valid (the caller's promise).
    unsafe {
        FREE.store((*cell).next, Relaxed);
        (*cell).cleanup.next = (*pool).cleanup;
        (*pool).cleanup = &raw mut (*cell).cleanup;
        let place = (&raw mut (*cell).attempt).cast::<Attempt>();
        place.write(attempt());
        place
    }
}

#[cold]
fn another() -> *mut Cell {
    // SAFETY: the layout is not of size 0; what is given is written before anything else.
    unsafe {
        let cell = alloc(Layout::new::<Cell>()).cast::<Cell>();
        if !cell.is_null() {
            let (data, next) = (cell.cast(), ptr::null_mut());
            let cleanup = ngx_pool_cleanup_t { handler: Some(leave), data, next };
            cell.write(Cell { cleanup, attempt: MaybeUninit::uninit(), next: ptr::null_mut() });
        }
        cell
    }
}

/// The attempt that a pool has to clean up, if this is one.
///
/// # Safety
///
/// `entry` is in the list of a pool that was not destroyed.
pub(in super::super) unsafe fn attempt_of(entry: &ngx_pool_cleanup_t) -> Option<*mut Attempt> {
    const LEAVE: unsafe extern "C" fn(*mut c_void) = leave;
    if !ptr::fn_addr_eq(entry.handler?, LEAVE) {
        return None;
    }
    // SAFETY: make() has put it there, with a cell that has an attempt until the pool is destroyed.
    Some(unsafe { (&raw mut (*entry.data.cast::<Cell>()).attempt).cast() })
}

/// The handler of `cleanup`.
unsafe extern "C" fn leave(cell: *mut c_void) {
    catch_panic((), || {
        let cell = cell.cast::<Cell>();
        // SAFETY: the pool runs it once for each time that make() put it there, with the cell.
        unsafe {
            (*cell).attempt.assume_init_drop();
            (*cell).next = FREE.load(Relaxed);
            FREE.store(cell, Relaxed);
        }
    });
}
