//! An idle connection: what it is good for, and what becomes of it.

use std::hash::{DefaultHasher, Hasher};
use std::ptr::{self, NonNull};
use std::rc::Rc;

use nginx_consul_core::idle::Spot;
use nginx_sys::{
    ngx_close_connection, ngx_connection_t, ngx_current_msec, ngx_cycle, ngx_destroy_pool,
    ngx_event_t, ngx_handle_read_event, ngx_log_t, ngx_msec_t, ngx_palloc, ngx_peer_connection_t,
};

use super::params::Wanted;
use super::{Keepalive, Key, SERVERS};
use crate::ffi::{OK, bits, catch_panic, event};

/// A connection that was idle before, or is; in its own pool.
pub(super) struct Connection {
    /// Lives as long as a connection of it is idle.
    keepalive: *const Keepalive,
    pub(super) connection: *mut ngx_connection_t,
    /// While it is idle.
    pub(super) spot: Option<Spot>,
    /// When it became idle, on the event loop's clock.
    pub(super) since: ngx_msec_t,
    pub(super) is: Wanted,
}

impl Connection {
    /// Of a connection that a request has opened. `None` if memory is short.
    ///
    /// # Safety
    ///
    /// `pc` is that of a request that has done with its connection; `is` is what it wanted.
    pub(super) unsafe fn new(
        pc: &ngx_peer_connection_t,
        is: Wanted,
    ) -> Option<NonNull<Connection>> {
        const { assert!(align_of::<Connection>() <= nginx_sys::NGX_ALIGNMENT) };
        let (keepalive, connection, spot, since) = (ptr::null(), pc.connection, None, 0);
        // SAFETY: an upstream's connection has a pool; it outlives what lies in it.
        unsafe {
            let place =
                ngx_palloc((*connection).pool, size_of::<Connection>()).cast::<Connection>();
            let place = NonNull::new(place)?;
            place.write(Connection { keepalive, connection, spot, since, is });
            Some(place)
        }
    }

    /// Whether its peer has neither closed it nor sent anything.
    ///
    /// # Safety
    ///
    /// It is alive.
    #[inline]
    pub(super) unsafe fn is_quiet(&self) -> bool {
        let mut byte = 0u8;
        // SAFETY: the caller's promise; the socket does not block.
        let n =
            unsafe { libc::recv((*self.connection).fd, (&raw mut byte).cast(), 1, libc::MSG_PEEK) };
        // SAFETY: always valid.
        n == -1 && unsafe { *libc::__errno_location() } == libc::EAGAIN
    }
}

/// Hands an idle connection, which was taken out, to a request.
///
/// # Safety
///
/// `pc` is that of the request; the connection is alive and nobody else's.
#[inline(always)]
pub(super) unsafe fn hand_out(connection: NonNull<Connection>, pc: &mut ngx_peer_connection_t) {
    // SAFETY: the caller's promise; a connection has its two events as long as it is open.
    unsafe {
        let held = &mut *connection.as_ptr();
        held.spot = None;
        let c = &mut *held.connection;
        bits::connection::IDLE.set(c, false);
        c.sent = 0;
        c.data = ptr::null_mut();
        set_log(c, pc.log);
        pc.connection = c;
        bits::peer_connection::CACHED.set(pc, true);
    }
}

/// Takes a connection from a request and keeps it.
///
/// # Safety
///
/// `pc` is that of the request, which has done with the connection; `connection` is of it.
#[inline(always)]
pub(super) unsafe fn keep(
    keepalive: &Rc<Keepalive>,
    key: Key,
    connection: NonNull<Connection>,
    pc: &mut ngx_peer_connection_t,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let held = &mut *connection.as_ptr();
        held.keepalive = Rc::as_ptr(keepalive);
        let c = &mut *held.connection;
        pc.connection = ptr::null_mut();
        bits::event::DELAYED.set(c.read, false);
        // No timer of its own: those that became idle first are closed first.
        held.since = ngx_current_msec;
        for event in [c.read, c.write] {
            event::del_timer(event);
        }
        (*c.write).handler = Some(on_write);
        (*c.read).handler = Some(on_read);
        c.data = connection.as_ptr().cast();
        bits::connection::IDLE.set(c, true);
        set_log(c, (*ngx_cycle).log);
        keepalive.put(key, connection);
        if bits::event::READY.get(c.read) {
            on_read(c.read);
        }
    }
}

/// # Safety
///
/// `c` is an open connection of an upstream.
unsafe fn set_log(c: &mut ngx_connection_t, log: *mut ngx_log_t) {
    c.log = log;
    // SAFETY: the caller's promise.
    unsafe {
        (*c.read).log = log;
        (*c.write).log = log;
        (*c.pool).log = log;
    }
}

/// Nobody waits to write.
///
/// # Safety
///
/// nginx passes the event of an idle connection, for which [`keep`] has set it.
unsafe extern "C" fn on_write(_: *mut ngx_event_t) {}

/// The peer has closed an idle connection, or sent something unasked, or nginx closes what is idle.
///
/// # Safety
///
/// nginx passes the event of an idle connection, for which [`keep`] has set it.
unsafe extern "C" fn on_read(event: *mut ngx_event_t) {
    catch_panic((), || {
        // SAFETY: nginx calls this for an idle connection only, as set by keep().
        unsafe {
            let c = &mut *(*event).data.cast::<ngx_connection_t>();
            let Some(connection) = NonNull::new(c.data.cast::<Connection>()) else { return };
            let is_over = bits::connection::CLOSE.get(c);
            if !is_over && connection.as_ref().is_quiet() {
                bits::event::READY.set(event, false);
                if ngx_handle_read_event(event, 0) == OK {
                    return;
                }
            }
            (*connection.as_ref().keepalive).remove(connection);
        }
    });
}

/// Closes a connection that was taken out.
///
/// # Safety
///
/// Nobody uses it any more.
pub(super) unsafe fn close(connection: NonNull<Connection>) {
    // SAFETY: the caller's promise.
    unsafe { close_connection(connection.as_ref().connection) };
}

/// As nginx closes its own idle connections.
unsafe extern "C" fn close_connection(c: *mut ngx_connection_t) {
    // SAFETY: an open connection of an upstream, with a pool of its own.
    unsafe {
        #[cfg(nginx_ssl)]
        if let Some(tls) = (*c).ssl.as_mut() {
            bits::ssl_connection::NO_WAIT_SHUTDOWN.set(tls, true);
            bits::ssl_connection::NO_SEND_SHUTDOWN.set(tls, true);
            if nginx_sys::ngx_ssl_shutdown(c) == crate::ffi::AGAIN {
                (*(*c).ssl).handler = Some(close_connection);
                return;
            }
        }
        ngx_destroy_pool((*c).pool);
        ngx_close_connection(c);
    }
}

/// Where connections to a `server` line are kept: by a hash of its address.
///
/// # Safety
///
/// `pc` points at a valid address.
#[cold]
pub(super) unsafe fn key_of_server(pc: &ngx_peer_connection_t) -> Key {
    // SAFETY: the caller's promise.
    let bytes =
        unsafe { std::slice::from_raw_parts(pc.sockaddr.cast::<u8>(), pc.socklen as usize) };
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    Key { owner: SERVERS, slot: None, identity: hasher.finish(), address: 0 }
}
