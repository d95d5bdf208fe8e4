//! What nginx calls for a TLS session, or to tell a method of nginx how a request goes on.

use std::ffi::c_void;

use nginx_sys::{ngx_int_t, ngx_peer_connection_t, ngx_uint_t};

use super::super::attempt::attempt;
use crate::ffi::{ERROR, OK, catch_panic};

/// `peer.set_session`.
pub(crate) extern "C" fn set(pc: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    catch_panic(ERROR, || {
        // SAFETY: nginx passes our data, and the request's connection.
        let (attempt, connection) = unsafe { (attempt(data), &*pc) };
        match (attempt.servers(), attempt.peer()) {
            (Some(servers), _) => servers.set_session(pc),
            (None, Some(peer)) => attempt.view().sessions().resume(connection, peer),
            (None, None) => OK,
        }
    })
}

/// `peer.save_session`.
pub(crate) extern "C" fn save(pc: *mut ngx_peer_connection_t, data: *mut c_void) {
    catch_panic((), || {
        // SAFETY: nginx passes our data, and the request's connection.
        let (attempt, connection) = unsafe { (attempt(data), &*pc) };
        match (attempt.servers(), attempt.peer()) {
            (Some(servers), _) => servers.save_session(pc),
            (None, Some(peer)) => attempt.view().sessions().save(connection, peer),
            (None, None) => {}
        }
    });
}

pub(crate) type Notify = unsafe extern "C" fn(*mut ngx_peer_connection_t, *mut c_void, ngx_uint_t);

/// `peer.notify`, for a method of nginx that wants it.
///
/// # Safety
///
/// `data` is the `peer.data` of a request that this was set for.
pub(crate) unsafe extern "C" fn notify(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
    kind: ngx_uint_t,
) {
    catch_panic((), || {
        // SAFETY: nginx passes our data.
        if let Some(method) = unsafe { attempt(data) }.method() {
            method.notify(pc, kind);
        }
    });
}
