//! Responses.

use std::ptr;

use crate::ffi::{ERROR, OK, str_over};
use nginx_consul_core::control::Refusal;
use nginx_sys::{
    NGX_HTTP_HEAD, ngx_buf_t, ngx_chain_t, ngx_http_output_filter, ngx_http_request_t,
    ngx_http_send_header, ngx_int_t, ngx_list_push, ngx_palloc, ngx_pcalloc, ngx_table_elt_t,
};

/// What a request that is granted is answered.
pub(super) struct Answer {
    pub(super) status: u16,
    /// JSON.
    pub(super) body: Vec<u8>,
}

/// Sends the response.
///
/// # Safety
///
/// `r` is a valid request whose header was not sent.
pub(super) unsafe fn send(
    r: *mut ngx_http_request_t,
    answer: Result<Answer, Refusal>,
) -> ngx_int_t {
    let (answer, allow) = match answer {
        Ok(answer) => (answer, None),
        Err(refusal) => {
            let answer = Answer { status: refusal.status, body: refusal.to_json() };
            (answer, refusal.allow)
        }
    };
    let Answer { status, body } = answer;
    // SAFETY: the request's pool lives until the response is sent, and so does what is taken of it.
    unsafe {
        let headers = &mut (*r).headers_out;
        headers.status = usize::from(status);
        headers.content_length_n = body.len() as _;
        headers.content_type = str_over(b"application/json");
        headers.content_type_len = headers.content_type.len;
        let allowed = allow.is_none_or(|allow| add_header(r, b"Allow", allow.as_bytes()));
        if !allowed || !add_header(r, b"Cache-Control", b"no-store") {
            return ERROR;
        }
        let rc = ngx_http_send_header(r);
        // Not `header_only`: see `status`.
        if rc == ERROR || rc > OK || (*r).method & NGX_HTTP_HEAD as usize != 0 {
            return rc;
        }
        let data = ngx_palloc((*r).pool, body.len()).cast::<u8>();
        let buf = ngx_pcalloc((*r).pool, size_of::<ngx_buf_t>()).cast::<ngx_buf_t>();
        if data.is_null() || buf.is_null() {
            return ERROR;
        }
        ptr::copy_nonoverlapping(body.as_ptr(), data, body.len());
        (*buf).pos = data;
        (*buf).last = data.add(body.len());
        (*buf).set_temporary(1);
        (*buf).set_last_buf(u32::from(ptr::eq((*r).main, r)));
        (*buf).set_last_in_chain(1);
        let mut chain = ngx_chain_t { buf, next: ptr::null_mut() };
        ngx_http_output_filter(r, &mut chain)
    }
}

/// `false` if memory is short.
///
/// # Safety
///
/// As of [`send`].
unsafe fn add_header(
    r: *mut ngx_http_request_t,
    name: &'static [u8],
    value: &'static [u8],
) -> bool {
    // SAFETY: the caller's promise; all zeros are a valid element.
    unsafe {
        let headers = &raw mut (*r).headers_out.headers;
        let Some(header) = ngx_list_push(headers).cast::<ngx_table_elt_t>().as_mut() else {
            return false;
        };
        ptr::write_bytes(header, 0, 1);
        header.hash = 1;
        header.key = str_over(name);
        header.value = str_over(value);
        true
    }
}
