//! The peer callbacks: what nginx calls for a request to an upstream.
//!
//! The same order as in nginx's own balancers: init the upstream, init a request, get a peer,
//! free it.

use std::ffi::c_void;
use std::rc::Rc;

use nginx_consul_core::balance::{Known, Latency, Method, Tried};
use nginx_consul_core::table::Slot;
use nginx_sys::{
    NGX_LOG_WARN, NGX_PEER_FAILED, ngx_conf_t, ngx_current_msec, ngx_http_request_t,
    ngx_http_upstream_init_round_robin, ngx_http_upstream_init_round_robin_peer,
    ngx_http_upstream_rr_peers_t, ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_log_t,
    ngx_peer_connection_t, ngx_uint_t,
};

use crate::conf::{self, SrvConf, dynamic};
use crate::ffi::{DECLINED, ERROR, OK, fence, make_in_pool_for};
use crate::session;

mod block;
mod clock;
mod contacts;
mod counted;
mod delegate;
mod keepalive;
mod named;
mod served;
mod source;
mod stock;
pub(crate) mod trace;
mod view;
mod worker;

pub(crate) use block::Block;
use clock::now;
use counted::Counted;
use delegate::Delegate;
pub(crate) use keepalive::{Keepalive, end as end_keepalive};
use keepalive::{Picked, Whom};
pub(crate) use named::{Lookup, NamedBlock, New, Why};
pub(crate) use served::Served;
pub(crate) use source::Source;
use stock::StockAttempt;
pub(crate) use stock::{InitUpstream, Stock, is_nginxs_own};
use trace::trace;
use view::PeerView;
pub(crate) use worker::Worker;

/// A request to the block; `peer.data`.
struct Attempt {
    view: Rc<PeerView>,
    tried: Tried,
    counted: Counted,
    /// Lives in the configuration, which outlives the request, or in `named`.
    block: *const Block,
    /// Keeps the block of a service that the request has named.
    _named: Option<Rc<Block>>,
    /// What the request is hashed by; lives as long as the request.
    key: &'static [u8],
    request: *mut ngx_http_request_t,
    upstream: *mut ngx_http_upstream_srv_conf_t,
    /// Once no instance can be used: nginx's round robin over the block's `server` lines.
    servers: Option<Box<Delegate>>,
}

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
            if let Some(dynamic) = &mut (*conf).dynamic {
                dynamic.initialized = true;
                dynamic.has_keepalive = conf::has_keepalive(&*us);
            }
            dynamic::drop_placeholder(&mut *us);
            let inner = (*conf).dynamic.as_ref().and_then(|dynamic| dynamic.inner.as_ref());
            if inner.is_some_and(|inner| stock::check(inner, cf, us) != OK)
                || ngx_http_upstream_init_round_robin(cf, us) != OK
            {
                return ERROR;
            }
            (*us).peer.init = Some(match ((*conf).keepalive_conf.is_some(), inner) {
                (true, _) => keepalive::ngx_http_upstream_init_kept_peer,
                (false, Some(_)) => stock::ngx_http_upstream_init_stock_peer,
                (false, None) => ngx_http_upstream_init_consul_peer,
            });
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
    unsafe { (*us).peer.init = Some(keepalive::ngx_http_upstream_init_kept_peer) };
}

/// The `peer.init` of whoever picks in a block.
///
/// # Safety
///
/// As nginx calls a `peer.init`; `conf` is ours of the block.
#[inline]
unsafe fn init_picking(
    conf: &SrvConf,
    r: *mut ngx_http_request_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    if conf.dynamic.as_ref().is_some_and(|dynamic| dynamic.inner.is_some()) {
        stock::ngx_http_upstream_init_stock_peer(r, us)
    } else {
        ngx_http_upstream_init_consul_peer(r, us)
    }
}

