//! An idle connection: what it is good for, its events and its end.

use std::cell::Cell;
use std::hash::{DefaultHasher, Hasher};
use std::ptr::{self, NonNull};

use nginx_consul_core::idle::IdleRef;
use nginx_sys::{
    ngx_close_connection, ngx_connection_t, ngx_destroy_pool, ngx_event_t, ngx_handle_read_event,
    ngx_log_t, ngx_msec_t, ngx_palloc, ngx_peer_connection_t,
};

use super::params::ConnParams;
use crate::ffi::{OK, bits, catch_panic, event, process};

/// Who has idle connections.
pub(super) trait Holder {
    /// Takes one out and closes it.
    fn close(&self, connection: NonNull<Connection>);
}

/// A connection that is idle, or was before; in its own pool.
pub(super) struct Connection {
    /// Lives as long as a connection of it is idle; `None` before the first time.
    holder: Cell<Option<NonNull<dyn Holder>>>,
    connection: NonNull<ngx_connection_t>,
    /// While it is idle.
    pub(super) idle_ref: Cell<Option<IdleRef>>,
    /// When it became idle, on the event loop's clock.
    pub(super) since: Cell<ngx_msec_t>,
    /// It is counted as idle.
    pub(super) is_counted: Cell<bool>,
    pub(super) params: ConnParams,
}

impl Connection {
    /// Of a connection that a request has opened. `None` if memory is short.
    ///
    /// # Safety
    ///
    /// `pc` is that of a request that has done with its connection, which has these parameters.
    pub(super) unsafe fn new(
        pc: &ngx_peer_connection_t,
        params: ConnParams,
    ) -> Option<NonNull<Connection>> {
        const { assert!(align_of::<Connection>() <= nginx_sys::NGX_ALIGNMENT) };
        let connection = NonNull::new(pc.connection)?;
        // SAFETY: an upstream's connection has a pool.
        let place = unsafe { ngx_palloc((*pc.connection).pool, size_of::<Connection>()) };
        let place = NonNull::new(place.cast::<Connection>())?;
        let new = Connection {
            holder: Cell::new(None),
            connection,
            idle_ref: Cell::new(None),
            since: Cell::new(0),
            is_counted: Cell::new(false),
            params,
        };
        // SAFETY: the pool has given room for it; it lives as long as the connection.
        unsafe { place.write(new) };
        Some(place)
    }

    /// Whether its peer has neither closed it nor sent anything.
    ///
    /// # Safety
    ///
    /// It is open.
    #[inline]
    pub(super) unsafe fn is_quiet(&self) -> bool {
        let mut byte = 0u8;
        // SAFETY: the caller's promise.
        let fd = unsafe { self.connection.as_ref() }.fd;
        // SAFETY: there is room for a byte; the socket does not block.
        let n = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, libc::MSG_PEEK) };
        // SAFETY: always valid.
        n == -1 && unsafe { *libc::__errno_location() } == libc::EAGAIN
    }

    /// Attaches an idle connection, which was taken out, to a request.
    ///
    /// # Safety
    ///
    /// `pc` is that of the request; the connection is open and nobody else's.
    #[inline(always)]
    pub(super) unsafe fn attach(&self, pc: &mut ngx_peer_connection_t) {
        self.idle_ref.set(None);
        // SAFETY: the caller's promise.
        let c = unsafe { &mut *self.connection.as_ptr() };
        c.sent = 0;
        c.data = ptr::null_mut();
        pc.connection = c;
        // SAFETY: as above.
        unsafe {
            set_log(c, pc.log);
            bits::connection::IDLE.set(c, false);
            bits::peer_connection::CACHED.set(pc, true);
        }
    }
}

