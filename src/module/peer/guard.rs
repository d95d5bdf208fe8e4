//! What another module has put around our callbacks of a block may pick peers of its own. That
//! shows only when a request comes, which is then refused: it would go past the service.

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use nginx_sys::{
    NGX_LOG_ERR, ngx_http_request_t, ngx_http_upstream_init_round_robin,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_palloc, ngx_peer_connection_t, ngx_uint_t,
    sockaddr,
};

use super::clock::Interval;
use super::delegate::Delegate;
use super::{InitUpstream, ngx_http_upstream_init_consul_peer};
use crate::conf::{self, SrvConf};
use crate::ffi::{ERROR, OK, bytes, fence, object_of};
use crate::session;

/// `peer.init`.
type Init =
    unsafe extern "C" fn(*mut ngx_http_request_t, *mut ngx_http_upstream_srv_conf_t) -> ngx_int_t;

/// Of a block with another module's callback around ours.
pub(crate) struct Guard {
    init: Init,
    /// The module, for people.
    module: String,
    upstream: String,
    said: Interval,
}

/// The request that has reached our `peer.init` last.
static LAST: AtomicPtr<ngx_http_request_t> = AtomicPtr::new(ptr::null_mut());

/// The address that our `peer.get` has picked last.
static PICKED: AtomicPtr<sockaddr> = AtomicPtr::new(ptr::null_mut());

/// Our `peer.init` is called for the request.
#[inline(always)]
pub(super) fn note_init(r: *mut ngx_http_request_t) {
    LAST.store(r, Relaxed);
}

/// Our `peer.get` has picked an address, if it is not null.
#[inline(always)]
pub(super) fn note_pick(address: *mut sockaddr) {
    PICKED.store(address, Relaxed);
}

impl Guard {
    /// Sets one if another module's callback is around ours, unless that is nginx's `keepalive`.
    ///
    /// # Safety
    ///
    /// `us` is a block with `consul_dynamic` of a configuration that was read, and that no request
    /// uses yet.
    pub(crate) unsafe fn set(us: *mut ngx_http_upstream_srv_conf_t) {
        // SAFETY: the caller's promise.
        let (conf, init) = unsafe { (conf::srv_conf(us), (*us).peer.init) };
        let Some((init, module)) = init.and_then(|init| Some((init, wraps(conf, init)?))) else {
            return;
        };
        // SAFETY: the block's name lives in the pool of the configuration.
        let name = unsafe { bytes(&(*us).host) };
        let guard = Guard {
            init,
            module,
            upstream: String::from_utf8_lossy(name).into_owned(),
            said: Interval::default(),
        };
        if conf.guard.set(guard).is_ok() {
            // SAFETY: the caller's promise.
            unsafe { (*us).peer.init = Some(ngx_http_upstream_init_guarded_peer) };
        }
    }

    /// Says, once a second at most, that a request is refused.
    ///
    /// # Safety
    ///
    /// `r` is a valid request.
    unsafe fn complain(&self, r: *mut ngx_http_request_t) {
        if self.said.is_due() {
            // SAFETY: a request's connection has a log.
            let log = unsafe { (*(*r).connection).log };
            ngx::ngx_log_error!(
                NGX_LOG_ERR,
                log,
                "consul: {} picks peers of its own in upstream \"{}\" with \"consul_dynamic\", \
                 its requests are refused",
                self.module,
                self.upstream
            );
        }
    }
}

/// The module that has put its callback, `init`, around ours; `None` if none has, or nginx.
fn wraps(conf: &SrvConf, init: Init) -> Option<String> {
    let ours: Init = ngx_http_upstream_init_consul_peer;
    if ptr::fn_addr_eq(init, ours) {
        return None;
    }
    if let Some(directive) = conf.wrapped_by() {
        return Some(directive);
    }
    let nginx: InitUpstream = ngx_http_upstream_init_round_robin;
    let (own, nginx) = (object_of(init as *const c_void), object_of(nginx as *const c_void));
    if own == nginx {
        return None;
    }
    Some(own.map_or_else(|| "another module".to_owned(), |object| object.file))
}

/// `peer.data`. Nothing of it has to be given back.
struct Guarded {
    picker: Delegate,
    guard: &'static Guard,
    request: *mut ngx_http_request_t,
}

/// `peer.init` around that of another module.
extern "C" fn ngx_http_upstream_init_guarded_peer(
    r: *mut ngx_http_request_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    const { assert!(align_of::<Guarded>() <= nginx_sys::NGX_ALIGNMENT) };
    fence(ERROR, || {
        // SAFETY: nginx passes a request with an upstream, and a block of the running
        // configuration, which outlives the request. What the module sets lives as long as that.
        unsafe {
            let Some(guard) = conf::srv_conf(us).guard.get() else { return ERROR };
            note_init(ptr::null_mut());
            let place = ngx_palloc((*r).pool, size_of::<Guarded>()).cast::<Guarded>();
            let taken = Delegate::take(r, || (guard.init)(r, us));
            let (Some(place), Some(picker)) = (NonNull::new(place), taken) else {
                return ERROR;
            };
            if LAST.load(Relaxed) != r {
                guard.complain(r);
                return ERROR;
            }
            let peer = &mut (*(*r).upstream).peer;
            if picker.wants_notes() {
                peer.notify = Some(notify);
            }
            place.write(Guarded { picker, guard, request: r });
            peer.data = place.as_ptr().cast();
            peer.get = Some(ngx_http_upstream_get_guarded_peer);
            peer.free = Some(ngx_http_upstream_free_guarded_peer);
            session::install(peer, set_session, save_session);
        }
        OK
    })
}

/// # Safety
///
/// `data` is the `peer.data` of a request that [`ngx_http_upstream_init_guarded_peer`] set.
unsafe fn guarded<'a>(data: *mut c_void) -> &'a Guarded {
    // SAFETY: the caller's promise; the request's pool has it.
    unsafe { &*data.cast::<Guarded>() }
}

extern "C" fn ngx_http_upstream_get_guarded_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes our data, and the request's connection.
        unsafe {
            let Guarded { picker, guard, request } = guarded(data);
            // What an attempt before has left.
            (*pc).sockaddr = ptr::null_mut();
            note_pick(ptr::null_mut());
            let picked = picker.get(pc);
            if (*pc).sockaddr == PICKED.load(Relaxed) {
                return picked;
            }
            guard.complain(*request);
            ERROR
        }
    })
}

extern "C" fn ngx_http_upstream_free_guarded_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
    state: ngx_uint_t,
) {
    // SAFETY: nginx passes our data.
    fence((), || unsafe { guarded(data) }.picker.free(pc, state));
}

extern "C" fn set_session(pc: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    // SAFETY: nginx passes our data.
    fence(ERROR, || unsafe { guarded(data) }.picker.set_session(pc))
}

extern "C" fn save_session(pc: *mut ngx_peer_connection_t, data: *mut c_void) {
    // SAFETY: nginx passes our data.
    fence((), || unsafe { guarded(data) }.picker.save_session(pc));
}

unsafe extern "C" fn notify(pc: *mut ngx_peer_connection_t, data: *mut c_void, kind: ngx_uint_t) {
    // SAFETY: nginx passes our data.
    fence((), || unsafe { guarded(data) }.picker.notify(pc, kind));
}
