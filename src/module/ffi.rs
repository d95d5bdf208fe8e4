//! Raw pointers of nginx as borrowed values, and the catch_panic around every callback.

pub(crate) mod bits;
pub(crate) mod event;

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use nginx_sys::{
    ngx_array_t, ngx_conf_t, ngx_http_conf_ctx_t, ngx_http_core_loc_conf_t, ngx_http_core_module,
    ngx_http_request_t, ngx_int_t, ngx_module_t, ngx_palloc, ngx_pool_cleanup_t, ngx_pool_t,
    ngx_str_t,
};
use ngx::core::NgxStr;
use ngx::http::Request;

pub(crate) mod log;
pub(crate) mod panics;
pub(crate) mod timer;
pub(crate) mod session;
pub(crate) mod response;

pub(crate) const OK: ngx_int_t = nginx_sys::NGX_OK as ngx_int_t;
pub(crate) const ERROR: ngx_int_t = nginx_sys::NGX_ERROR as ngx_int_t;
pub(crate) const AGAIN: ngx_int_t = nginx_sys::NGX_AGAIN as ngx_int_t;
pub(crate) const DECLINED: ngx_int_t = nginx_sys::NGX_DECLINED as ngx_int_t;

/// `NGX_CONF_OK`.
pub(crate) const CONF_OK: *mut c_char = ptr::null_mut();
/// `NGX_CONF_ERROR`.
pub(crate) const CONF_ERROR: *mut c_char = ptr::without_provenance_mut(usize::MAX);

/// Runs a callback's body. A panic, which is a defect of ours, becomes `failed` instead of
/// unwinding into C, which would abort the worker; [`crate::ffi::panics`] has logged it.
pub(crate) fn catch_panic<T>(failed: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(failed)
}

/// The bytes of an nginx string.
///
/// # Safety
///
/// The string lies in a pool that outlives `'a`, and is not written meanwhile.
pub(crate) unsafe fn bytes<'a>(s: &ngx_str_t) -> &'a [u8] {
    if s.data.is_null() || s.len == 0 {
        return &[];
    }
    // SAFETY: nginx keeps `len` readable bytes at `data` (the caller's promise on their lifetime).
    unsafe { std::slice::from_raw_parts(s.data, s.len) }
}

/// An nginx string over bytes that stay where they are; nginx does not write it.
pub(crate) fn str_over(bytes: &[u8]) -> ngx_str_t {
    ngx_str_t { len: bytes.len(), data: bytes.as_ptr().cast_mut() }
}

/// The words of a directive, its name first.
///
/// # Safety
///
/// `cf` is the one nginx passed to the running directive handler; the words live in its pool, as
/// long as the cycle.
pub(crate) unsafe fn args<'a>(cf: *mut ngx_conf_t) -> Vec<&'a [u8]> {
    // SAFETY: while a directive handler runs, `cf.args` is an array of its words.
    let words: &[ngx_str_t] = unsafe { (*(*cf).args).as_slice() };
    // SAFETY: the words live in the configuration's pool.
    words.iter().map(|w| unsafe { bytes(w) }).collect()
}

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
/// `pool` is valid; the value must not be used after the pool is destroyed.
#[inline]
pub(crate) unsafe fn make_in_pool<T>(pool: *mut ngx_pool_t, make: impl FnOnce() -> T) -> *mut T {
    const { assert!(align_of::<InPool<T>>() <= nginx_sys::NGX_ALIGNMENT) };
    // SAFETY: `pool` is valid (the caller's promise); ngx_palloc() aligns what it gives. This is
    // ngx_pool_cleanup_add() with one allocation instead of two, since each request has this.
    unsafe {
        let place = ngx_palloc(pool, size_of::<InPool<T>>()).cast::<InPool<T>>();
        if place.is_null() {
            return ptr::null_mut();
        }
        let value = &raw mut (*place).value;
        value.write(make());
        let cleanup = &raw mut (*place).cleanup;
        cleanup.write(ngx_pool_cleanup_t {
            handler: Some(drop_value::<T>),
            data: value.cast(),
            next: (*pool).cleanup,
        });
        (*pool).cleanup = cleanup;
        value
    }
}

