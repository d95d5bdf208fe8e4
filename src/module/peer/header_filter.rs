//! A header filter, by which it is known when nginx accepts a response header. `peer.free` comes when
//! the response has ended: hours later, for a download or a WebSocket.

use std::ffi::c_void;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use std::{mem, ptr};

use nginx_sys::{
    ngx_http_output_header_filter_pt, ngx_http_request_t, ngx_http_top_header_filter, ngx_int_t,
    ngx_peer_connection_t, ngx_uint_t,
};

use super::attempt::Attempt;
use super::attempt::callbacks::ngx_http_upstream_free_consul_peer;
use super::request_peer;
use super::slot::Slot;
use crate::ffi::{ERROR, catch_panic};

type Filter = unsafe extern "C" fn(*mut ngx_http_request_t) -> ngx_int_t;

/// The filter that comes next, of the configuration that was read last; null before the first.
static NEXT: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Puts the filter before those of the modules that were loaded earlier.
///
/// # Safety
///
/// Called in the postconfiguration of the module, where nginx's modules do the same.
pub(crate) unsafe fn install() {
    // SAFETY: the caller's promise: the master reads one configuration at a time, in one thread.
    let next = unsafe { ngx_http_top_header_filter };
    NEXT.store(next.map_or(ptr::null_mut(), |next| next as *mut ()), Relaxed);
    // SAFETY: as above.
    unsafe { ngx_http_top_header_filter = Some(ngx_http_consul_header_filter) };
}

unsafe extern "C" fn ngx_http_consul_header_filter(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx passes a request whose header is about to be sent.
    catch_panic((), || unsafe { note_header(r) });
    // SAFETY: what install() has stored, null or a filter.
    let next: ngx_http_output_header_filter_pt =
        unsafe { mem::transmute::<*mut (), Option<Filter>>(NEXT.load(Relaxed)) };
    // SAFETY: nginx's own filter is always the last one.
    next.map_or(ERROR, |next| unsafe { next(r) })
}

/// # Safety
///
/// `r` is a valid request, and no callback of a balancer is running for it.
#[inline]
unsafe fn note_header(r: *mut ngx_http_request_t) {
    // SAFETY: the caller's promise. A request that is passed on has its upstream, and that the block
    // it was sent to; one made for an address has no configuration of modules. What has one of our
    // callbacks has the data of it.
    unsafe {
        let Some(upstream) = (*r).upstream.as_ref() else { return };
        let (peer, block) = (&upstream.peer, upstream.upstream);
        if peer.free.is_some_and(frees_attempt) {
            if let Some(attempt) = peer.data.cast::<Attempt>().as_mut() {
                attempt.note_header();
            }
        } else if !block.is_null() && Slot::find(block).is_some_and(Slot::follows_consul) {
            // Others have put callbacks around ours.
            request_peer::note_header(r);
        }
    }
}

type Free = unsafe extern "C" fn(*mut ngx_peer_connection_t, *mut c_void, ngx_uint_t);
const FREE: Free = ngx_http_upstream_free_consul_peer;

/// Whether the `peer.data` of this callback is an attempt.
#[inline]
fn frees_attempt(free: Free) -> bool {
    ptr::fn_addr_eq(free, FREE)
}
