//! A request, as our handlers use it.

use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use nginx_sys::{
    NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_NOT_ALLOWED, ngx_connection_t, ngx_http_core_loc_conf_t,
    ngx_http_core_module, ngx_http_discard_request_body, ngx_http_finalize_request,
    ngx_http_request_t, ngx_int_t, ngx_module_t, ngx_pool_t, off_t,
};

use super::codes::OK;
use super::log::Log;
use super::module::{HttpLocConf, HttpMainConf, conf_of, module};
use super::pool::give_to_pool;
use super::text::bytes;

/// A request that nginx has passed to one of our handlers. As with nginx's own pointer, there can be
/// several, on one thread.
#[derive(Clone, Copy)]
pub(crate) struct Request<'r> {
    r: NonNull<ngx_http_request_t>,
    life: PhantomData<&'r ngx_http_request_t>,
}

impl<'r> Request<'r> {
    /// # Safety
    ///
    /// `r` is what nginx passes to a handler of a request, in the worker that has it. Neither it nor
    /// its pool is gone as long as `'r`.
    pub(crate) unsafe fn new(r: *mut ngx_http_request_t) -> Request<'r> {
        // SAFETY: nginx passes no null (the caller's promise).
        Request { r: unsafe { NonNull::new_unchecked(r) }, life: PhantomData }
    }

    pub(crate) fn as_ptr(self) -> *mut ngx_http_request_t {
        self.r.as_ptr()
    }

    /// Not a subrequest.
    pub(crate) fn is_main(self) -> bool {
        // SAFETY: the request is there as long as 'r (the promise of new()).
        unsafe { (*self.as_ptr()).main == self.as_ptr() }
    }

    /// The client's connection, which outlives the request.
    pub(crate) fn connection(self) -> *mut ngx_connection_t {
        // SAFETY: the request is there as long as 'r (the promise of new()).
        unsafe { (*self.as_ptr()).connection }
    }

    /// The connection's.
    pub(crate) fn log(self) -> Log<'r> {
        // SAFETY: a request's connection and its log are there as long as the request.
        unsafe { Log::new((*self.connection()).log) }
    }

    pub(crate) fn pool(self) -> *mut ngx_pool_t {
        // SAFETY: the request is there as long as 'r.
        unsafe { (*self.as_ptr()).pool }
    }

    /// Keeps a value as long as the request's pool; `None` if memory is short.
    pub(crate) fn keep<T: 'r>(self, value: T) -> Option<&'r T> {
        // SAFETY: the pool is there as long as 'r, and so is what it has.
        unsafe { give_to_pool(self.pool(), value).as_ref() }
    }

    /// The path, decoded.
    pub(crate) fn uri(self) -> &'r [u8] {
        // SAFETY: it lies in the request's pool or header, which are not written once it is parsed.
        unsafe { bytes(&(*self.as_ptr()).uri) }
    }

    /// What follows the `?`.
    pub(crate) fn args(self) -> &'r [u8] {
        // SAFETY: as in uri().
        unsafe { bytes(&(*self.as_ptr()).args) }
    }

    /// `NGX_HTTP_GET` and the like.
    pub(crate) fn method(self) -> u32 {
        // SAFETY: the request is there as long as 'r.
        unsafe { (*self.as_ptr()).method as u32 }
    }

    /// Of its body, as the header says; -1 if that is not said.
    pub(crate) fn content_length(self) -> off_t {
        // SAFETY: the request is there as long as 'r.
        unsafe { (*self.as_ptr()).headers_in.content_length_n }
    }

    /// The headers of this name.
    pub(crate) fn headers(self, name: &str) -> impl Iterator<Item = &'r [u8]> {
        // SAFETY: the request is there as long as 'r; its headers are not written once they are read.
        let request: &'r ngx::http::Request =
            unsafe { ngx::http::Request::from_ngx_http_request(self.as_ptr()) };
        let headers = request.headers_in_iterator();
        headers.filter_map(move |(key, value)| {
            let is_named = key.as_bytes().eq_ignore_ascii_case(name.as_bytes());
            is_named.then_some(value.as_bytes())
        })
    }

    /// The module's configuration of `http`.
    pub(crate) fn main_conf<T: HttpMainConf>(self) -> &'r T {
        // SAFETY: the configuration lives as long as its requests, and is not written once it is
        // read. The element is a T (the promise of HttpMainConf).
        unsafe { &*conf_of((*self.as_ptr()).main_conf, module()) }
    }

    /// The module's configuration of the location that the request is in.
    pub(crate) fn loc_conf<T: HttpLocConf>(self) -> &'r T {
        // SAFETY: as in main_conf().
        unsafe { &*conf_of((*self.as_ptr()).loc_conf, module()) }
    }

    /// Another module's configuration of that location.
    ///
    /// # Safety
    ///
    /// It is an http module in use, whose configuration of a location begins with a `T`.
    pub(crate) unsafe fn loc_conf_of<T>(self, module: *const ngx_module_t) -> Option<&'r T> {
        // SAFETY: as in main_conf(); a module may have no configuration.
        unsafe { conf_of::<T>((*self.as_ptr()).loc_conf, module).as_ref() }
    }

    /// What [`Request::set_context`] has set, unless nginx has redirected the request since.
    ///
    /// # Safety
    ///
    /// It was a `T`.
    pub(crate) unsafe fn context<T>(self) -> Option<&'r T> {
        // SAFETY: a request has an element for each module, null or what the module has set.
        unsafe { conf_of::<T>((*self.as_ptr()).ctx, module()).as_ref() }
    }

    /// Sets what the module has of the request.
    pub(crate) fn set_context<T>(self, value: &'r T) {
        // SAFETY: a request has an element for each module, whose index is set.
        unsafe {
            let context = (*self.as_ptr()).ctx.add((*module()).ctx_index);
            *context = ptr::from_ref(value).cast_mut().cast();
        }
    }

    /// nginx's own configuration of that location.
    pub(crate) fn location(self) -> &'r ngx_http_core_loc_conf_t {
        // SAFETY: as in main_conf(); each location has a configuration of the core module.
        unsafe { &*conf_of((*self.as_ptr()).loc_conf, &raw const ngx_http_core_module) }
    }

    /// Sees to it that the request wants to read something, and needs its body for nothing; else
    /// with what its handler has to end.
    pub(crate) fn only_read(self) -> Result<(), ngx_int_t> {
        match self.method() {
            NGX_HTTP_GET | NGX_HTTP_HEAD => self.discard_body(),
            _ => Err(NGX_HTTP_NOT_ALLOWED as ngx_int_t),
        }
    }

    /// Has nginx discard the body; else with what the handler has to end.
    pub(crate) fn discard_body(self) -> Result<(), ngx_int_t> {
        // SAFETY: the request is there; nginx frees none in this.
        match unsafe { ngx_http_discard_request_body(self.as_ptr()) } {
            OK => Ok(()),
            rc => Err(rc),
        }
    }

    /// Ends a request that its handler has gone on with after it had returned.
    ///
    /// # Safety
    ///
    /// The request is counted as in use for this, and nothing of it is used any more.
    pub(crate) unsafe fn finalize(self, rc: ngx_int_t) {
        // SAFETY: the caller's promise is what nginx asks of a handler.
        unsafe { ngx_http_finalize_request(self.as_ptr(), rc) };
    }
}
