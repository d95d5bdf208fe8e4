//! Refuses requests that another module's balancer would send past the service.
//!
//! What another module has put around our callbacks of an upstream may pick peers of its own. That
//! shows only when a request comes.

use std::cell::OnceCell;
use std::ffi::c_void;
use std::mem::offset_of;
use std::ptr;
use std::sync::atomic::Ordering::Relaxed;

use nginx_sys::{
    NGX_LOG_ERR, ngx_http_request_t, ngx_http_upstream_init_round_robin,
    ngx_http_upstream_srv_conf_t, ngx_http_upstream_t, ngx_int_t, ngx_log_t, ngx_peer_connection_t,
};

use super::callbacks::ngx_http_upstream_init_consul_peer;
use super::nginx_method::InitUpstream;
use super::slot::{Guard, InitPeer, LAST_INIT, LAST_PICK, Slot};
use super::worker::Interval;
use crate::ffi::{ERROR, OK, bytes, catch_panic, object_of, srv_conf};

/// Guards an upstream if another module's callback is around ours, unless that is nginx's
/// `keepalive`.
///
/// # Safety
///
/// `us` is a block with `consul_dynamic` of a configuration that was read, and that no request uses
/// yet.
pub(crate) unsafe fn guard(us: *mut ngx_http_upstream_srv_conf_t) {
    // SAFETY: the caller's promise.
    let (slot, init) = unsafe { (srv_conf::<Slot>(us), (*us).peer.init) };
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
        logged: Interval::default(),
    };
    if slot.guard.set(guard).is_ok() {
        // SAFETY: the caller's promise.
        unsafe { (*us).peer.init = Some(ngx_http_upstream_init_guarded_peer) };
    }
}

/// Refuses a request; logs that, once a second at most.
#[cold]
fn refuse(guard: &Guard, log: *mut ngx_log_t) -> ngx_int_t {
    if guard.logged.is_due() {
        ngx::ngx_log_error!(
            NGX_LOG_ERR,
            log,
            "consul: {} picks peers of its own in upstream \"{}\" with \"consul_dynamic\", its \
             requests are refused",
            guard.module,
            guard.upstream
        );
    }
    ERROR
}

/// The module that has put its callback, `init`, around ours; `None` if none has, or nginx.
fn wraps(slot: &Slot, init: InitPeer) -> Option<String> {
    let ours: InitPeer = ngx_http_upstream_init_consul_peer;
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
        // SAFETY: nginx passes a block of the running configuration.
        let Some(guard) = (unsafe { srv_conf::<Slot>(us) }).guard.get() else { return ERROR };
        LAST_INIT.store(ptr::null_mut(), Relaxed);
        // SAFETY: what nginx passes goes to the callback that it would have called.
        let done = unsafe { (guard.init)(r, us) };
        if done != OK {
            return done;
        }
        // SAFETY: nginx passes a request with an upstream, whose connection has a log.
        let (peer, log) = unsafe { (&mut (*(*r).upstream).peer, (*(*r).connection).log) };
        let Some(get) = peer.get else { return ERROR };
        let is_known = ptr::fn_addr_eq(*guard.get.get_or_init(|| get), get);
        if !is_known || LAST_INIT.load(Relaxed) != r {
            return refuse(guard, log);
        }
        peer.get = Some(ngx_http_upstream_get_guarded_peer);
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
        let slot = unsafe {
            let u =
                pc.byte_sub(offset_of!(ngx_http_upstream_t, peer)).cast::<ngx_http_upstream_t>();
            srv_conf::<Slot>((*u).upstream)
        };
        let Some(guard) = slot.guard.get() else { return ERROR };
        let Some(get) = guard.get.get() else { return ERROR };
        // SAFETY: nginx passes the request's connection. What an attempt before has left there goes.
        unsafe { (*pc).sockaddr = ptr::null_mut() };
        LAST_PICK.store(ptr::null_mut(), Relaxed);
        // SAFETY: what nginx passes goes to the callback that it would have called.
        let picked = unsafe { get(pc, data) };
        // SAFETY: as above.
        let (address, log) = unsafe { ((*pc).sockaddr, (*pc).log) };
        if address == LAST_PICK.load(Relaxed) { picked } else { refuse(guard, log) }
    })
}
