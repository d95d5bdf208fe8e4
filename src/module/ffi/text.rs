//! nginx's strings and arrays as borrowed slices.

use nginx_sys::{ngx_array_t, ngx_str_t};

/// The bytes of an nginx string.
///
/// # Safety
///
/// The string lies in a pool that outlives `'a`, and is not written meanwhile.
pub(crate) unsafe fn bytes<'a>(s: &ngx_str_t) -> &'a [u8] {
    if s.data.is_null() || s.len == 0 {
        return &[];
    }
    // SAFETY: nginx keeps `len` readable bytes at `data`, as long as the pool (the caller's promise).
    unsafe { std::slice::from_raw_parts(s.data, s.len) }
}

/// An nginx string over bytes that stay where they are; nginx does not write it.
pub(crate) fn str_over(bytes: &[u8]) -> ngx_str_t {
    ngx_str_t { len: bytes.len(), data: bytes.as_ptr().cast_mut() }
}

/// The elements of an nginx array, null or not.
///
/// # Safety
///
/// The array is null or holds `T`s, and is not written as long as `'a`.
pub(crate) unsafe fn elements<'a, T>(array: *const ngx_array_t) -> &'a [T] {
    // SAFETY: nginx has initialized an array that is there (the caller's promise).
    let Some(array) = (unsafe { array.as_ref() }) else { return &[] };
    if array.elts.is_null() {
        return &[];
    }
    // SAFETY: its first `nelts` elements are set, and `T`s (the caller's promise).
    unsafe { array.as_slice() }
}
