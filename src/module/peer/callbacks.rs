//! What nginx calls for a request with an attempt.

use std::ffi::c_void;

use nginx_sys::{ngx_int_t, ngx_peer_connection_t, ngx_uint_t};

use super::super::guard;
use super::super::keepalive::Wanted;
use super::{Attempt, Picker};
use crate::ffi::{ERROR, OK, catch_panic};

/// # Safety
///
/// `data` is the `peer.data` of a request that [`super::super::ngx_http_upstream_init_consul_peer`]
/// set; nginx runs one callback of a request at a time, and no other reference to it is in use.
unsafe fn attempt<'a>(data: *mut c_void) -> &'a mut Attempt {
    // SAFETY: the caller's promise; the attempt lives as long as the request's pool.
    unsafe { &mut *data.cast::<Attempt>() }
}

pub(in super::super) extern "C" fn ngx_http_upstream_get_consul_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
) -> ngx_int_t {
    catch_panic(ERROR, || {
        // SAFETY: nginx passes our data, and the request's connection.
        unsafe {
            let picked = attempt(data).get(pc);
            guard::note_pick((*pc).sockaddr);
            let has_kept = picked == OK && attempt(data).kept.is_some();
            if has_kept { take_connection(pc, data) } else { picked }
        }
    })
}

/// Takes an idle connection to the peer that was picked.
///
/// # Safety
///
/// As for the callback.
#[inline(never)]
unsafe fn take_connection(pc: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    // SAFETY: the caller's promise. What evaluates variables, which may look at the attempt, comes
    // while nobody else does.
    unsafe {
        let request = attempt(data).request;
        let Some(wanted) = Wanted::by(request, &*pc) else { return OK };
        let Some((peer, kept)) = attempt(data).connection() else { return OK };
        kept.take(&mut *pc, &peer, &wanted)
    }
}

/// Keeps the request's connection, if it is fit for another request.
///
/// # Safety
///
/// As for the callback.
#[inline(never)]
unsafe fn keep_connection(pc: *mut ngx_peer_connection_t, data: *mut c_void, state: ngx_uint_t) {
    // SAFETY: as above.
    unsafe {
        let request = attempt(data).request;
        let is_new = attempt(data).kept.as_ref().is_some_and(|kept| !kept.was_given());
        let wanted = if is_new { Wanted::by(request, &*pc) } else { None };
        if let Some((peer, kept)) = attempt(data).connection() {
            kept.put((&mut *pc, state), request, &peer, wanted);
        }
    }
}

pub(in super::super) extern "C" fn ngx_http_upstream_free_consul_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
    state: ngx_uint_t,
) {
    catch_panic((), || {
        // SAFETY: as above.
        unsafe {
            if attempt(data).kept.is_some() {
                keep_connection(pc, data, state);
            }
            attempt(data).free(pc, state);
        }
    });
}

pub(in super::super) extern "C" fn set_session(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
) -> ngx_int_t {
    catch_panic(ERROR, || {
        // SAFETY: nginx passes our data, and the request's connection.
        let (attempt, connection) = unsafe { (attempt(data), &*pc) };
        match (attempt.servers(), attempt.counted.peer()) {
            (Some(servers), _) => servers.set_session(pc),
            (None, Some(peer)) => attempt.view.sessions().resume(connection, peer),
            (None, None) => OK,
        }
    })
}

pub(in super::super) extern "C" fn save_session(pc: *mut ngx_peer_connection_t, data: *mut c_void) {
    catch_panic((), || {
        // SAFETY: as above.
        let (attempt, connection) = unsafe { (attempt(data), &*pc) };
        match (attempt.servers(), attempt.counted.peer()) {
            (Some(servers), _) => servers.save_session(pc),
            (None, Some(peer)) => attempt.view.sessions().save(connection, peer),
            (None, None) => {}
        }
    });
}

/// # Safety
///
/// `data` is the `peer.data` of a request that this was set for.
pub(in super::super) unsafe extern "C" fn notify(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
    kind: ngx_uint_t,
) {
    catch_panic((), || {
        // SAFETY: nginx passes our data.
        if let Picker::Method(_, method) = &unsafe { attempt(data) }.picker {
            method.notify(pc, kind);
        }
    });
}
