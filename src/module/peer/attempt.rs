//! A request's way through the instances: who is next, and how it went.

use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;

use nginx_consul_core::balance::{Admitted, Known, Latency, Method, Tried};
use nginx_consul_core::table::Slot;
use nginx_sys::{
    NGX_LOG_WARN, NGX_PEER_FAILED, ngx_current_msec, ngx_http_request_t,
    ngx_http_upstream_init_round_robin_peer, ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_log_t,
    ngx_peer_connection_t, ngx_uint_t,
};

use super::block::Block;
use super::clock::now;
use super::counted::{Account, Counted};
use super::delegate::Delegate;
use super::keepalive::{Whom, With};
use super::outcome::Attempted;
use super::trace;
use super::trace::trace;
use super::view::PeerView;
use crate::ffi::{DECLINED, ERROR, OK, fence};

pub(super) mod kept;

/// A request to the block; `peer.data`.
pub(super) struct Attempt {
    pub(super) view: Rc<PeerView>,
    tried: Tried,
    pub(super) counted: Counted,
    /// Lives in the configuration, which outlives the request, or in `named`.
    block: *const Block,
    /// Keeps the block of a service that the request has named.
    _named: Option<Rc<Block>>,
    /// What the request is hashed by; lives as long as the request.
    key: &'static [u8],
    pub(super) request: *mut ngx_http_request_t,
    pub(super) upstream: *mut ngx_http_upstream_srv_conf_t,
    /// Once no instance can be used: nginx's round robin over the block's `server` lines.
    pub(super) servers: Option<Box<Delegate>>,
}

/// What a request begins with.
pub(super) struct Start {
    pub(super) block: *const Block,
    /// What keeps the block, if that is not the configuration.
    pub(super) named: Option<Rc<Block>>,
    pub(super) view: Rc<PeerView>,
    /// What the request is hashed by; lives as long as the request.
    pub(super) key: &'static [u8],
    /// How often nginx may try.
    pub(super) tries: ngx_uint_t,
}

/// # Safety
///
/// `data` is the `peer.data` of a request that [`super::ngx_http_upstream_init_consul_peer`] set; nginx
/// runs one callback of a request at a time.
pub(super) unsafe fn attempt<'a>(data: *mut c_void) -> &'a mut Attempt {
    // SAFETY: the caller's promise; the request's pool has the attempt.
    unsafe { &mut *data.cast::<Attempt>() }
}

pub(super) extern "C" fn ngx_http_upstream_get_consul_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
) -> ngx_int_t {
    // SAFETY: nginx passes our data, and the request's connection.
    fence(ERROR, || unsafe { attempt(data).get(pc) })
}

pub(super) extern "C" fn ngx_http_upstream_free_consul_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
    state: ngx_uint_t,
) {
    // SAFETY: as above.
    fence((), || unsafe { attempt(data).free(pc, state) });
}

impl Attempt {
    /// None is under way yet.
    #[inline(always)]
    pub(super) fn new(
        (request, upstream): (*mut ngx_http_request_t, *mut ngx_http_upstream_srv_conf_t),
        Start { block, named, view, key, .. }: Start,
    ) -> Attempt {
        Attempt {
            view,
            tried: Tried::default(),
            counted: Counted::default(),
            block,
            _named: named,
            key,
            request,
            upstream,
            servers: None,
        }
    }

    /// `peer.get`.
    ///
    /// # Safety
    ///
    /// `pc` is the request's connection.
    #[inline(always)]
    unsafe fn get(&mut self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        // SAFETY: the caller's promise. First of all, as nginx's own balancers do: while this says
        // that a kept connection was used, ngx_http_upstream_next() asks again, though nobody is left.
        unsafe {
            (*pc).set_cached(0);
            (*pc).connection = ptr::null_mut();
        }
        // nginx has freed the peer before; this is for what it forgets.
        if self.counted.is_in_flight() {
            self.counted.end();
        }
        if let Some(servers) = &self.servers {
            return servers.get(pc);
        }
        // SAFETY: the configuration outlives the request, or the attempt keeps the block.
        let block = unsafe { &*self.block };
        let now = now();
        let Some(worker) = block.worker() else { return self.get_none(pc) };
        let admitted = block.pick(worker, &self.view, &self.tried, self.key, now);
        let Some(Admitted { picked, permit }) = admitted else { return self.get_none(pc) };
        let peer = picked.known.number as usize;
        self.counted.begin(worker, picked, permit, now.monotonic);
        // SAFETY: the caller's promise.
        let pc = unsafe { &mut *pc };
        if trace::is_on(pc.log) {
            self.tell(pc.log, Some(peer));
        }
        self.tried.insert(peer);
        self.view.point(pc, peer);
        OK
    }