/// Takes a connection from a request, and has its events handled as those of an idle one: `holder` is
/// asked to close it. `true` if its peer has already closed it or sent something.
///
/// # Safety
///
/// `pc` is that of the request, which has done with the connection; `connection` is of it, and
/// nobody else's. `holder` lives as long as it has the connection.
#[inline(always)]
pub(super) unsafe fn detach(
    connection: NonNull<Connection>,
    pc: &mut ngx_peer_connection_t,
    holder: NonNull<dyn Holder>,
) -> bool {
    // SAFETY: the caller's promise: it is open.
    let held = unsafe { connection.as_ref() };
    held.holder.set(Some(holder));
    pc.connection = ptr::null_mut();
    // It has no timer of its own: the sweeper closes those that became idle first.
    held.since.set(process::current_msec());
    let log = process::log().as_ptr();
    // SAFETY: as above.
    let c = unsafe { &mut *held.connection.as_ptr() };
    // SAFETY: an open connection has its two events.
    let (read, write) = unsafe { (&mut *c.read, &mut *c.write) };
    write.handler = Some(on_write);
    read.handler = Some(on_read);
    c.data = connection.as_ptr().cast();
    // SAFETY: an open connection of an upstream, whose events nobody else uses now.
    unsafe {
        bits::event::DELAYED.set(c.read, false);
        event::del_timer(c.read);
        event::del_timer(c.write);
        bits::connection::IDLE.set(c, true);
        set_log(c, log);
        bits::event::READY.get(c.read)
    }
}

/// Looks at an idle connection whose peer has closed it or sent something.
///
/// # Safety
///
/// The connection was detached, and its holder has it.
#[cold]
pub(super) unsafe fn check(connection: NonNull<Connection>) {
    // SAFETY: the caller's promise: it is open.
    unsafe { on_read((*connection.as_ref().connection.as_ptr()).read) };
}

/// # Safety
///
/// `c` is an open connection of an upstream.
unsafe fn set_log(c: &mut ngx_connection_t, log: *mut ngx_log_t) {
    c.log = log;
    // SAFETY: the caller's promise: it has its two events and a pool.
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
/// nginx passes the event of an idle connection, for which [`detach`] has set it.
unsafe extern "C" fn on_write(_: *mut ngx_event_t) {}

/// The peer has closed an idle connection, or sent something unasked, or nginx closes what is idle.
///
/// # Safety
///
/// nginx passes the event of an idle connection, for which [`detach`] has set it.
unsafe extern "C" fn on_read(event: *mut ngx_event_t) {
    catch_panic((), || {
        // SAFETY: nginx passes a valid event, whose data is its connection.
        let c = unsafe { &*(*event).data.cast::<ngx_connection_t>() };
        // SAFETY: as above.
        let nginx_closes = unsafe { bits::connection::CLOSE.get(c) };
        let Some(connection) = NonNull::new(c.data.cast::<Connection>()) else { return };
        // SAFETY: that is the data of an idle connection, as set by detach().
        let held = unsafe { connection.as_ref() };
        // SAFETY: an idle connection is open.
        if !nginx_closes && unsafe { held.is_quiet() } {
            // SAFETY: the event is valid, and is used by nobody else now.
            let is_watched = unsafe {
                bits::event::READY.set(event, false);
                ngx_handle_read_event(event, 0) == OK
            };
            if is_watched {
                return;
            }
        }
        if let Some(holder) = held.holder.get() {
            // SAFETY: the holder lives as long as a connection of it is idle.
            unsafe { holder.as_ref() }.close(connection);
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
    unsafe { close_connection(connection.as_ref().connection.as_ptr()) };
}

/// As nginx closes its own idle connections.
///
/// # Safety
///
/// `c` is an open connection of an upstream, which nobody uses any more.
unsafe extern "C" fn close_connection(c: *mut ngx_connection_t) {
    #[cfg(nginx_ssl)]
    // SAFETY: the caller's promise; nginx calls the handler with the connection when the peer has
    // answered.
    unsafe {
        if let Some(tls) = (*c).ssl.as_mut() {
            bits::ssl_connection::NO_WAIT_SHUTDOWN.set(tls, true);
            bits::ssl_connection::NO_SEND_SHUTDOWN.set(tls, true);
            if nginx_sys::ngx_ssl_shutdown(c) == crate::ffi::AGAIN {
                (*(*c).ssl).handler = Some(close_connection);
                return;
            }
        }
    }
    // SAFETY: the caller's promise; the connection has a pool of its own.
    unsafe {
        ngx_destroy_pool((*c).pool);
        ngx_close_connection(c);
    }
}

/// What identifies the peer of a `server` line: a hash of its address.
///
/// # Safety
///
/// `pc` points at a valid address.
#[cold]
pub(super) unsafe fn hash_of_server(pc: &ngx_peer_connection_t) -> u64 {
    // SAFETY: the caller's promise.
    let bytes =
        unsafe { std::slice::from_raw_parts(pc.sockaddr.cast::<u8>(), pc.socklen as usize) };
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
