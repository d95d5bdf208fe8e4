//! The peer callbacks: what nginx calls for a request to an upstream.
//!
//! The same order as in nginx's own balancers: init the upstream, init a request, get a peer,
//! free it.

use std::ffi::c_void;
use std::rc::Rc;

use nginx_sys::{
    ngx_conf_t, ngx_http_request_t, ngx_http_upstream_init_round_robin,
    ngx_http_upstream_init_round_robin_peer, ngx_http_upstream_rr_peers_t,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_peer_connection_t, ngx_uint_t,
};

use crate::conf::{self, SrvConf, dynamic};
use crate::ffi::{ERROR, OK, fence, make_in_pool_for};
use crate::session;

mod attempt;
mod block;
mod clock;
mod contacts;
mod counted;
mod delegate;
mod guard;
mod header_filter;
mod keepalive;
mod named;
mod outcome;
mod served;
mod source;
mod stock;
pub(crate) mod trace;
mod view;
mod worker;

use attempt::kept::{
    KeptAttempt, ngx_http_upstream_free_kept_peer, ngx_http_upstream_get_kept_peer,
};
use attempt::{
    Attempt, Start, ngx_http_upstream_free_consul_peer, ngx_http_upstream_get_consul_peer,
    save_session, set_session,
};
pub(crate) use block::Block;
pub(crate) use clock::monotonic;
pub(crate) use guard::Guard;
pub(crate) use header_filter::install as install_header_filter;
use keepalive::Kept;
pub(crate) use keepalive::{Keepalive, end as end_keepalive};
pub(crate) use named::{Lookup, NamedBlock, New, Why};
pub(crate) use served::Served;
pub(crate) use source::Source;
use stock::StockAttempt;
pub(crate) use stock::{InitUpstream, Stock};
pub(crate) use worker::Worker;

/// `peer.init_upstream`. nginx's own round robin is made of the block's `server` lines, for when
/// the service has no instance.
pub(crate) extern "C" fn ngx_http_upstream_init_consul(
    cf: *mut ngx_conf_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes the block that is being read; its SrvConf is ours alone.
        unsafe {
            let conf = crate::ffi::conf_of::<SrvConf>(
                (*us).srv_conf,
                &raw const crate::ngx_http_consul_module,
            );
            dynamic::drop_placeholder(&mut *us);
            let inner = (*conf).dynamic.as_ref().and_then(|dynamic| dynamic.inner.as_ref());
            if inner.is_some_and(|inner| stock::check(inner, cf, us) != OK)
                || ngx_http_upstream_init_round_robin(cf, us) != OK
            {
                return ERROR;
            }
            (*us).peer.init = Some(peer_init((*conf).keepalive_conf.is_some(), inner.is_some()));
            if let Some(dynamic) = &mut (*conf).dynamic {
                dynamic.servers = (*us).peer.data.cast();
            }
        }
        OK
    })
}

type PeerInit =
    extern "C" fn(*mut ngx_http_request_t, *mut ngx_http_upstream_srv_conf_t) -> ngx_int_t;

/// Of a block that keeps connections, or that a method of nginx's picks in.
fn peer_init(keeps_alive: bool, is_stock: bool) -> PeerInit {
    match (keeps_alive, is_stock) {
        (true, true) => keepalive::ngx_http_upstream_init_kept_stock_peer,
        (true, false) => ngx_http_upstream_init_kept_peer,
        (false, true) => stock::ngx_http_upstream_init_stock_peer,
        (false, false) => ngx_http_upstream_init_consul_peer,
    }
}

/// On nginx that keeps connections by itself: has the block's own connections kept by us alone.
///
/// # Safety
///
/// `us` is a block with `consul_keepalive` of the configuration that is being read.
#[cfg(nginx_keepalive_anywhere)]
pub(crate) unsafe fn replace_keepalive(us: *mut ngx_http_upstream_srv_conf_t, is_stock: bool) {
    // SAFETY: the caller's promise. What nginx has put around our callback is for requests only.
    unsafe { (*us).peer.init = Some(peer_init(true, is_stock)) };
}

/// `peer.init`.
extern "C" fn ngx_http_upstream_init_consul_peer(
    r: *mut ngx_http_request_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes a request with an upstream, and a block of the running
        // configuration, which lives as long as the worker.
        unsafe {
            let start = match begin(r, us) {
                Begun::Start(start) => start,
                Begun::Nobody => return ngx_http_upstream_init_round_robin_peer(r, us),
                Begun::Failed => return ERROR,
            };
            let tries = start.tries;
            let callbacks = (
                ngx_http_upstream_get_consul_peer as Get,
                ngx_http_upstream_free_consul_peer as Free,
            );
            install(r, tries, callbacks, || Attempt::new((r, us), start))
        }
    })
}

