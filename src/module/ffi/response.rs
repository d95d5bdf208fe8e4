//! Responses of our own handlers.

use std::ops::Deref;
use std::ptr;

use nginx_sys::{
    ngx_alloc_chain_link, ngx_buf_t, ngx_chain_t, ngx_http_output_filter, ngx_http_send_header,
    ngx_int_t, ngx_pcalloc,
};

use super::bits::{buf, request};
use super::codes::ERROR;
use super::request::Request;
use super::text::str_over;

/// Sends a response whose parts are not empty; only its header to HEAD. The request's header was
/// not sent before. The body stays as long as the request, and nobody writes to it: nginx copies what
/// its filters change.
pub(crate) fn send<'r, B: AsRef<[u8]> + 'r>(
    r: Request<'r>,
    status: u32,
    kind: &'static str,
    body: impl Deref<Target = [B]> + 'r,
) -> ngx_int_t {
    if !add_header(r, "Cache-Control", "no-store") {
        return ERROR;
    }
    // SAFETY: the request is there; nothing else refers to what its response is to be.
    let headers = unsafe { &mut (*r.as_ptr()).headers_out };
    headers.status = status as _;
    headers.content_type = str_over(kind.as_bytes());
    headers.content_type_len = kind.split(';').next().map_or(0, str::len);
    // Without a body, the length that HEAD would be told is not known.
    if !body.is_empty() {
        headers.content_length_n = body.iter().map(|part| part.as_ref().len()).sum::<usize>() as _;
    }
    // SAFETY: the request is there, and its response is set.
    let rc = unsafe { ngx_http_send_header(r.as_ptr()) };
    // SAFETY: the request is nginx's.
    if rc == ERROR || rc > 0 || unsafe { request::HEADER_ONLY.get(r.as_ptr()) } {
        return rc;
    }
    let Some(body) = r.keep(body) else { return ERROR };
    let Some(chain) = chain_of(r, body) else { return ERROR };
    // SAFETY: the chain's buffers lie in the request's pool, and so does what they are over.
    unsafe { ngx_http_output_filter(r.as_ptr(), chain) }
}

/// Buffers over the parts of a body; `None` if memory is short.
fn chain_of<'r>(r: Request<'r>, body: &'r [impl AsRef<[u8]>]) -> Option<*mut ngx_chain_t> {
    let mut chain = ptr::null_mut();
    for (n, part) in body.iter().enumerate().rev() {
        let buf = buffer(r, part.as_ref(), n + 1 == body.len())?;
        // SAFETY: the request has its pool; there is room for a link, or null.
        unsafe {
            let link = ngx_alloc_chain_link(r.pool());
            if link.is_null() {
                return None;
            }
            link.write(ngx_chain_t { buf, next: chain });
            chain = link;
        }
    }
    Some(chain)
}

/// A buffer over bytes.
fn buffer<'r>(r: Request<'r>, bytes: &'r [u8], is_last: bool) -> Option<*mut ngx_buf_t> {
    // SAFETY: the request has its pool, whose memory comes zeroed, which is a valid buffer, or null.
    unsafe {
        let buffer = ngx_pcalloc(r.pool(), size_of::<ngx_buf_t>()).cast::<ngx_buf_t>();
        if buffer.is_null() {
            return None;
        }
        let bytes = bytes.as_ptr_range();
        (*buffer).pos = bytes.start.cast_mut();
        (*buffer).last = bytes.end.cast_mut();
        buf::MEMORY.set(buffer, true);
        buf::LAST_BUF.set(buffer, is_last && r.is_main());
        buf::LAST_IN_CHAIN.set(buffer, is_last);
        Some(buffer)
    }
}

/// Adds a header to the response; `false` if memory is short.
pub(crate) fn add_header(r: Request<'_>, name: &str, value: &str) -> bool {
    // SAFETY: the request is there, and nothing else refers to the response's headers.
    let request = unsafe { ngx::http::Request::from_ngx_http_request(r.as_ptr()) };
    request.add_header_out(name, value).is_some()
}
