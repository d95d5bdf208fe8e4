//! The peer callbacks: what nginx calls for a request to an upstream.
//!
//! The same order as in nginx's own balancers: init the upstream, init a request, get a peer,
//! free it.

use std::rc::Rc;

use nginx_sys::{
    ngx_conf_t, ngx_http_request_t, ngx_http_upstream_init_round_robin,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_uint_t,
};

use crate::ffi::session;
use crate::ffi::{ERROR, OK, catch_panic};

mod options;
mod attempt;
mod upstream;
mod clock;
mod sockaddrs;
mod counters;
mod delegate;
mod guard;
mod header_filter;
pub(crate) mod keepalive;
pub(crate) mod on_demand;
mod nginx_method;
mod outcome;
mod request_peer;
pub(crate) mod servers;
mod slot;
mod watched_set;
pub(crate) mod trace;
mod view;
mod worker;

use attempt::callbacks::{
    ngx_http_upstream_free_consul_peer, ngx_http_upstream_get_consul_peer, save_session,
    set_session,
};
use attempt::{Attempt, cell};
pub(crate) use clock::monotonic;
pub(crate) use guard::Guard;
pub(crate) use header_filter::install as install_header_filter;
pub(crate) use keepalive::{Keepalive, end as end_keepalive};
pub(crate) use nginx_method::{InitUpstream, NginxMethod, Snapshots};
pub(crate) use on_demand::{Lookup, New, OnDemandUpstream, Why};
pub(crate) use options::{Balance, Options};
pub(crate) use request_peer::RequestPeer;
pub(crate) use slot::Slot;
pub(crate) use upstream::Upstream;
pub(crate) use watched_set::Source;
pub(crate) use worker::Worker;

/// `peer.init_upstream`. nginx's own round robin is made of the block's `server` lines, for when
/// the service has no instance.
pub(crate) extern "C" fn ngx_http_upstream_init_consul(
    cf: *mut ngx_conf_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    catch_panic(ERROR, || {
        // SAFETY: nginx passes the block that is being read; its SrvConf is ours alone.
        unsafe {
            servers::drop_placeholder(&mut *us);
            if ngx_http_upstream_init_round_robin(cf, us) != OK {
                return ERROR;
            }
            (*us).peer.init = Some(ngx_http_upstream_init_consul_peer);
            Slot::of(us).servers.set((*us).peer.data.cast());
        }
        OK
    })
}

/// On nginx that keeps connections by itself: has the block's own connections kept by us alone.
///
/// # Safety
///
/// `us` is a block with `consul_keepalive` of the configuration that is being read.
#[cfg(nginx_keepalive_anywhere)]
pub(crate) unsafe fn replace_keepalive(us: *mut ngx_http_upstream_srv_conf_t) {
    // SAFETY: the caller's promise. What nginx has put around our callback is for requests only.
    unsafe { (*us).peer.init = Some(ngx_http_upstream_init_consul_peer) };
}

/// `peer.init`.
extern "C" fn ngx_http_upstream_init_consul_peer(
    r: *mut ngx_http_request_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    catch_panic(ERROR, || {
        // SAFETY: nginx passes a request with an upstream, and a block of the running
        // configuration, which lives as long as the worker.
        unsafe {
            let Some((block, named)) = block_of(r, us) else { return ERROR };
            let block = &*block;
            let view = block.worker().and_then(|worker| block.view(worker));
            let view = view.unwrap_or_else(Rc::default);
            // Before there is an attempt that a variable may look at.
            let Some(key) = block.key(r) else { return ERROR };
            let servers = if block.has_fallback() { servers::count(us) } else { 0 };
            let tries = (view.len() + servers).max(1) as ngx_uint_t;
            let attempt =
                cell::make((*r).pool, || Attempt::new((r, us), (block, named), view, key));
            if attempt.is_null() || block.nginx_method().is_some() && !Attempt::bind(attempt) {
                return ERROR;
            }
            if let Some(keepalive) = &block.part().keepalive {
                (*attempt).keep_alive(keepalive);
            }
            let peer = &mut (*(*r).upstream).peer;
            peer.tries = tries;
            peer.data = attempt.cast();
            peer.get = Some(ngx_http_upstream_get_consul_peer);
            peer.free = Some(ngx_http_upstream_free_consul_peer);
            session::install(peer, set_session, save_session);
        }
        OK
    })
}

/// The block that a request to `us` goes to, and what keeps it if that is not the configuration.
///
/// # Safety
///
/// `r` is a valid request, and `us` a block of the running configuration.
#[inline]
unsafe fn block_of(
    r: *mut ngx_http_request_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> Option<(*const Upstream, Option<Rc<Upstream>>)> {
    guard::note_init(r);
    // SAFETY: the caller's promise.
    let slot = unsafe { Slot::of(us) };
    if let Some(block) = &slot.upstream {
        return Some((&raw const **block, None));
    }
    // SAFETY: as above.
    let block = unsafe { slot.on_demand.as_ref()?.block_of(r)? };
    Some((Rc::as_ptr(&block), Some(block)))
}
