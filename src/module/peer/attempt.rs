//! A request's way through the peers of its upstream: which peer is next, and how it went.
//!
//! nginx's callbacks come with a pointer to the [`Attempt`] of their request. Variables that are
//! evaluated while a callback runs look at the same one, so all of it is behind shared references:
//! what changes is in cells.

use std::cell::{Cell, OnceCell};
use std::ffi::c_void;
use std::ptr::NonNull;
use std::rc::Rc;

use nginx_consul_core::balance::{self, Admitted, Method, PickContext, Tried};
use nginx_sys::{
    NGX_LOG_WARN, NGX_PEER_FAILED, ngx_http_request_t, ngx_http_upstream_init_round_robin_peer,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_log_t, ngx_peer_connection_t, ngx_uint_t,
};

use super::counters::{Account, AttemptCounters, Attempted};
use super::delegate::Delegate;
use super::keepalive::{InstanceRef, Lease, UpstreamPeer};
use super::nginx_method::MethodAttempt;
use super::set::PeerView;
use super::trace::{self, trace};
use super::upstream::Upstream;
use super::worker::{is_traced, monotonic};
use crate::ffi::{DECLINED, OK};

/// A request to an upstream; `peer.data`.
pub(super) struct Attempt {
    /// Of the configuration, which outlives the request, or what `_on_demand` holds.
    upstream: NonNull<Upstream>,
    /// The upstream of a service that the request has named.
    _on_demand: Option<Rc<Upstream>>,
    view: Rc<PeerView>,
    /// What the request is hashed by; lives as long as the request.
    key: NonNull<[u8]>,
    pub(super) request: *mut ngx_http_request_t,
    pub(super) us: *mut ngx_http_upstream_srv_conf_t,
    picker: Cell<Picker>,
    /// With a method of nginx, over the first tier of the view.
    method: OnceCell<MethodAttempt>,
    /// nginx's round robin over the `server` lines, once no instance can be used.
    servers: OnceCell<Box<Delegate>>,
    tried: Tried,
    counters: AttemptCounters,
    /// With `consul_keepalive`.
    pub(super) lease: Lease,
}

/// Who picks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Picker {
    /// The upstream's own method, or round robin after nginx's method.
    Own,
    /// nginx's method.
    Method,
    /// nginx's round robin over the `server` lines.
    Servers,
}

impl Attempt {
    /// No peer was picked yet.
    ///
    /// # Safety
    ///
    /// Request, upstream and key outlive the attempt.
    #[inline(always)]
    pub(super) unsafe fn new(
        (request, us): (*mut ngx_http_request_t, *mut ngx_http_upstream_srv_conf_t),
        (upstream, on_demand): (NonNull<Upstream>, Option<Rc<Upstream>>),
        view: Rc<PeerView>,
        key: NonNull<[u8]>,
    ) -> Attempt {
        Attempt {
            upstream,
            _on_demand: on_demand,
            view,
            key,
            request,
            us,
            picker: Cell::new(Picker::Own),
            method: OnceCell::new(),
            servers: OnceCell::new(),
            tried: Tried::default(),
            counters: AttemptCounters::default(),
            lease: Lease::default(),
        }
    }

    /// From here on a method of nginx picks.
    pub(super) fn pick_by(&self, method: MethodAttempt) {
        if self.method.set(method).is_ok() {
            self.picker.set(Picker::Method);
        }
    }

    /// nginx's method, as long as it picks.
    pub(super) fn method(&self) -> Option<&MethodAttempt> {
        self.method.get().filter(|_| self.picker.get() == Picker::Method)
    }

    /// nginx's round robin over the `server` lines, once it picks.
    pub(super) fn servers(&self) -> Option<&Delegate> {
        match self.picker.get() {
            Picker::Servers => self.servers.get().map(Box::as_ref),
            _ => None,
        }
    }

    #[inline(always)]
    pub(super) fn upstream(&self) -> &Upstream {
        // SAFETY: the configuration outlives the request, or `_on_demand` holds the upstream.
        unsafe { self.upstream.as_ref() }
    }

    pub(super) fn view(&self) -> &PeerView {
        &self.view
    }

    /// The peer that has the request.
    pub(super) fn peer(&self) -> Option<usize> {
        self.counters.peer()
    }

