//! Callbacks around those of a balancer that knows nothing of idle connections: a method of nginx's,
//! or nginx's round robin over `server` lines.

use std::ffi::c_void;
use std::ptr::NonNull;

use nginx_sys::{
    ngx_http_request_t, ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_palloc, ngx_peer_connection_t,
    ngx_uint_t,
};

use super::super::delegate::Delegate;
use super::super::stock::{ngx_http_upstream_init_stock_peer, picked_by};
use super::kept::Kept;
use crate::conf;
use crate::ffi::{ERROR, OK, fence};
use crate::session;

/// `peer.data`. Nothing of it has to be given back.
struct KeptDelegate {
    picker: Delegate,
    kept: Kept,
}

/// `peer.init` of a block with a method of nginx's.
pub(in super::super) extern "C" fn ngx_http_upstream_init_kept_stock_peer(
    r: *mut ngx_http_request_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    // SAFETY: nginx passes a request with an upstream, and a block of the running configuration,
    // which lives as long as the worker.
    fence(ERROR, || unsafe { init_around(r, us, || ngx_http_upstream_init_stock_peer(r, us)) })
}

/// Puts callbacks around those that `init`, a `peer.init`, sets.
///
/// # Safety
///
/// `r` is a request with an upstream, and `us` a block with `consul_keepalive` of the running
/// configuration; what `init` sets lives as long as the request.
pub(in super::super) unsafe fn init_around(
    r: *mut ngx_http_request_t,
    us: *mut ngx_http_upstream_srv_conf_t,
    init: impl FnOnce() -> ngx_int_t,
) -> ngx_int_t {
    const { assert!(align_of::<KeptDelegate>() <= nginx_sys::NGX_ALIGNMENT) };
    // SAFETY: the caller's promise.
    unsafe {
        let Some(keepalive) = &conf::srv_conf(us).keepalive else { return ERROR };
        let place = ngx_palloc((*r).pool, size_of::<KeptDelegate>()).cast::<KeptDelegate>();
        let (Some(place), Some((picker, _))) = (NonNull::new(place), Delegate::take(r, init))
        else {
            return ERROR;
        };
        let peer = &mut (*(*r).upstream).peer;
        if picker.wants_notes() {
            peer.notify = Some(notify);
        }
        place.write(KeptDelegate { picker, kept: Kept::new(keepalive, r) });
        peer.data = place.as_ptr().cast();
        peer.get = Some(ngx_http_upstream_get_kept_stock_peer);
        peer.free = Some(ngx_http_upstream_free_kept_stock_peer);
        session::install(peer, set_session, save_session);
    }
    OK
}

/// # Safety
///
/// `data` is the `peer.data` of a request that [`init_around`] set; nginx runs one callback of a
/// request at a time.
unsafe fn attempt<'a>(data: *mut c_void) -> &'a mut KeptDelegate {
    // SAFETY: the caller's promise; the request's pool has the attempt.
    unsafe { &mut *data.cast::<KeptDelegate>() }
}

extern "C" fn ngx_http_upstream_get_kept_stock_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes our data, and the request's connection, which the picker points at
        // a peer.
        unsafe {
            let KeptDelegate { picker, kept } = attempt(data);
            kept.forget();
            match picker.get(pc) {
                OK => kept.take(&mut *pc, &picked_by(picker)),
                picked => picked,
            }
        }
    })
}

extern "C" fn ngx_http_upstream_free_kept_stock_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
    state: ngx_uint_t,
) {
    fence((), || {
        // SAFETY: nginx passes our data, and the request's connection.
        unsafe {
            let KeptDelegate { picker, kept } = attempt(data);
            kept.put(&mut *pc, state, &picked_by(picker));
            picker.free(pc, state);
        }
    });
}

extern "C" fn set_session(pc: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    // SAFETY: nginx passes our data.
    fence(ERROR, || unsafe { attempt(data) }.picker.set_session(pc))
}

extern "C" fn save_session(pc: *mut ngx_peer_connection_t, data: *mut c_void) {
    // SAFETY: nginx passes our data.
    fence((), || unsafe { attempt(data) }.picker.save_session(pc));
}

unsafe extern "C" fn notify(pc: *mut ngx_peer_connection_t, data: *mut c_void, kind: ngx_uint_t) {
    // SAFETY: nginx passes our data.
    fence((), || unsafe { attempt(data) }.picker.notify(pc, kind));
}
