//! Answers, those that take several turns of the event loop among them.

use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

use nginx_consul_core::status::Format;
use nginx_sys::{
    NGX_DONE, NGX_HTTP_HEAD, NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_OK,
    NGX_HTTP_SPECIAL_RESPONSE, ngx_add_timer, ngx_alloc_chain_link, ngx_buf_t, ngx_chain_t,
    ngx_del_timer, ngx_event_t, ngx_http_finalize_request, ngx_http_output_filter,
    ngx_http_read_client_request_body, ngx_http_request_empty_handler, ngx_http_request_t,
    ngx_http_run_posted_requests, ngx_http_send_header, ngx_int_t, ngx_msec_t, ngx_pcalloc,
};

use super::collect::Walk;
use crate::ffi::{ERROR, fence, give_to_pool, str_over};

/// How long a turn of the event loop may go on with a status.
const TURN: Duration = Duration::from_millis(2);
/// Milliseconds until the next turn: whatever else is due comes first.
const PAUSE: ngx_msec_t = 1;

/// A status that is written over several turns.
struct Writing {
    request: *mut ngx_http_request_t,
    /// `None` once it is finished.
    walk: Option<Walk>,
    format: Format,
    timer: ngx_event_t,
}

/// Answers with the status, now or over the next turns.
///
/// # Safety
///
/// `r` is a valid request in the content phase, whose body was discarded and whose header was not
/// sent.
pub(super) unsafe fn answer(
    r: *mut ngx_http_request_t,
    mut walk: Walk,
    format: Format,
) -> ngx_int_t {
    // SAFETY: the caller's promise.
    unsafe {
        if walk.go_on(TURN) {
            return send(r, NGX_HTTP_OK, format.content_type(), walk.finish());
        }
        let timer = MaybeUninit::zeroed().assume_init();
        let writing = Box::new(Writing { request: r, walk: Some(walk), format, timer });
        let Some(writing) = give_to_pool((*r).pool, writing).as_mut() else { return ERROR };
        let writing = &mut **writing;
        writing.timer.handler = Some(go_on);
        writing.timer.log = (*(*r).connection).log;
        writing.timer.data = ptr::from_mut(writing).cast();
        // There is no body left to read: this counts the request as in use, which its end takes back.
        // The count itself is a bit field, which bindgen misplaces for nginx 1.30.
        let rc = ngx_http_read_client_request_body(r, Some(nothing));
        if rc >= NGX_HTTP_SPECIAL_RESPONSE as ngx_int_t {
            return rc;
        }
        // Not the phases again.
        (*r).write_event_handler = Some(ngx_http_request_empty_handler);
        ngx_add_timer(&mut writing.timer, PAUSE);
        NGX_DONE as ngx_int_t
    }
}

extern "C" fn nothing(_: *mut ngx_http_request_t) {}

/// The next turn.
extern "C" fn go_on(event: *mut ngx_event_t) {
    // SAFETY: set in answer(); the request has not ended, or the timer would be gone.
    let writing = unsafe { &mut *(*event).data.cast::<Writing>() };
    let r = writing.request;
    let rc = fence(Some(NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t), || {
        let mut walk = writing.walk.take()?;
        // SAFETY: as above.
        unsafe {
            if walk.go_on(TURN) {
                return Some(send(r, NGX_HTTP_OK, writing.format.content_type(), walk.finish()));
            }
            writing.walk = Some(walk);
            ngx_add_timer(&mut writing.timer, PAUSE);
        }
        None
    });
    if let Some(rc) = rc {
        // SAFETY: the request was counted as in use; nothing of it is touched after its end.
        unsafe {
            let connection = (*r).connection;
            ngx_http_finalize_request(r, rc);
            ngx_http_run_posted_requests(connection);
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if self.timer.timer_set() != 0 {
            // SAFETY: set by ngx_add_timer(), in this process.
            unsafe { ngx_del_timer(&mut self.timer) };
        }
    }
}

/// Sends an answer whose parts are not empty; only its header to HEAD.
///
/// # Safety
///
/// `r` is a valid request whose header was not sent.
pub(super) unsafe fn send(
    r: *mut ngx_http_request_t,
    status: u32,
    kind: &'static str,
    body: Vec<Vec<u8>>,
) -> ngx_int_t {
    // SAFETY: the request's pool lives until the response is sent, and so does what is taken of it.
    unsafe {
        let request = ngx::http::Request::from_ngx_http_request(r);
        if request.add_header_out("Cache-Control", "no-store").is_none() {
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
        // Not `header_only`: nginx 1.30 has a 16-bit field before the request's bit fields, and
        // bindgen misplaces those by it.
        if rc == ERROR || rc > 0 || (*r).method & NGX_HTTP_HEAD as usize != 0 {
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
            (*buf).set_memory(1);
            if n + 1 == body.len() {
                (*buf).set_last_buf(u32::from(ptr::eq((*r).main, r)));
                (*buf).set_last_in_chain(1);
            }
            link.write(ngx_chain_t { buf, next: chain });
            chain = link;
        }
    }
    chain
}
