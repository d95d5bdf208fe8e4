//! Values in nginx's pools.

use std::ffi::c_void;
use std::ptr;

use nginx_sys::{ngx_palloc, ngx_pool_cleanup_t, ngx_pool_t};

use super::catch_panic::catch_panic;

/// A value in a pool, with what has the pool drop it.
#[repr(C)]
struct InPool<T> {
    cleanup: ngx_pool_cleanup_t,
    value: T,
}

/// Makes a value in a pool's care: it is dropped with the pool. Null if memory is short, and then
/// it is not made.
///
/// # Safety
///
/// `pool` is a pool of this thread; the value must not be used after the pool is destroyed.
#[inline]
pub(crate) unsafe fn make_in_pool<T>(pool: *mut ngx_pool_t, make: impl FnOnce() -> T) -> *mut T {
    const { assert!(align_of::<InPool<T>>() <= nginx_sys::NGX_ALIGNMENT) };
    // This is ngx_pool_cleanup_add() with one allocation instead of two.
    // SAFETY: ngx_palloc() gives memory of a pool's thread to that thread alone (the caller's
    // promise), aligned, or null.
    let place = unsafe { ngx_palloc(pool, size_of::<InPool<T>>()) }.cast::<InPool<T>>();
    if place.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: there is room for an InPool, which is written before it is read.
    let (value, cleanup) = unsafe { (&raw mut (*place).value, &raw mut (*place).cleanup) };
    let handler = Some(drop_value::<T> as unsafe extern "C" fn(*mut c_void));
    let value_made = make();
    // SAFETY: as above. The pool keeps its cleanups as a list, whose head nobody else writes now.
    unsafe {
        value.write(value_made);
        cleanup.write(ngx_pool_cleanup_t { handler, data: value.cast(), next: (*pool).cleanup });
        (*pool).cleanup = cleanup;
    }
    value
}

/// Drops a `T` that a pool has.
///
/// # Safety
///
/// `data` is where [`make_in_pool`] has put it; the pool calls this once.
unsafe extern "C" fn drop_value<T>(data: *mut c_void) {
    // SAFETY: the pool calls a cleanup once, and before its memory goes.
    catch_panic((), || unsafe { ptr::drop_in_place(data.cast::<T>()) });
}

/// Moves a value into a pool's care, as [`make_in_pool`] does.
///
/// # Safety
///
/// As of [`make_in_pool`].
pub(crate) unsafe fn give_to_pool<T>(pool: *mut ngx_pool_t, value: T) -> *mut T {
    // SAFETY: the caller's promise is that of make_in_pool().
    unsafe { make_in_pool(pool, || value) }
}