    /// `peer.get`, but for idle connections.
    ///
    /// # Safety
    ///
    /// `pc` is the request's connection.
    #[inline(always)]
    pub(super) unsafe fn get(&self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        // nginx has freed the peer before; this is for what it forgets.
        if self.counters.is_under_way() {
            self.counters.end();
        }
        match self.picker.get() {
            Picker::Own => self.pick(pc),
            Picker::Method => self.pick_by_method(pc),
            Picker::Servers => self.servers().map_or(DECLINED, |servers| servers.get(pc)),
        }
    }

    #[inline(always)]
    fn pick(&self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        let upstream = self.upstream();
        let Some(worker) = upstream.worker.get() else { return self.get_none(pc) };
        let (now, options) = (monotonic(), &upstream.options);
        let (view, table, tried) = (self.view.peers(), worker.table(), &self.tried);
        // SAFETY: the key lives as long as the request (the promise of new()).
        let key = unsafe { self.key.as_ref() };
        let alone = !options.has_fallback;
        let mut context = PickContext { view, table, tried, now, key, panic: false, alone };
        if options.panic.is_some() {
            context.panic = upstream.is_in_panic(&context);
        }
        let shared = || upstream.shared(worker);
        let admitted = {
            let rng = &mut *self.view.rng.borrow_mut();
            balance::pick(options.balance.method, &context, shared, rng)
        };
        let Some(Admitted { picked, permit }) = admitted else { return self.get_none(pc) };
        self.counters.begin(worker, picked, permit, now);
        self.point(pc, picked.info.number as usize)
    }

    /// Points the connection at the peer that was picked.
    #[inline(always)]
    fn point(&self, pc: *mut ngx_peer_connection_t, peer: usize) -> ngx_int_t {
        // SAFETY: nginx passes the request's connection.
        let pc = unsafe { &mut *pc };
        if is_traced(pc.log) {
            self.trace_pick(pc.log, Some(peer));
        }
        self.tried.insert(peer);
        self.view.point(pc, peer);
        OK
    }

    /// Asks nginx's method. Our round robin picks if the method can't, also if the set has changed
    /// since the request began.
    #[inline(never)]
    fn pick_by_method(&self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        let upstream = self.upstream();
        let tried = self.tried.count();
        let found = || {
            let (method, snapshots) = (self.method()?, upstream.nginx_method.as_ref()?);
            (tried == 0 || method.is_newest(snapshots)).then_some(method)
        };
        let Some((method, worker)) = found().zip(upstream.worker.get()) else {
            return self.pick_after_method(pc);
        };
        let context = upstream.pick_context(worker.table(), self.view.peers(), &self.tried);
        let admitted = method.pick(pc, &context, || upstream.shared(worker));
        let Some(Admitted { picked, permit }) = admitted else {
            return self.pick_after_method(pc);
        };
        self.counters.begin(worker, picked, permit, context.now);
        self.point(pc, picked.info.number as usize)
    }

    #[cold]
    fn pick_after_method(&self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        self.picker.set(Picker::Own);
        self.pick(pc)
    }

    /// No instance can be used.
    #[cold]
    #[inline(never)]
    fn get_none(&self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        self.counters.end();
        // SAFETY: nginx passes the request's connection.
        let log = unsafe { (*pc).log };
        if is_traced(log) {
            self.trace_pick(log, None);
        }
        if let Some(servers) = self.fall_back_to_servers() {
            trace!(log, "consul: on to the \"server\" lines");
            return servers.get(pc);
        }
        if self.tried.count() == 0 {
            self.upstream().log_no_peers(log);
        }
        // SAFETY: as above.
        let pc = unsafe { &mut *pc };
        pc.name = self.upstream().name_ptr();
        pc.tries = 0;
        // Not NGX_BUSY: nginx would log a line for each request.
        DECLINED
    }

    /// From here on the upstream's `server` lines are asked, if it has some.
    fn fall_back_to_servers(&self) -> Option<&Delegate> {
        if !self.upstream().options.has_fallback {
            return None;
        }
        let (r, us) = (self.request, self.us);
        // SAFETY: the request and the upstream that peer.init got.
        let init = || unsafe { ngx_http_upstream_init_round_robin_peer(r, us) };
        // SAFETY: as above; round robin's data lives in the request's pool.
        let servers = unsafe { Delegate::new(r, init) }?;
        self.counters.forget_last();
        self.picker.set(Picker::Servers);
        Some(self.servers.get_or_init(|| Box::new(servers)))
    }

