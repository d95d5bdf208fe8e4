//! A request's way through the instances: who is next, and how it went.

use std::ptr;
use std::rc::Rc;

use nginx_consul_core::balance::{Admission, Admitted, Picked, Tried};
use nginx_consul_core::table::Permit;
use nginx_sys::{
    NGX_PEER_FAILED, ngx_http_request_t, ngx_http_upstream_init_round_robin_peer,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_log_t, ngx_peer_connection_t, ngx_uint_t,
};

use super::clock::now;
use super::counters::Counted;
use super::delegate::Delegate;
use super::keepalive::{InstanceRef, Keepalive, Kept, UpstreamPeer};
use super::nginx_method::Snapshot;
use super::trace;
use super::trace::trace;
use super::upstream::Upstream;
use super::view::PeerView;
use super::worker::Worker;
use crate::ffi::{DECLINED, ERROR, OK, bits};

pub(super) mod callbacks;
pub(super) mod cell;
mod judge;

/// A request to the block; `peer.data`.
pub(super) struct Attempt {
    view: Rc<PeerView>,
    tried: Tried,
    counted: Counted,
    /// Lives in the configuration, which outlives the request, or in `named`.
    block: *const Upstream,
    /// Keeps the block of a service that the request has named.
    _named: Option<Rc<Upstream>>,
    /// What the request is hashed by; lives as long as the request.
    key: &'static [u8],
    pub(super) request: *mut ngx_http_request_t,
    pub(super) upstream: *mut ngx_http_upstream_srv_conf_t,
    picker: Picker,
    /// With `consul_keepalive`.
    kept: Option<Kept>,
}

/// Who picks.
pub(super) enum Picker {
    /// The block's method of ours, or round robin after nginx's method.
    Own,
    /// nginx's method, over these peers of the view's first tier.
    Method(Rc<Snapshot>, Delegate),
    /// Once no instance can be used: nginx's round robin over the block's `server` lines.
    Servers(Delegate),
}

