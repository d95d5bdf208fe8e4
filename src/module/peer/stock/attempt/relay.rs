//! What nginx asks of an attempt's method, handed on.

use std::ffi::c_void;

use nginx_sys::{ngx_int_t, ngx_peer_connection_t, ngx_uint_t};

use super::attempt;
use crate::ffi::{ERROR, OK, fence};

pub(super) extern "C" fn set_session(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes our data.
        let attempt = unsafe { attempt(data) };
        attempt.delegate.as_ref().map_or(OK, |delegate| delegate.set_session(pc))
    })
}

pub(super) extern "C" fn save_session(pc: *mut ngx_peer_connection_t, data: *mut c_void) {
    fence((), || {
        // SAFETY: nginx passes our data.
        if let Some(delegate) = &unsafe { attempt(data) }.delegate {
            delegate.save_session(pc);
        }
    });
}

/// # Safety
///
/// `data` is the `peer.data` of a request that this was set for.
pub(super) unsafe extern "C" fn notify(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
    kind: ngx_uint_t,
) {
    fence((), || {
        // SAFETY: nginx passes our data.
        if let Some(delegate) = &unsafe { attempt(data) }.delegate {
            delegate.notify(pc, kind);
        }
    });
}
