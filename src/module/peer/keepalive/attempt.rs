//! What a request does: asks who is next, and takes an idle connection to that peer if there is one.
//!
//! These callbacks stand around those of whoever picks, as nginx's own `keepalive` does.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::rc::Rc;

use nginx_consul_core::idle::{Hint, Key};
use nginx_consul_core::table::Slot;
use nginx_sys::{
    NGX_DONE, NGX_PEER_FAILED, ngx_current_msec, ngx_exiting, ngx_handle_read_event,
    ngx_http_request_t, ngx_http_upstream_srv_conf_t, ngx_http_upstream_t, ngx_int_t, ngx_palloc,
    ngx_peer_connection_t, ngx_terminate, ngx_uint_t,
};

use super::super::delegate::Delegate;
use super::super::{init_picking, picked_by};
use super::connection::{self, Connection};
use super::terms::{Wanted, is_tls};
use super::{Keepalive, SERVERS, With};
use crate::conf;
use crate::ffi::{ERROR, OK, fence};
use crate::session;

/// `peer.data`. It holds nothing that has to be given back, so that its memory needs no cleanup.
struct KeptAttempt {
    /// Who picks.
    picker: Delegate,
    /// Lives in the configuration.
    keepalive: *const Rc<Keepalive>,
    request: *mut ngx_http_request_t,
    /// Whom the request is with; `None` if its connection is not to be kept.
    key: Option<Key>,
    hint: Hint,
    /// The connection it was given, if one was idle.
    given: Option<NonNull<Connection>>,
}

/// `peer.init`.
pub(in super::super) extern "C" fn ngx_http_upstream_init_kept_peer(
    r: *mut ngx_http_request_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    const { assert!(align_of::<KeptAttempt>() <= nginx_sys::NGX_ALIGNMENT) };
    fence(ERROR, || {
        // SAFETY: nginx passes a request with an upstream, and a block of the running
        // configuration, which lives as long as the worker.
        unsafe {
            let conf = conf::srv_conf(us);
            let Some(keepalive) = &conf.keepalive else { return ERROR };
            let place = ngx_palloc((*r).pool, size_of::<KeptAttempt>()).cast::<KeptAttempt>();
            let init = || init_picking(conf, r, us);
            let (Some(place), Some((picker, _))) = (NonNull::new(place), Delegate::take(r, init))
            else {
                return ERROR;
            };
            let peer = &mut (*(*r).upstream).peer;
            if picker.wants_notes() {
                peer.notify = Some(notify);
            }
            place.write(KeptAttempt {
                picker,
                keepalive,
                request: r,
                key: None,
                hint: Hint::NONE,
                given: None,
            });
            peer.data = place.as_ptr().cast();
            peer.get = Some(ngx_http_upstream_get_kept_peer);
            peer.free = Some(ngx_http_upstream_free_kept_peer);
            session::install(peer, set_session, save_session);
        }
        OK
    })
}

/// # Safety
///
/// `data` is the `peer.data` of a request that [`ngx_http_upstream_init_kept_peer`] set; nginx
/// runs one callback of a request at a time.
unsafe fn attempt<'a>(data: *mut c_void) -> &'a mut KeptAttempt {
    // SAFETY: the caller's promise; the request's pool has the attempt.
    unsafe { &mut *data.cast::<KeptAttempt>() }
}

extern "C" fn ngx_http_upstream_get_kept_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes our data.
        let attempt = unsafe { attempt(data) };
        (attempt.key, attempt.given) = (None, None);
        let picked = attempt.picker.get(pc);
        if picked != OK {
            return picked;
        }
        // SAFETY: nginx passes the request's connection, which the picker has pointed at a peer.
        unsafe {
            let pc = &mut *pc;
            if !attempt.take_idle(pc) {
                return OK;
            }
        }
        NGX_DONE as ngx_int_t
    })
}

extern "C" fn ngx_http_upstream_free_kept_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
    state: ngx_uint_t,
) {
    fence((), || {
        // SAFETY: nginx passes our data, and the request's connection.
        unsafe {
            let attempt = attempt(data);
            attempt.put_idle(&mut *pc, state);
            attempt.picker.free(pc, state);
        }
    });
}