    /// Whether there is one instance and no `server` line.
    fn is_single(&self) -> bool {
        self.view.len() == 1 && !self.upstream().options.has_fallback
    }

    /// `peer.free`, but for idle connections.
    ///
    /// # Safety
    ///
    /// `pc` is the request's connection.
    #[inline(always)]
    pub(super) unsafe fn free(&self, pc: *mut ngx_peer_connection_t, state: ngx_uint_t) {
        // SAFETY: the caller's promise.
        let tries = unsafe { (*pc).tries };
        if self.picker.get() != Picker::Own && self.free_delegate(pc, state) {
            return;
        }
        // SAFETY: as above.
        let pc = unsafe { &mut *pc };
        let upstream = self.upstream();
        let single = self.is_single();
        if let (true, Some(peer)) = (is_traced(pc.log), self.counters.peer()) {
            let failed = state & NGX_PEER_FAILED as ngx_uint_t != 0;
            trace::done(pc.log, upstream, &self.view, peer, failed);
        }
        // SAFETY: the request that peer.init got.
        let attempted = unsafe { Attempted::new(self.request, state) };
        if upstream.options.balance.method == Method::LeastTime {
            self.counters.note_time(attempted, &self.view);
        }
        let account = Account { upstream, view: &self.view, single };
        if self.counters.judge(attempted, account) {
            warn_of_failures(pc.log);
        }
        self.counters.end();
        pc.tries = if single { 0 } else { tries.saturating_sub(1) };
    }

    /// Tells the other balancer that picks; `true` if that is for the `server` lines.
    #[inline(never)]
    fn free_delegate(&self, pc: *mut ngx_peer_connection_t, state: ngx_uint_t) -> bool {
        if let Some((method, snapshots)) = self.method().zip(self.upstream().nginx_method.as_ref())
        {
            method.free(snapshots, (pc, state), self.counters.peer());
        }
        let servers = self.servers();
        servers.inspect(|servers| servers.free(pc, state)).is_some()
    }

    /// nginx has accepted the response header.
    #[inline(always)]
    pub(super) fn note_header(&self) {
        if self.counters.note_header() {
            self.judge_header();
        }
    }

    #[cold]
    #[inline(never)]
    fn judge_header(&self) {
        // SAFETY: the request that peer.init got.
        let attempted = unsafe { Attempted::new(self.request, 0) };
        let (upstream, view, single) = (self.upstream(), &*self.view, self.is_single());
        self.counters.judge_header(attempted, Account { upstream, view, single });
    }

    /// The peer that has the request, as keepalive knows it.
    #[inline]
    pub(super) fn upstream_peer(&self) -> Option<UpstreamPeer<'_>> {
        if self.picker.get() == Picker::Servers {
            return Some(UpstreamPeer::Server);
        }
        let (sets, view) = (&*self.upstream().sets, &*self.view);
        let record = view.peers().records().get(self.counters.peer()?)?;
        Some(UpstreamPeer::Instance(InstanceRef { sets, view, record }))
    }

    /// Writes which peer was picked to the debug log, and before the first attempt the sets.
    #[cold]
    #[inline(never)]
    fn trace_pick(&self, log: *mut ngx_log_t, peer: Option<usize>) {
        let (upstream, tried) = (self.upstream(), &self.tried);
        if tried.count() == 0 {
            trace::set(log, upstream, &self.view);
        }
        trace::pick(log, upstream, (&self.view, tried), peer);
    }

    /// The peer that the request went to last, by its number in the view; `None` if it went to a
    /// `server` line.
    pub(super) fn last_instance(&self) -> Option<Option<usize>> {
        (self.picker.get() != Picker::Servers).then(|| self.counters.last())
    }
}

impl Drop for Attempt {
    /// With the request's pool; nginx has freed the peer before, so this is for what it forgets.
    fn drop(&mut self) {
        self.counters.end();
    }
}

#[cold]
fn warn_of_failures(log: *mut ngx_log_t) {
    ngx::ngx_log_error!(NGX_LOG_WARN, log, "upstream server temporarily disabled");
}

/// The attempt of a request.
///
/// # Safety
///
/// `data` is the `peer.data` of a request that `peer.init` set.
#[inline(always)]
pub(super) unsafe fn attempt<'a>(data: *mut c_void) -> &'a Attempt {
    // SAFETY: the caller's promise; the attempt lives as long as the request's pool, and there are
    // shared references only.
    unsafe { &*data.cast::<Attempt>() }
}