/// Whom a request is with.
///
/// # Safety
///
/// `picker` is what [`init_picking`] made for a request, whose pool is still there.
#[inline]
unsafe fn picked_by<'a>(picker: &Delegate) -> Picked<'a> {
    if picker.gets_by(ngx_http_upstream_get_consul_peer) {
        // SAFETY: the data is that of our callback.
        unsafe { attempt(picker.data()) }.picked()
    } else {
        // SAFETY: as above.
        unsafe { stock::picked_by(picker) }
    }
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
            let Some((block, named)) = block_of(r, us) else { return ERROR };
            let block = &*block;
            let mut view = block.worker().and_then(|worker| block.view(worker));
            if view.as_ref().is_none_or(|view| view.is_empty()) {
                if block.has_fallback {
                    served::forget(r);
                    return ngx_http_upstream_init_round_robin_peer(r, us);
                }
                view = Some(Rc::default());
            }
            let Some(view) = view else { return ERROR };
            let log = (*(*r).connection).log;
            if trace::is_on(log) {
                trace::held(log, block, &view);
            }
            // Before there is an attempt that a variable may look at.
            let Some(key) = block.key(r) else { return ERROR };
            let servers = if block.has_fallback { server_count(us) } else { 0 };
            let tries = (view.len() + servers).max(1);
            let attempt = make_in_pool_for((*r).pool, served::drop_attempt, || Attempt {
                view,
                tried: Tried::default(),
                counted: Counted::default(),
                block,
                _named: named,
                key,
                request: r,
                upstream: us,
                servers: None,
            });
            let Some(attempt) = attempt.as_mut() else { return ERROR };
            let peer = &mut (*(*r).upstream).peer;
            peer.data = (&raw mut *attempt).cast();
            peer.get = Some(ngx_http_upstream_get_consul_peer);
            peer.free = Some(ngx_http_upstream_free_consul_peer);
            peer.tries = tries as ngx_uint_t;
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
) -> Option<(*const Block, Option<Rc<Block>>)> {
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

/// # Safety
///
/// `data` is the `peer.data` of a request that [`ngx_http_upstream_init_consul_peer`] set; nginx
/// runs one callback of a request at a time.
unsafe fn attempt<'a>(data: *mut c_void) -> &'a mut Attempt {
    // SAFETY: the caller's promise; the request's pool has the attempt.
    unsafe { &mut *data.cast::<Attempt>() }
}

extern "C" fn ngx_http_upstream_get_consul_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes our data; the configuration outlives the request.
        let (attempt, block) = unsafe {
            let attempt = attempt(data);
            let block = &*attempt.block;
            (attempt, block)
        };
        // nginx has freed the peer before; this is for what it forgets.
        if attempt.counted.is_in_flight() {
            attempt.counted.end();
        }
        if let Some(servers) = &attempt.servers {
            return servers.get(pc);
        }
        let now = now();
        // SAFETY: nginx passes the request's connection.
        let log = unsafe { (*pc).log };
        let picked = block.worker().and_then(|worker| {
            let view = attempt.view.peers();
            let picked = block.pick(worker, view, &attempt.tried, attempt.key, now)?;
            let number = picked.known.number as usize;
            if trace::is_on(log) {
                trace::picked(log, block, (&attempt.view, &attempt.tried), Some(number));
            }
            attempt.counted.begin(worker, picked, now.seconds);
            attempt.tried.insert(number);
            Some(number)
        });
        let Some(peer) = picked else { return attempt.get_none(pc) };
        // SAFETY: nginx passes the request's connection.
        let pc = unsafe { &mut *pc };
        pc.set_cached(0);
        pc.connection = std::ptr::null_mut();
        attempt.view.point(pc, peer);
        OK
    })
}

extern "C" fn ngx_http_upstream_free_consul_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
    state: ngx_uint_t,
) {
    fence((), || {
        // SAFETY: nginx passes our data.
        let attempt = unsafe { attempt(data) };
        if let Some(servers) = &attempt.servers {
            servers.free(pc, state);
            return;
        }
        // SAFETY: nginx passes the request's connection.
        let pc = unsafe { &mut *pc };
        let single = attempt.is_single();
        if let (true, Some(peer)) = (trace::is_on(pc.log), attempt.counted.peer()) {
            let failed = state & NGX_PEER_FAILED as ngx_uint_t != 0;
            trace::ended(pc.log, attempt.block(), &attempt.view, peer, failed);
        }
        attempt.judge(state, single, pc.log);
        attempt.counted.end();
        pc.tries = if single { 0 } else { pc.tries.saturating_sub(1) };
    });
}

impl Attempt {
    fn block(&self) -> &Block {
        // SAFETY: the configuration outlives the request.
        unsafe { &*self.block }
    }

