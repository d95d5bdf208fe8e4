//! A request that a timer goes on with, while its worker does other things.
//!
//! Both kinds are nginx's own: in a phase, as `limit_req` has requests wait; and in the content
//! phase, as handlers do that wait for a body.

use std::mem::MaybeUninit;

use nginx_sys::{
    NGX_HTTP_SPECIAL_RESPONSE, ngx_event_t, ngx_handle_read_event, ngx_http_block_reading,
    ngx_http_core_run_phases, ngx_http_read_client_request_body, ngx_http_request_empty_handler,
    ngx_http_request_t, ngx_http_run_posted_requests, ngx_http_test_reading, ngx_int_t, ngx_msec_t,
};

use super::bits;
use super::catch_panic::catch_panic;
use super::codes::{INTERNAL_SERVER_ERROR, OK};
use super::event::{self, add_timer, del_timer};
use super::pool::make_in_pool;
use super::request::Request;

/// What a suspended request waits for.
pub(crate) trait Work {
    /// The time has come. A panic ends the request with 500.
    fn go_on(&self, r: Request<'_>) -> Next;
}

/// What becomes of a suspended request.
pub(crate) enum Next {
    /// In so many milliseconds the work goes on.
    Wait(ngx_msec_t),
    /// The request goes on with the handler of the phase that has suspended it.
    RunPhases,
    /// The request ends, as with what a handler returns.
    Finalize(ngx_int_t),
}

/// In the request's pool, so that it ends with the request at the latest.
struct Suspended<'r, W> {
    event: MaybeUninit<ngx_event_t>,
    request: Request<'r>,
    /// Apart, since a pool's memory is not aligned for all that it may have.
    work: Box<W>,
}

impl<W> Drop for Suspended<'_, W> {
    fn drop(&mut self) {
        // SAFETY: make() has made the event, where it still is.
        unsafe { del_timer(self.event.as_mut_ptr()) };
    }
}

/// Has a request wait in a phase whose handler then returns `NGX_AGAIN`; `None` if that can't be.
pub(crate) fn in_phase<'r, W: Work + 'r>(
    r: Request<'r>,
    work: W,
    delay: ngx_msec_t,
) -> Option<&'r W> {
    let (work, event) = make(r, work)?;
    // SAFETY: the client's connection has its read event, both of this worker; the handler is the
    // one that nginx has for this.
    unsafe {
        let read = (*r.connection()).read;
        if bits::event::READY.get(read) {
            // The client may have gone already, which epoll doesn't say twice.
            event::post(read);
        } else if ngx_handle_read_event(read, 0) != OK {
            return None;
        }
        (*r.as_ptr()).read_event_handler = Some(ngx_http_test_reading);
    }
    // SAFETY: the event was just made.
    unsafe { start(r, event, delay) };
    Some(work)
}

/// Has a request wait whose content handler then returns `NGX_DONE`; else with what that has to
/// return. The request's body was discarded, its header not sent.
pub(crate) fn in_content<'r, W: Work + 'r>(
    r: Request<'r>,
    work: W,
    delay: ngx_msec_t,
) -> Result<(), ngx_int_t> {
    let (_, event) = make(r, work).ok_or(INTERNAL_SERVER_ERROR)?;
    // There is no body left to read. What is wanted of this is that it counts the request as in use,
    // which ngx_http_finalize_request() takes back.
    // SAFETY: the request is in its content phase.
    let rc = unsafe { ngx_http_read_client_request_body(r.as_ptr(), Some(with_body)) };
    if rc >= NGX_HTTP_SPECIAL_RESPONSE as ngx_int_t {
        return Err(rc);
    }
    // SAFETY: the event was just made.
    unsafe { start(r, event, delay) };
    Ok(())
}

extern "C" fn with_body(_: *mut ngx_http_request_t) {}

/// The work and its event, not started; `None` if memory is short.
fn make<'r, W: Work + 'r>(r: Request<'r>, work: W) -> Option<(&'r W, *mut ngx_event_t)> {
    // SAFETY: the request's pool is there as long as 'r, and drops this before its memory goes;
    // until then it stays where it is. The event is made before anything can drop it.
    unsafe {
        let (event, work) = (MaybeUninit::uninit(), Box::new(work));
        let suspended = make_in_pool(r.pool(), || Suspended { event, request: r, work });
        if suspended.is_null() {
            return None;
        }
        let event = (&raw mut (*suspended).event).cast::<ngx_event_t>();
        event::init(event, run::<W>, suspended.cast(), r.log());
        Some((&(*suspended).work, event))
    }
}

/// Starts the timer, and keeps events of the connection from running the phases.
///
/// # Safety
///
/// The event is one that [`make`] has made for this request.
unsafe fn start(r: Request<'_>, event: *mut ngx_event_t, delay: ngx_msec_t) {
    // SAFETY: the request is there, and the event as long as it.
    unsafe {
        (*r.as_ptr()).write_event_handler = Some(ngx_http_request_empty_handler);
        add_timer(event, delay);
    }
}

/// # Safety
///
/// nginx calls it in the event loop, with the event of a [`Suspended`].
unsafe extern "C" fn run<W: Work>(event: *mut ngx_event_t) {
    // SAFETY: make() has set `data`; the request has not ended, or its timer would be gone.
    // Nothing refers to the work mutably.
    let (r, work) = unsafe {
        let suspended = (*event).data.cast::<Suspended<'_, W>>();
        ((*suspended).request, &(*suspended).work)
    };
    let connection = r.connection();
    match catch_panic(Next::Finalize(INTERNAL_SERVER_ERROR), || work.go_on(r)) {
        // SAFETY: the request has not ended, and so the event is there.
        Next::Wait(delay) => return unsafe { add_timer(event, delay) },
        // SAFETY: the request waits in a phase.
        Next::RunPhases => unsafe { run_phases(r) },
        // SAFETY: the request is in use by this, and nothing of it is used from here on.
        Next::Finalize(rc) => unsafe { r.finalize(rc) },
    }
    // SAFETY: as nginx does after its own handlers. A connection that was closed says so, in memory
    // that stays with the worker.
    unsafe { ngx_http_run_posted_requests(connection) };
}

/// # Safety
///
/// The request waits in a phase; nothing of it is used any more.
unsafe fn run_phases(r: Request<'_>) {
    // SAFETY: the client's connection is there as long as the request; the handlers are those that
    // nginx has for this.
    unsafe {
        if ngx_handle_read_event((*r.connection()).read, 0) != OK {
            return r.finalize(INTERNAL_SERVER_ERROR);
        }
        (*r.as_ptr()).read_event_handler = Some(ngx_http_block_reading);
        (*r.as_ptr()).write_event_handler = Some(ngx_http_core_run_phases);
        ngx_http_core_run_phases(r.as_ptr());
    }
}
