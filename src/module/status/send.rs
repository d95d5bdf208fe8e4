//! Answers, those that take several turns of the event loop among them.

use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

use nginx_consul_core::status::Format;
use nginx_sys::{
    NGX_DONE, NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_OK, NGX_HTTP_SPECIAL_RESPONSE, ngx_event_t,
    ngx_http_finalize_request, ngx_http_read_client_request_body, ngx_http_request_empty_handler,
    ngx_http_request_t, ngx_http_run_posted_requests, ngx_int_t, ngx_msec_t,
};

use super::collect::Walk;
use crate::ffi::response::send;
use crate::ffi::{ERROR, catch_panic, event, give_to_pool};

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
        // There is no body left to read. What is wanted of this is that it counts the request as in
        // use, which ngx_http_finalize_request() takes back.
        let rc = ngx_http_read_client_request_body(r, Some(nothing));
        if rc >= NGX_HTTP_SPECIAL_RESPONSE as ngx_int_t {
            return rc;
        }
        // Not the phases again.
        (*r).write_event_handler = Some(ngx_http_request_empty_handler);
        event::add_timer(&mut writing.timer, PAUSE);
        NGX_DONE as ngx_int_t
    }
}

extern "C" fn nothing(_: *mut ngx_http_request_t) {}

/// The next turn.
extern "C" fn go_on(event: *mut ngx_event_t) {
    // SAFETY: set in answer(); the request has not ended, or the timer would be gone.
    let writing = unsafe { &mut *(*event).data.cast::<Writing>() };
    let r = writing.request;
    let rc = catch_panic(Some(NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t), || {
        let mut walk = writing.walk.take()?;
        // SAFETY: as above.
        unsafe {
            if walk.go_on(TURN) {
                return Some(send(r, NGX_HTTP_OK, writing.format.content_type(), walk.finish()));
            }
            writing.walk = Some(walk);
            event::add_timer(&mut writing.timer, PAUSE);
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
        // SAFETY: made of zeros, and set by add_timer() in this process.
        unsafe { event::del_timer(&mut self.timer) };
    }
}