    #[inline]
    fn picked(&self) -> Picked<'_> {
        match (&self.servers, self.counted.peer()) {
            (Some(_), _) => Picked::Server,
            (None, Some(peer)) => {
                Picked::Instance(Whom { block: self.block(), view: &self.view, peer })
            }
            (None, None) => Picked::Unknown,
        }
    }

    /// Whether there is one instance and nobody else.
    fn is_single(&self) -> bool {
        self.view.len() == 1 && !self.block().has_fallback
    }

    /// No instance can be used.
    #[cold]
    fn get_none(&mut self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        self.counted.end();
        // SAFETY: nginx passes the request's connection.
        let log = unsafe { (*pc).log };
        if trace::is_on(log) {
            trace::picked(log, self.block(), (&self.view, &self.tried), None);
        }
        if let Some(servers) = self.turn_to_servers() {
            trace!(log, "consul: on to the \"server\" lines");
            return servers.get(pc);
        }
        // SAFETY: as above.
        let pc = unsafe { &mut *pc };
        if self.tried.count() == 0 {
            self.block().complain(pc.log);
        }
        // Not NGX_BUSY: nginx would log a line for each request.
        pc.name = self.block().name_ptr();
        pc.tries = 0;
        DECLINED
    }

    /// From here on the block's `server` lines are asked, if it has some.
    fn turn_to_servers(&mut self) -> Option<&Delegate> {
        if !self.block().has_fallback {
            return None;
        }
        let (r, us) = (self.request, self.upstream);
        // SAFETY: the request and block that peer.init got.
        let servers =
            unsafe { Delegate::new(r, || ngx_http_upstream_init_round_robin_peer(r, us)) };
        self.counted.forget_last();
        self.servers = servers.map(|(servers, _)| Box::new(servers));
        self.servers.as_deref()
    }

    #[inline]
    fn judge(&self, state: ngx_uint_t, single: bool, log: *mut ngx_log_t) {
        if self.block().method() == Method::LeastTime {
            self.note_time(state & NGX_PEER_FAILED as ngx_uint_t != 0);
        }
        if self.counted.judge(&self.view, state, single) {
            warn_of_failures(log);
        }
    }

    /// Notes how long the peer took.
    #[inline]
    fn note_time(&self, failed: bool) {
        let Some((counters, known)) = self.counted.known(&self.view) else { return };
        // SAFETY: the request's upstream, whose state nginx makes before it connects.
        let upstream = unsafe { &*(*self.request).upstream };
        // SAFETY: as above.
        let Some(state) = (unsafe { upstream.state.as_ref() }) else { return };
        let now = now().millis;
        // nginx's value of a time that never came.
        if failed || state.header_time == usize::MAX {
            // SAFETY: the event loop's clock, read in the event loop.
            let elapsed = unsafe { ngx_current_msec }.wrapping_sub(upstream.start_time) as u64;
            note_unanswered(counters, known, failed, elapsed, now);
            return;
        }
        counters.update_latency(known.identity, |raw| {
            Latency::from_raw(raw).after(state.header_time as u64, now).raw()
        });
    }
}

/// Notes an attempt that failed, or that the client gave up.
#[cold]
fn note_unanswered(counters: Slot<'_>, known: &Known, failed: bool, elapsed: u64, now: u64) {
    counters.update_latency(known.identity, |raw| {
        let latency = Latency::from_raw(raw);
        if failed {
            latency.after_failure(elapsed, now).raw()
        } else if elapsed as f32 > latency.at(now) {
            // The answer would have taken longer still.
            latency.after(elapsed, now).raw()
        } else {
            raw
        }
    });
}

#[cold]
fn warn_of_failures(log: *mut ngx_log_t) {
    ngx::ngx_log_error!(NGX_LOG_WARN, log, "upstream server temporarily disabled");
}

impl Drop for Attempt {
    /// With the request's pool; nginx has freed the peer before, so this is for what it forgets.
    fn drop(&mut self) {
        self.counted.end();
    }
}

extern "C" fn set_session(pc: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes our data.
        let attempt = unsafe { attempt(data) };
        match (&attempt.servers, attempt.counted.peer()) {
            (Some(servers), _) => servers.set_session(pc),
            // SAFETY: nginx passes the request's connection.
            (None, Some(peer)) => attempt.view.sessions().resume(unsafe { &*pc }, peer),
            (None, None) => OK,
        }
    })
}

extern "C" fn save_session(pc: *mut ngx_peer_connection_t, data: *mut c_void) {
    fence((), || {
        // SAFETY: nginx passes our data.
        let attempt = unsafe { attempt(data) };
        match (&attempt.servers, attempt.counted.peer()) {
            (Some(servers), _) => servers.save_session(pc),
            // SAFETY: nginx passes the request's connection.
            (None, Some(peer)) => attempt.view.sessions().save(unsafe { &*pc }, peer),
            (None, None) => {}
        }
    });
}
