//! The same in a block with `consul_keepalive`. One function of nginx's does it all: with callbacks
//! around callbacks, as for the methods of others, a request would cost 1 % more.

use std::ffi::c_void;

use nginx_sys::{ngx_int_t, ngx_peer_connection_t, ngx_uint_t};

use super::super::keepalive::Kept;
use super::Attempt;
use crate::ffi::{ERROR, OK, fence};

/// `peer.data`. What an attempt is taken for by whoever finds it begins with one.
#[repr(C)]
pub(in super::super) struct KeptAttempt {
    attempt: Attempt,
    kept: Kept,
}

impl KeptAttempt {
    #[inline(always)]
    pub(in super::super) fn new(attempt: Attempt, kept: Kept) -> KeptAttempt {
        // Who drops it drops the attempt only.
        const { assert!(!std::mem::needs_drop::<Kept>()) };
        KeptAttempt { attempt, kept }
    }
}

/// # Safety
///
/// `data` is the `peer.data` of a request that
/// [`ngx_http_upstream_init_kept_peer`](super::super::ngx_http_upstream_init_kept_peer) set; nginx
/// runs one callback of a request at a time.
unsafe fn attempt<'a>(data: *mut c_void) -> &'a mut KeptAttempt {
    // SAFETY: the caller's promise; the request's pool has the attempt.
    unsafe { &mut *data.cast::<KeptAttempt>() }
}

pub(in super::super) extern "C" fn ngx_http_upstream_get_kept_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes our data, and the request's connection.
        unsafe {
            let KeptAttempt { attempt, kept } = attempt(data);
            kept.forget();
            match attempt.get(pc) {
                OK => kept.take(&mut *pc, &attempt.with()),
                picked => picked,
            }
        }
    })
}

pub(in super::super) extern "C" fn ngx_http_upstream_free_kept_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
    state: ngx_uint_t,
) {
    fence((), || {
        // SAFETY: as above.
        unsafe {
            let KeptAttempt { attempt, kept } = attempt(data);
            kept.put(&mut *pc, state, &attempt.with());
            attempt.free(pc, state);
        }
    });
}