    /// `peer.free`.
    ///
    /// # Safety
    ///
    /// `pc` is the request's connection.
    #[inline(always)]
    unsafe fn free(&mut self, pc: *mut ngx_peer_connection_t, state: ngx_uint_t) {
        if let Some(servers) = &self.servers {
            servers.free(pc, state);
            return;
        }
        // SAFETY: the caller's promise.
        let pc = unsafe { &mut *pc };
        let single = self.is_single();
        if let (true, Some(peer)) = (trace::is_on(pc.log), self.counted.peer()) {
            let failed = state & NGX_PEER_FAILED as ngx_uint_t != 0;
            trace::ended(pc.log, self.block(), &self.view, peer, failed);
        }
        self.judge(state, single, pc.log);
        self.counted.end();
        pc.tries = if single { 0 } else { pc.tries.saturating_sub(1) };
    }

    pub(super) fn block(&self) -> &Block {
        // SAFETY: the configuration outlives the request.
        unsafe { &*self.block }
    }

    #[inline]
    fn with(&self) -> With<'_> {
        match (&self.servers, self.counted.peer()) {
            (Some(_), _) => With::Server,
            (None, Some(peer)) => {
                With::Instance(Whom { block: self.block(), view: &self.view, peer })
            }
            (None, None) => With::Unknown,
        }
    }

    /// Whether there is one instance and nobody else.
    fn is_single(&self) -> bool {
        self.view.len() == 1 && !self.block().has_fallback
    }

    /// Writes who was picked to the debug log, and before the first attempt what there is.
    #[cold]
    fn tell(&self, log: *mut ngx_log_t, peer: Option<usize>) {
        if self.tried.count() == 0 {
            trace::held(log, self.block(), &self.view);
        }
        trace::picked(log, self.block(), (&self.view, &self.tried), peer);
    }

    /// No instance can be used.
    #[cold]
    fn get_none(&mut self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        self.counted.end();
        // SAFETY: nginx passes the request's connection.
        let log = unsafe { (*pc).log };
        if trace::is_on(log) {
            self.tell(log, None);
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

    #[inline(always)]
    fn judge(&mut self, state: ngx_uint_t, single: bool, log: *mut ngx_log_t) {
        if self.block().method() == Method::LeastTime {
            self.note_time(state & NGX_PEER_FAILED as ngx_uint_t != 0);
        }
        // SAFETY: the configuration outlives the request, or the attempt keeps the block.
        let block = unsafe { &*self.block };
        // SAFETY: the request that peer.init got.
        let attempted = unsafe { Attempted::new(self.request, state) };
        if self.counted.judge(attempted, Account { block, view: &self.view, single }) {
            warn_of_failures(log);
        }
    }

    /// nginx has accepted the response header.
    #[inline(always)]
    pub(super) fn note_header(&mut self) {
        if self.counted.note_header() {
            self.judge_header();
        }
    }

    #[cold]
    #[inline(never)]
    fn judge_header(&mut self) {
        // SAFETY: the configuration outlives the request, or the attempt keeps the block.
        let block = unsafe { &*self.block };
        // SAFETY: the request that peer.init got.
        let attempted = unsafe { Attempted::new(self.request, 0) };
        let single = self.is_single();
        self.counted.judge_header(attempted, Account { block, view: &self.view, single });
    }

    /// Notes how long the peer took.
    #[inline(always)]
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

pub(super) extern "C" fn set_session(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
) -> ngx_int_t {
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

pub(super) extern "C" fn save_session(pc: *mut ngx_peer_connection_t, data: *mut c_void) {
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