impl KeptAttempt {
    fn keepalive(&self) -> &'static Rc<Keepalive> {
        // SAFETY: the configuration outlives the request.
        unsafe { &*self.keepalive }
    }

    /// Counters of the instance that the request is with.
    #[inline]
    fn counters(&self, key: &Key) -> Option<Slot<'static>> {
        let (worker, place) = self.keepalive().worker.get().zip(key.place)?;
        Some(worker.share().table.slot(place))
    }

    /// Whom the request was sent to just now.
    ///
    /// # Safety
    ///
    /// `pc` is the request's connection, and points at a peer.
    #[inline]
    unsafe fn key_of(&self, pc: &ngx_peer_connection_t) -> Option<Key> {
        // SAFETY: the caller's promise.
        unsafe {
            match picked_by(&self.picker) {
                With::Instance(whom) => whom.key(),
                With::Server => {
                    let identity = connection::hash_of_address(pc.sockaddr, pc.socklen);
                    Some(Key { owner: SERVERS, place: None, identity })
                }
                With::Unknown => None,
            }
        }
    }

    /// Takes an idle connection to the peer that was picked, if there is one.
    ///
    /// # Safety
    ///
    /// As for [`KeptAttempt::key_of`].
    #[inline]
    unsafe fn take_idle(&mut self, pc: &mut ngx_peer_connection_t) -> bool {
        // SAFETY: the caller's promise; the request's upstream.
        unsafe {
            let Some(key) = self.key_of(pc) else { return false };
            let u = &*(*self.request).upstream;
            let Some(wanted) = Wanted::by(self.request, u, pc) else { return false };
            let (hint, found) = self.keepalive().take(&key, pc, &wanted);
            (self.key, self.hint, self.given) = (Some(key), hint, found);
            let Some(found) = found else { return false };
            connection::hand_out(found, pc);
            if let Some(counters) = self.counters(&key) {
                counters.note_reused(key.identity);
            }
        }
        true
    }

    /// Keeps the request's connection, if it is fit for another request.
    ///
    /// # Safety
    ///
    /// `pc` is the request's connection.
    #[inline]
    unsafe fn put_idle(&mut self, pc: &mut ngx_peer_connection_t, state: ngx_uint_t) {
        let Some(key) = self.key.take() else { return };
        let given = self.given.take();
        // SAFETY: the request's upstream; its connection is fit for others.
        unsafe {
            let u = &*(*self.request).upstream;
            if given.is_none() {
                self.note_opened(u, &key);
            }
            if !self.is_fit(pc, u, state) {
                return;
            }
            let kept = given.or_else(|| Connection::new(pc, &Wanted::by(self.request, u, pc)?));
            let Some(kept) = kept else { return };
            connection::keep(self.keepalive(), (key, self.hint), kept, pc);
            if let With::Instance(whom) = picked_by(&self.picker) {
                whom.note_idle();
            }
        }
    }

    #[cold]
    fn note_opened(&self, u: &ngx_http_upstream_t, key: &Key) {
        // SAFETY: null, or the state of this attempt.
        let state = unsafe { u.state.as_ref() };
        // nginx's value of a time that never came.
        if state.is_some_and(|state| state.connect_time != usize::MAX) {
            if let Some(counters) = self.counters(key) {
                counters.note_opened(key.identity);
            }
        }
    }

    /// Whether whom the request is with is still there.
    #[inline]
    fn is_there(&self) -> bool {
        // SAFETY: the request is there, and so is its pool.
        match unsafe { picked_by(&self.picker) } {
            With::Instance(whom) => whom.is_there(),
            With::Server => true,
            With::Unknown => false,
        }
    }

    /// Whether a connection can serve another request: nginx's conditions, and that the instance
    /// is still there.
    ///
    /// # Safety
    ///
    /// `pc` and `u` are the request's.
    unsafe fn is_fit(
        &self,
        pc: &ngx_peer_connection_t,
        u: &ngx_http_upstream_t,
        state: ngx_uint_t,
    ) -> bool {
        // SAFETY: the caller's promise; an open connection has its events.
        unsafe {
            let Some(c) = pc.connection.as_ref() else { return false };
            let (read, write) = (&*c.read, &*c.write);
            let keepalive = self.keepalive();
            let is_broken = state & NGX_PEER_FAILED as ngx_uint_t != 0
                || read.eof() != 0
                || read.error() != 0
                || read.timedout() != 0
                || write.error() != 0
                || write.timedout() != 0;
            let is_worn_out = c.requests >= keepalive.requests
                || ngx_current_msec.wrapping_sub(c.start_time) > keepalive.time;
            let is_done = u.keepalive() != 0 && u.request_body_sent() != 0 && u.upgrade() == 0;
            !is_broken
                && !is_worn_out
                && is_done
                && ngx_terminate == 0
                && ngx_exiting == 0
                && has_tls(c) == is_tls(u)
                && !c.pool.is_null()
                && self.is_there()
                && ngx_handle_read_event(c.read, 0) == OK
        }
    }
}

#[cfg(nginx_ssl)]
fn has_tls(c: &nginx_sys::ngx_connection_t) -> bool {
    !c.ssl.is_null()
}

#[cfg(not(nginx_ssl))]
fn has_tls(_: &nginx_sys::ngx_connection_t) -> bool {
    false
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