/// `peer.init` of a block with `consul_keepalive`.
extern "C" fn ngx_http_upstream_init_kept_peer(
    r: *mut ngx_http_request_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: as above.
        unsafe {
            let start = match begin(r, us) {
                Begun::Start(start) => start,
                Begun::Nobody => {
                    let init = || ngx_http_upstream_init_round_robin_peer(r, us);
                    return keepalive::init_around(r, us, init);
                }
                Begun::Failed => return ERROR,
            };
            let Some(keepalive) = &(*start.block).part().keepalive else { return ERROR };
            let (tries, kept) = (start.tries, Kept::new(keepalive, r));
            let callbacks =
                (ngx_http_upstream_get_kept_peer as Get, ngx_http_upstream_free_kept_peer as Free);
            install(r, tries, callbacks, || KeptAttempt::new(Attempt::new((r, us), start), kept))
        }
    })
}

type Get = extern "C" fn(*mut ngx_peer_connection_t, *mut c_void) -> ngx_int_t;
type Free = extern "C" fn(*mut ngx_peer_connection_t, *mut c_void, ngx_uint_t);

/// Makes an attempt, or what begins with one, and has nginx ask it.
///
/// # Safety
///
/// `r` is a request with an upstream; the callbacks are of what `make` makes.
#[inline(always)]
unsafe fn install<T>(
    r: *mut ngx_http_request_t,
    tries: ngx_uint_t,
    (get, free): (Get, Free),
    make: impl FnOnce() -> T,
) -> ngx_int_t {
    // SAFETY: the caller's promise.
    unsafe {
        let attempt = make_in_pool_for((*r).pool, served::drop_attempt, make);
        if attempt.is_null() {
            return ERROR;
        }
        let peer = &mut (*(*r).upstream).peer;
        peer.data = attempt.cast();
        peer.get = Some(get);
        peer.free = Some(free);
        peer.tries = tries;
        session::install(peer, set_session, save_session);
    }
    OK
}

/// What a request begins with.
enum Begun {
    Start(Start),
    /// There is no instance, but there are `server` lines.
    Nobody,
    Failed,
}

/// # Safety
///
/// `r` is a request with an upstream, and `us` a block of the running configuration.
#[inline(always)]
unsafe fn begin(r: *mut ngx_http_request_t, us: *mut ngx_http_upstream_srv_conf_t) -> Begun {
    // SAFETY: the caller's promise.
    unsafe {
        let Some((block, named)) = block_of(r, us) else { return Begun::Failed };
        let block = &*block;
        let mut view = block.worker().and_then(|worker| block.view(worker));
        if view.as_ref().is_none_or(|view| view.is_empty()) {
            if block.has_fallback {
                served::forget(r);
                return Begun::Nobody;
            }
            view = Some(Rc::default());
        }
        let Some(view) = view else { return Begun::Failed };
        // Before there is an attempt that a variable may look at.
        let Some(key) = block.key(r) else { return Begun::Failed };
        let servers = if block.has_fallback { server_count(us) } else { 0 };
        let tries = (view.len() + servers).max(1);
        Begun::Start(Start { block, named, view, key, tries: tries as ngx_uint_t })
    }
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
) -> Option<(*const Block, Option<Rc<Block>>)> {
    guard::note_init(r);
    // SAFETY: the caller's promise.
    let conf = unsafe { conf::srv_conf(us) };
    if let Some(block) = &conf.block {
        return Some((&raw const **block, None));
    }
    // SAFETY: as above.
    let block = unsafe { conf.named.as_ref()?.block_of(r)? };
    Some((Rc::as_ptr(&block), Some(block)))
}

/// How many addresses the block's `server` lines have: so often a request may try them.
///
/// # Safety
///
/// nginx's round robin has been made of them, and its peers are still the `data` of the block.
#[cold]
unsafe fn server_count(us: *mut ngx_http_upstream_srv_conf_t) -> usize {
    // SAFETY: the caller's promise; the backups are the next of the others.
    unsafe {
        let mut peers = (*us).peer.data.cast::<ngx_http_upstream_rr_peers_t>();
        let mut count = 0;
        while let Some(some) = peers.as_ref() {
            count += some.number;
            peers = some.next;
        }
        count
    }
}