impl Attempt {
    /// None is under way yet. `key` lives as long as the request; `named` keeps the block if that is
    /// not of the configuration.
    #[inline(always)]
    pub(super) fn new(
        (request, upstream): (*mut ngx_http_request_t, *mut ngx_http_upstream_srv_conf_t),
        (block, named): (*const Upstream, Option<Rc<Upstream>>),
        view: Rc<PeerView>,
        key: &'static [u8],
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
            picker: Picker::Own,
            kept: None,
        }
    }

    /// Prepares a new attempt for picks by nginx's method; `false` if that fails.
    ///
    /// # Safety
    ///
    /// The attempt is of a request with an upstream, and its callbacks are not set yet.
    #[inline(never)]
    pub(super) unsafe fn bind(attempt: *mut Attempt) -> bool {
        // SAFETY: the caller's promise. While the method prepares the request, and may evaluate
        // variables, nobody holds a reference to the attempt.
        unsafe {
            let (block, r) = (&*(*attempt).block, (*attempt).request);
            let view = &(*attempt).view;
            let Some(method) = block.nginx_method() else { return true };
            let Some(snapshot) = method.snapshot(block, view) else { return true };
            let Some(delegate) = Delegate::take(r, || snapshot.init(r)) else { return false };
            if snapshot.is_first_use() {
                method.note_first_use(block, &snapshot);
            }
            // The method has set its own, or nothing.
            let peer = &raw mut (*(*r).upstream).peer;
            (*peer).notify = if delegate.wants_notes() { Some(callbacks::notify) } else { None };
            if !Rc::ptr_eq(view, snapshot.view()) {
                (*attempt).view = Rc::clone(snapshot.view());
            }
            (*attempt).picker = Picker::Method(snapshot, delegate);
        }
        true
    }

    /// Has the request take and leave idle connections. They stay where they are until its end.
    #[inline]
    pub(super) fn keep_alive(&mut self, keepalive: &Rc<Keepalive>) {
        self.kept = Some(Kept::new(keepalive));
    }

    /// `peer.get`, but for idle connections.
    ///
    /// # Safety
    ///
    /// `pc` is the request's connection.
    #[inline(always)]
    unsafe fn get(&mut self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        // SAFETY: the caller's promise. First of all, as nginx's own balancers do: while this says
        // that a kept connection was used, ngx_http_upstream_next() asks again, though nobody is left.
        unsafe {
            bits::peer_connection::CACHED.set(pc, false);
            (*pc).connection = ptr::null_mut();
        }
        if let Some(kept) = &mut self.kept {
            kept.forget();
        }
        // nginx has freed the peer before; this is for what it forgets.
        if self.counted.is_in_flight() {
            self.counted.end();
        }
        match &self.picker {
            Picker::Own => self.pick(pc),
            Picker::Method(..) => self.pick_by_method(pc),
            Picker::Servers(servers) => servers.get(pc),
        }
    }

    #[inline(always)]
    fn pick(&mut self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        // SAFETY: the configuration outlives the request, or the attempt keeps the block.
        let block = unsafe { &*self.block };
        let now = now();
        let Some(worker) = block.worker() else { return self.get_none(pc) };
        let admitted = block.pick(worker, &self.view, &self.tried, self.key, now);
        let Some(Admitted { picked, permit }) = admitted else { return self.get_none(pc) };
        let peer = picked.info.number as usize;
        self.counted.begin(worker, picked, permit, now.monotonic);
        self.point(pc, peer)
    }

    /// Asks nginx's method. What it can't use, and what has changed since the request began, is left
    /// to our round robin.
    #[inline(never)]
    fn pick_by_method(&mut self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        let Picker::Method(snapshot, method) = &self.picker else { return ERROR };
        let (block, worker) = (self.block(), self.block().worker());
        // Methods that keep their tables in the block have them of the newest snapshot.
        let is_newest = || block.nginx_method().is_some_and(|method| method.is_current(snapshot));
        let may_ask = self.tried.count() == 0 || is_newest();
        let Some(worker) = worker.filter(|_| may_ask) else { return self.pick_after_method(pc) };
        let mut permit = None;
        if self.is_single() {
            match self.admit_to_single(worker) {
                Admission::Free => {}
                Admission::With(given) => permit = Some(given),
                Admission::Refused => return self.get_none(pc),
            }
        }
        let picked = method.get(pc);
        // SAFETY: nginx passes the request's connection.
        let peer = self.view.number_at(unsafe { (*pc).sockaddr });
        match (picked, peer) {
            (OK, Some(peer)) => {
                let picked = picked_of(worker, &self.view, peer);
                self.counted.begin(worker, picked, permit, now().monotonic);
                self.point(pc, peer)
            }
            _ => {
                permit.into_iter().for_each(Permit::end);
                self.pick_after_method(pc)
            }
        }
    }

    #[cold]
    fn pick_after_method(&mut self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        self.picker = Picker::Own;
        self.pick(pc)
    }

    /// Whether the request may try the block's only instance; nginx's method decides on others.
    #[inline(never)]
    fn admit_to_single(&self, worker: Worker) -> Admission<'static> {
        let picked = picked_of(worker, &self.view, 0);
        if !picked.counters.has_fails() {
            return Admission::Free;
        }
        let (block, tried) = (self.block(), Tried::default());
        let candidates = block.candidates(&worker.share().table, self.view.peers(), &tried);
        candidates.admit(picked, &block.shared(worker))
    }

    /// Points the connection at the peer that was picked.
    #[inline(always)]
    fn point(&mut self, pc: *mut ngx_peer_connection_t, peer: usize) -> ngx_int_t {
        // SAFETY: nginx passes the request's connection.
        let pc = unsafe { &mut *pc };
        if trace::is_on(pc.log) {
            self.tell(pc.log, Some(peer));
        }
        self.tried.insert(peer);
        self.view.point(pc, peer);
        OK
    }

    /// `peer.free`, but for idle connections.
    ///
    /// # Safety
    ///
    /// `pc` is the request's connection.
    #[inline(always)]
    unsafe fn free(&mut self, pc: *mut ngx_peer_connection_t, state: ngx_uint_t) {
        // SAFETY: the caller's promise.
        let tries = unsafe { (*pc).tries };
        match &self.picker {
            Picker::Own => {}
            Picker::Method(snapshot, method) => {
                method.free(pc, state);
                self.note_end(snapshot);
            }
            Picker::Servers(servers) => return servers.free(pc, state),
        }
        // SAFETY: as above.
        let pc = unsafe { &mut *pc };
        let single = self.is_single();
        if let (true, Some(peer)) = (trace::is_on(pc.log), self.counted.peer()) {
            let failed = state & NGX_PEER_FAILED as ngx_uint_t != 0;
            trace::ended(pc.log, self.block(), &self.view, peer, failed);
        }
        self.judge(state, single, pc.log);
        self.counted.end();
        pc.tries = if single { 0 } else { tries.saturating_sub(1) };
    }

    /// A request to a peer of nginx's ends: newer ones count it too.
    #[inline]
    fn note_end(&self, snapshot: &Rc<Snapshot>) {
        if let (Some(method), Some(peer)) = (self.block().nginx_method(), self.counted.peer()) {
            if !method.is_current(snapshot) {
                method.note_end(snapshot, peer);
            }
        }
    }

    fn block(&self) -> &Upstream {
        // SAFETY: the configuration outlives the request, or the attempt keeps the block.
        unsafe { &*self.block }
    }

    /// Whether there is one instance and nobody else.
    fn is_single(&self) -> bool {
        self.view.len() == 1 && !self.block().has_fallback()
    }

    /// The peer that has the request, and what the request keeps of connections.
    #[inline]
    fn connection(&mut self) -> Option<(UpstreamPeer<'_>, &mut Kept)> {
        // SAFETY: the configuration outlives the request, or the attempt keeps the block.
        let block = unsafe { &*self.block };
        let peer = match (&self.picker, self.counted.peer()) {
            (Picker::Servers(_), _) => UpstreamPeer::Server,
            (_, peer) => {
                UpstreamPeer::Instance(InstanceRef { block, view: &self.view, peer: peer? })
            }
        };
        Some((peer, self.kept.as_mut()?))
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
        if !self.block().has_fallback() {
            return None;
        }
        let (r, us) = (self.request, self.upstream);
        // SAFETY: the request and block that peer.init got.
        let servers =
            unsafe { Delegate::new(r, || ngx_http_upstream_init_round_robin_peer(r, us)) }?;
        self.counted.forget_last();
        self.picker = Picker::Servers(servers);
        self.servers()
    }

    fn servers(&self) -> Option<&Delegate> {
        if let Picker::Servers(servers) = &self.picker { Some(servers) } else { None }
    }

    /// The block that the request was sent to, what it picked from, and the peer that it went to last;
    /// `None` if it went to a `server` line.
    pub(super) fn served(&self) -> Option<(&Upstream, &PeerView, Option<usize>)> {
        match self.picker {
            Picker::Servers(_) => None,
            _ => Some((self.block(), &self.view, self.counted.last())),
        }
    }
}

/// A peer that nginx's method decides on.
#[inline]
fn picked_of(worker: Worker, view: &PeerView, peer: usize) -> Picked<'_, 'static> {
    let known = view.peers().info(peer);
    Picked { info: known, counters: worker.share().table.peer_counters(known.slot) }
}

impl Drop for Attempt {
    /// With the request's pool; nginx has freed the peer before, so this is for what it forgets.
    fn drop(&mut self) {
        self.counted.end();
    }
}