/// Drops a `T` that a pool has.
///
/// # Safety
///
/// `data` is where [`make_in_pool`] has put it; the pool calls this once.
unsafe extern "C" fn drop_value<T>(data: *mut c_void) {
    // SAFETY: the cleanup was added once, with memory that holds a T.
    catch_panic((), || unsafe { ptr::drop_in_place(data.cast::<T>()) });
}

/// Moves a value into a pool's care, as [`make_in_pool`] does.
///
/// # Safety
///
/// As there.
pub(crate) unsafe fn give_to_pool<T>(pool: *mut ngx_pool_t, value: T) -> *mut T {
    // SAFETY: the caller's promise.
    unsafe { make_in_pool(pool, || value) }
}

unsafe extern "C" {
    // Defined in lib.rs, on top of everything; nginx's own modules name each other so too.
    static mut ngx_http_consul_module: ngx_module_t;
}

/// The module itself, as nginx has it.
#[inline]
pub(crate) fn module() -> *mut ngx_module_t {
    &raw mut ngx_http_consul_module
}

/// A module's configuration in one of the three lists of an http context.
///
/// # Safety
///
/// `list` is `main_conf`, `srv_conf` or `loc_conf` of a context of the running configuration and
/// `T` is what the module keeps there.
pub(crate) unsafe fn conf_of<T>(list: *mut *mut c_void, module: *const ngx_module_t) -> *mut T {
    // SAFETY: nginx has set ctx_index of every http module before a context exists.
    unsafe { (*list.add((*module).ctx_index)).cast() }
}

/// The http context a directive handler, or `init_main_conf`, runs in.
///
/// # Safety
///
/// `cf` is the one nginx passed to that function.
pub(crate) unsafe fn http_context<'a>(cf: *mut ngx_conf_t) -> &'a ngx_http_conf_ctx_t {
    // SAFETY: within http{}, `cf.ctx` is an ngx_http_conf_ctx_t that lives as long as the cycle.
    unsafe { &*(*cf).ctx.cast::<ngx_http_conf_ctx_t>() }
}

/// The headers of this name that a request has.
///
/// # Safety
///
/// `r` is a valid request that lives as long as `'a`.
pub(crate) unsafe fn headers<'a>(
    r: *mut ngx_http_request_t,
    name: &'static str,
) -> impl Iterator<Item = &'a [u8]> {
    // SAFETY: the caller's promise.
    let request: &'a Request = unsafe { Request::from_ngx_http_request(r) };
    let headers = request.headers_in_iterator();
    let of_name = move |(key, value): (&'a NgxStr, &'a NgxStr)| {
        key.as_bytes().eq_ignore_ascii_case(name.as_bytes()).then_some(value.as_bytes())
    };
    headers.filter_map(of_name)
}

/// nginx's own configuration of the location that a directive stands in.
///
/// # Safety
///
/// `cf` is the one nginx passed to the handler of a directive that is allowed in `location` only.
pub(crate) unsafe fn location(cf: *mut ngx_conf_t) -> *mut ngx_http_core_loc_conf_t {
    // SAFETY: the caller's promise; each location has a configuration of the core module.
    unsafe { conf_of(http_context(cf).loc_conf, &raw const ngx_http_core_module) }
}

/// A program or library that is loaded.
pub(crate) struct Object {
    base: *mut c_void,
    pub(crate) file: String,
}

impl PartialEq for Object {
    fn eq(&self, other: &Object) -> bool {
        ptr::eq(self.base, other.base)
    }
}

/// The program or library that a function is in.
pub(crate) fn object_of(function: *const c_void) -> Option<Object> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr() only looks the address up; all zeros are a valid Dl_info. The name it gives
    // lives as long as the object is loaded.
    unsafe {
        if libc::dladdr(function, info.as_mut_ptr()) == 0 {
            return None;
        }
        let info = info.assume_init();
        let name = if info.dli_fname.is_null() { c"" } else { CStr::from_ptr(info.dli_fname) };
        Some(Object { base: info.dli_fbase, file: name.to_string_lossy().into_owned() })
    }
}

/// The elements of an nginx array, null or not.
///
/// # Safety
///
/// The array is null or holds `T`s, and lives as long as `'a`.
pub(crate) unsafe fn elements<'a, T>(array: *mut ngx_array_t) -> &'a [T] {
    if array.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { (*array).as_slice() }
}
