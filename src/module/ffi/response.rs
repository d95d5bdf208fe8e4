//! Responses of our own handlers.

use std::ptr;

use nginx_sys::{
    NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_NOT_ALLOWED, ngx_alloc_chain_link, ngx_buf_t,
    ngx_chain_t, ngx_http_discard_request_body, ngx_http_output_filter, ngx_http_request_t,
    ngx_http_send_header, ngx_int_t, ngx_pcalloc,
};

use crate::ffi::{ERROR, OK, bits, give_to_pool, str_over};

/// Sends an answer whose parts are not empty; only its header to HEAD.
///
/// # Safety
///
/// `r` is a valid request whose header was not sent.
pub(crate) unsafe fn send(
    r: *mut ngx_http_request_t,
    status: u32,
    kind: &'static str,
    body: Vec<Vec<u8>>,
) -> ngx_int_t {
    // SAFETY: the request's pool lives until the response is sent, and so does what is taken of it.
    unsafe {
        if !add_header(r, "Cache-Control", "no-store") {
            return ERROR;
        }
        let headers = &mut (*r).headers_out;
        headers.status = status as _;
        headers.content_type = str_over(kind.as_bytes());
        headers.content_type_len = kind.split(';').next().map_or(0, str::len);
        // A body that isn't there has no length that HEAD could tell.
        if !body.is_empty() {
            headers.content_length_n = body.iter().map(Vec::len).sum::<usize>() as _;
        }
        let rc = ngx_http_send_header(r);
        if rc == ERROR || rc > 0 || bits::request::HEADER_ONLY.get(r) {
            return rc;
        }
        let Some(body) = give_to_pool((*r).pool, body).as_ref() else { return ERROR };
        let chain = chain_of(r, body);
        if chain.is_null() {
            return ERROR;
        }
        ngx_http_output_filter(r, chain)
    }
}

/// Buffers over the parts of a body; null if memory is short.
///
/// # Safety
///
/// `r` is a valid request; the body lives as long as its pool.
unsafe fn chain_of(r: *mut ngx_http_request_t, body: &[Vec<u8>]) -> *mut ngx_chain_t {
    let mut chain = ptr::null_mut::<ngx_chain_t>();
    for (n, part) in body.iter().enumerate().rev() {
        // SAFETY: what the pool gives is initialized before it is used.
        unsafe {
            let link = ngx_alloc_chain_link((*r).pool);
            let buf = ngx_pcalloc((*r).pool, size_of::<ngx_buf_t>()).cast::<ngx_buf_t>();
            if link.is_null() || buf.is_null() {
                return ptr::null_mut();
            }
            let bytes = part.as_ptr_range();
            (*buf).pos = bytes.start.cast_mut();
            (*buf).last = bytes.end.cast_mut();
            bits::buf::MEMORY.set(buf, true);
            if n + 1 == body.len() {
                bits::buf::LAST_BUF.set(buf, ptr::eq((*r).main, r));
                bits::buf::LAST_IN_CHAIN.set(buf, true);
            }
            link.write(ngx_chain_t { buf, next: chain });
            chain = link;
        }
    }
    chain
}

/// Adds a header to the response; `false` if memory is short.
///
/// # Safety
///
/// As of [`send`].
pub(crate) unsafe fn add_header(r: *mut ngx_http_request_t, name: &str, value: &str) -> bool {
    // SAFETY: the caller's promise.
    let request = unsafe { ngx::http::Request::from_ngx_http_request(r) };
    request.add_header_out(name, value).is_some()
}

/// Sees to it that a request wants to read something, and needs its body for nothing; else with what
/// its handler has to end.
///
/// # Safety
///
/// `r` is a valid request in the content phase.
pub(crate) unsafe fn only_read(r: *mut ngx_http_request_t) -> Result<(), ngx_int_t> {
    // SAFETY: the caller's promise.
    unsafe {
        if (*r).method & (NGX_HTTP_GET | NGX_HTTP_HEAD) as usize == 0 {
            return Err(NGX_HTTP_NOT_ALLOWED as ngx_int_t);
        }
        match ngx_http_discard_request_body(r) {
            OK => Ok(()),
            rc => Err(rc),
        }
    }
}
