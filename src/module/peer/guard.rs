//! What another module has put around our callbacks of a block may pick peers of its own. That
//! shows only when a request comes, which is then refused: it would go past the service.

use std::cell::OnceCell;
use std::ffi::c_void;
use std::mem::offset_of;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use nginx_sys::{
    NGX_LOG_ERR, ngx_http_request_t, ngx_http_upstream_init_round_robin,
    ngx_http_upstream_srv_conf_t, ngx_http_upstream_t, ngx_int_t, ngx_log_t, ngx_peer_connection_t,
    sockaddr,
};

use super::clock::Interval;
use super::slot::Slot;
use super::{InitUpstream, ngx_http_upstream_init_consul_peer};
use crate::ffi::{ERROR, OK, bytes, catch_panic, object_of};

/// `peer.init`.
type Init =
    unsafe extern "C" fn(*mut ngx_http_request_t, *mut ngx_http_upstream_srv_conf_t) -> ngx_int_t;

/// `peer.get`.
type Get = unsafe extern "C" fn(*mut ngx_peer_connection_t, *mut c_void) -> ngx_int_t;

/// Of a block with another module's callback around ours.
pub(crate) struct Guard {
    init: Init,
    /// What that sets for requests.
    get: OnceCell<Get>,
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

/// Our `peer.get` has picked an address.
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
        let (slot, init) = unsafe { (Slot::of(us), (*us).peer.init) };
        let Some((init, module)) = init.and_then(|init| Some((init, wraps(slot, init)?))) else {
            return;
        };
        // SAFETY: the block's name lives in the pool of the configuration.
        let name = unsafe { bytes(&(*us).host) };
        let guard = Guard {
            init,
            get: OnceCell::new(),
            module,
            upstream: String::from_utf8_lossy(name).into_owned(),
            said: Interval::default(),
        };
        if slot.guard.set(guard).is_ok() {
            // SAFETY: the caller's promise.
            unsafe { (*us).peer.init = Some(ngx_http_upstream_init_guarded_peer) };
        }
    }

    /// Says, once a second at most, that a request is refused.
    fn refuse(&self, log: *mut ngx_log_t) -> ngx_int_t {
        if self.said.is_due() {
            ngx::ngx_log_error!(
                NGX_LOG_ERR,
                log,
                "consul: {} picks peers of its own in upstream \"{}\" with \"consul_dynamic\", \
                 its requests are refused",
                self.module,
                self.upstream
            );
        }
        ERROR
    }
}

/// The module that has put its callback, `init`, around ours; `None` if none has, or nginx.
fn wraps(slot: &Slot, init: Init) -> Option<String> {
    let ours: Init = ngx_http_upstream_init_consul_peer;
    if ptr::fn_addr_eq(init, ours) {
        return None;
    }
    if let Some(directive) = &slot.wrapped_by {
        return Some(directive.clone());
    }
    let nginx: InitUpstream = ngx_http_upstream_init_round_robin;
    let (own, nginx) = (object_of(init as *const c_void), object_of(nginx as *const c_void));
    if own == nginx {
        return None;
    }
    Some(own.map_or_else(|| "another module".to_owned(), |object| object.file))
}

/// `peer.init` around that of another module.
extern "C" fn ngx_http_upstream_init_guarded_peer(
    r: *mut ngx_http_request_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    catch_panic(ERROR, || {
        // SAFETY: nginx passes a request with an upstream, and a block of the running configuration.
        unsafe {
            let Some(guard) = Slot::of(us).guard.get() else { return ERROR };
            note_init(ptr::null_mut());
            let done = (guard.init)(r, us);
            if done != OK {
                return done;
            }
            let peer = &mut (*(*r).upstream).peer;
            let Some(get) = peer.get else { return ERROR };
            let is_known = ptr::fn_addr_eq(*guard.get.get_or_init(|| get), get);
            if !is_known || LAST.load(Relaxed) != r {
                return guard.refuse((*(*r).connection).log);
            }
            peer.get = Some(ngx_http_upstream_get_guarded_peer);
        }
        OK
    })
}

/// `peer.get` around that of another module, whose data it gets.
extern "C" fn ngx_http_upstream_get_guarded_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
) -> ngx_int_t {
    catch_panic(ERROR, || {
        // SAFETY: nginx passes the connection in a request's upstream, for which the callback above
        // has set this; nginx has noted the block there.
        unsafe {
            let u =
                pc.byte_sub(offset_of!(ngx_http_upstream_t, peer)).cast::<ngx_http_upstream_t>();
            let Some(guard) = Slot::of((*u).upstream).guard.get() else { return ERROR };
            let Some(get) = guard.get.get() else { return ERROR };
            // What an attempt before has left.
            (*pc).sockaddr = ptr::null_mut();
            note_pick(ptr::null_mut());
            let picked = get(pc, data);
            let is_ours = (*pc).sockaddr == PICKED.load(Relaxed);
            if is_ours { picked } else { guard.refuse((*pc).log) }
        }
    })
}
