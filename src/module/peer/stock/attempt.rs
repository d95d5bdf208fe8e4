//! A request to a block whose method is nginx's or another module's.

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::rc::Rc;

use nginx_consul_core::balance::{Picked, Tried};
use nginx_consul_core::table::Permit;
use nginx_sys::{
    NGX_BUSY, NGX_DONE, ngx_http_request_t, ngx_http_upstream_init_round_robin_peer,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_peer_connection_t, ngx_uint_t,
};

use super::super::block::Block;
use super::super::block_of;
use super::super::clock::now;
use super::super::counted::Counted;
use super::super::delegate::Delegate;
use super::super::keepalive::{Whom, With};
use super::super::served;
use super::super::trace;
use super::super::view::PeerView;
use super::carry::Key;
use super::snapshot::Snapshot;
use super::{Instant, Stock, places};
use crate::ffi::{ERROR, OK, fence};
use crate::session;
use relay::{notify, save_session, set_session};

mod admission;
mod outcome;
mod relay;
mod told;

const BUSY: ngx_int_t = NGX_BUSY as ngx_int_t;
const DONE: ngx_int_t = NGX_DONE as ngx_int_t;

/// `peer.data`.
pub(in super::super) struct StockAttempt {
    /// Lives in the configuration, which outlives the request, or in `named`.
    block: *const Block,
    /// Keeps the block of a service that the request has named.
    _named: Option<Rc<Block>>,
    request: *mut ngx_http_request_t,
    /// What the request is bound to; `None` once the service has no instance.
    snapshot: Option<Rc<Snapshot>>,
    /// Who picks from it, once asked.
    delegate: Option<Delegate>,
    counted: Counted,
    /// Of earlier attempts, if there were any that matter.
    past: ManuallyDrop<Option<Box<Past>>>,
    /// The tier in use; after the last one come the block's `server` lines. It never falls, so
    /// that the request ends even if the set changes all the time.
    tier: u32,
    /// There is nobody left to try in this tier.
    exhausted: bool,
    /// The `server` lines are in use.
    on_servers: bool,
    /// Nobody was asked yet.
    fresh: bool,
}

#[derive(Default)]
struct Past {
    /// What the request was bound to: before nginx 1.27.3 `$upstream_addr` points at a peer's name
    /// until the access log is written.
    older: Vec<Rc<Snapshot>>,
    /// Instances that have failed the request.
    tried: Vec<Key>,
    /// Who had the request last, if that was one of an older snapshot.
    served: Option<(Rc<PeerView>, usize)>,
}

/// `peer.init`.
pub(in super::super) extern "C" fn ngx_http_upstream_init_stock_peer(
    r: *mut ngx_http_request_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes a request with an upstream, and a block of the running
        // configuration, which lives as long as the worker.
        unsafe {
            let Some((block, named)) = block_of(r, us) else { return ERROR };
            let block = &*block;
            let Some(stock) = block.stock() else { return ERROR };
            let snapshot = stock.current(block);
            if snapshot.is_none() && block.has_fallback {
                served::forget(r);
                return ngx_http_upstream_init_round_robin_peer(r, us);
            }
            let peer = &raw mut (*(*r).upstream).peer;
            let mut delegate = None;
            let mut tries = 1;
            // Before there is an attempt that a variable may look at.
            if let Some(snapshot) = &snapshot {
                let first_use = snapshot.is_first_use().then(Instant::now);
                // SAFETY: the request gets the snapshot to hold, or ends here.
                let Some(taken) = Delegate::take(r, || snapshot.init(r, 0)) else { return ERROR };
                tries = taken.1.max(1);
                // The method set its own, or nothing.
                (*peer).notify = if taken.0.wants_notes() { Some(notify) } else { None };
                delegate = Some(taken.0);
                if let Some(start) = first_use {
                    note_first_use(block, start);
                }
            }
            let log = (*(*r).connection).log;
            if let (true, Some(snapshot)) = (trace::is_on(log), &snapshot) {
                trace::held(log, block, snapshot.view());
            }
            let attempt = places::make((*r).pool, || StockAttempt {
                block,
                _named: named,
                request: r,
                snapshot,
                delegate,
                counted: Counted::default(),
                past: ManuallyDrop::new(None),
                tier: 0,
                exhausted: false,
                on_servers: false,
                fresh: true,
            });
            let Some(attempt) = attempt.as_mut() else { return ERROR };
            (*peer).tries = tries;
            (*peer).data = (&raw mut *attempt).cast();
            (*peer).get = Some(ngx_http_upstream_get_stock_peer);
            (*peer).free = Some(ngx_http_upstream_free_stock_peer);
            session::install(&mut *peer, set_session, save_session);
        }
        OK
    })
}

/// # Safety
///
/// `data` is the `peer.data` of a request that [`ngx_http_upstream_init_stock_peer`] set; nginx
/// runs one callback of a request at a time.
unsafe fn attempt<'a>(data: *mut c_void) -> &'a mut StockAttempt {
    // SAFETY: the caller's promise; the attempt lives as long as the request's pool.
    unsafe { &mut *data.cast::<StockAttempt>() }
}

/// Whom a request is with. Without an attempt of ours it is with a `server` line.
///
/// # Safety
///
/// `picker` was made by our `peer.init` for a request, whose pool is still there.
pub(in super::super) unsafe fn picked_by<'a>(picker: &Delegate) -> With<'a> {
    if !picker.gets_by(ngx_http_upstream_get_stock_peer) {
        return With::Server;
    }
    // SAFETY: the data is that of our callback.
    let attempt = unsafe { attempt(picker.data()) };
    match (attempt.on_servers, attempt.counted.peer(), &attempt.snapshot) {
        (true, ..) => With::Server,
        (false, Some(peer), Some(snapshot)) => {
            With::Instance(Whom { block: attempt.block(), view: snapshot.view(), peer })
        }
        _ => With::Unknown,
    }
}

extern "C" fn ngx_http_upstream_get_stock_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes our data.
        let attempt = unsafe { attempt(data) };
        let _busy = served::Busy::new(attempt.request);
        if std::mem::take(&mut attempt.fresh) { attempt.pick_first(pc) } else { attempt.retry(pc) }
    })
}

extern "C" fn ngx_http_upstream_free_stock_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
    state: ngx_uint_t,
) {
    fence((), || {
        // SAFETY: nginx passes our data.
        let attempt = unsafe { attempt(data) };
        if let Some(delegate) = &attempt.delegate {
            delegate.free(pc, state);
        }
        if attempt.on_servers {
            return;
        }
        // SAFETY: nginx passes the request's connection.
        let pc = unsafe { &mut *pc };
        attempt.note_outcome(state, pc.log);
        if pc.tries == 0 && attempt.has_more() {
            attempt.exhausted = true;
            pc.tries = 1;
        }
    });
}

/// Methods may leave work to the first request.
#[cold]
fn note_first_use(block: &Block, start: Instant) {
    if let Some(stock) = block.stock() {
        stock.note_cost(block, start.elapsed(), format_args!("first request prepared"));
    }
}

impl StockAttempt {
    fn block(&self) -> &'static Block {
        // SAFETY: the configuration outlives the request.
        unsafe { &*self.block }
    }

    fn stock(&self) -> Option<&'static Stock> {
        self.block().stock()
    }

    #[cold]
    fn forget_past(&mut self) {
        self.past.take();
    }

    /// Whether there is something after the tier in use.
    fn has_more(&self) -> bool {
        let tiers = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.tiers());
        self.block().has_fallback || self.tier as usize + 1 < tiers
    }

    /// Goes over to newer peers, if there are some.
    fn renew(&mut self) {
        let present = self.stock().and_then(|stock| stock.current(self.block()));
        let is_same = match (&self.snapshot, &present) {
            (Some(held), Some(present)) => Rc::ptr_eq(held, present),
            (None, None) => true,
            _ => false,
        };
        if !is_same {
            self.delegate = None;
            let held = self.snapshot.take();
            let served = held.as_ref().zip(self.counted.last());
            let served = served.map(|(held, peer)| (Rc::clone(held.view()), peer));
            self.counted.forget_last();
            let past = self.past.get_or_insert_default();
            past.served = served.or(past.served.take());
            past.older.extend(held);
            self.snapshot = present;
        }
    }

    /// Prepares for picks from the tier; the number of tries that its method gives the request.
    #[cold]
    fn bind(&mut self) -> Option<ngx_uint_t> {
        let snapshot = self.snapshot.as_ref()?;
        let (r, tier) = (self.request, self.tier as usize);
        let first_use = snapshot.is_first_use().then(Instant::now);
        // SAFETY: the request that peer.init got; it holds the snapshot.
        let (delegate, tries) = unsafe { Delegate::new(r, || snapshot.init(r, tier)) }?;
        if let Some(past) = self.past.as_ref().filter(|past| !past.tried.is_empty()) {
            // SAFETY: it was just bound to this tier.
            unsafe { snapshot.pass_over(&delegate, tier, &past.tried) };
        }
        if let Some(start) = first_use {
            note_first_use(self.block(), start);
        }
        self.delegate = Some(delegate);
        Some(tries.max(1))
    }

    /// The first attempt, and mostly the only one.
    #[inline]
    fn pick_first(&mut self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        if self.delegate.is_none() {
            return self.pick(pc);
        }
        let picked = self.ask(pc);
        if picked != BUSY || !self.has_more() {
            return picked;
        }
        self.exhausted = true;
        self.pick(pc)
    }

    #[cold]
    fn retry(&mut self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        // SAFETY: nginx passes the request's connection. As nginx's own balancers do: while this says
        // that a kept connection was used, ngx_http_upstream_next() asks again, though nobody is left.
        unsafe { (*pc).set_cached(0) };
        // nginx has freed the peer before; this is for what it forgets.
        self.counted.end();
        if !self.on_servers {
            self.renew();
        }
        self.pick(pc)
    }

    #[cold]
    fn pick(&mut self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        let mut moved = false;
        while let Some(tiers) = self.snapshot.as_ref().map(|snapshot| snapshot.tiers()) {
            if self.exhausted {
                (self.exhausted, self.delegate, moved) = (false, None, true);
                self.tier += 1;
            }
            if self.on_servers || self.tier as usize >= tiers {
                break;
            }
            if self.delegate.is_none() {
                let Some(tries) = self.bind() else { return ERROR };
                if std::mem::take(&mut moved) {
                    // SAFETY: nginx passes the request's connection.
                    unsafe { (*pc).tries = tries };
                }
            }
            let picked = self.ask(pc);
            if picked != BUSY || !self.has_more() {
                return picked;
            }
            self.exhausted = true;
        }
        self.pick_server(pc)
    }

    /// Asks the block's `server` lines, the last ones to be asked.
    #[cold]
    fn pick_server(&mut self, pc: *mut ngx_peer_connection_t) -> ngx_int_t {
        if !self.block().has_fallback {
            return self.refuse(pc);
        }
        if let (false, Some(stock)) = (self.on_servers, self.stock()) {
            let (r, us) = (self.request, stock.upstream);
            // SAFETY: the request that peer.init got, and its block.
            let taken =
                unsafe { Delegate::new(r, || ngx_http_upstream_init_round_robin_peer(r, us)) };
            // SAFETY: nginx passes the request's connection.
            trace::trace!(unsafe { (*pc).log }, "consul: on to the \"server\" lines");
            self.on_servers = true;
            self.counted.forget_last();
            self.delegate = taken.map(|(delegate, tries)| {
                // SAFETY: nginx passes the request's connection.
                unsafe { (*pc).tries = tries.max(1) };
                delegate
            });
        }
        self.delegate.as_ref().map_or(ERROR, |delegate| delegate.get(pc))
    }

    #[inline]
    fn begin(&mut self, pc: *mut ngx_peer_connection_t, permit: Option<Permit<'static>>) {
        // SAFETY: nginx passes the request's connection.
        let address = unsafe { (*pc).sockaddr };
        self.counted.forget_last();
        if let Some(past) = self.past.as_mut() {
            past.served = None;
        }
        let (Some(snapshot), Some(worker)) = (&self.snapshot, self.block().worker()) else {
            return;
        };
        // Another module's method may have addresses of its own.
        if let Some(peer) = snapshot.view().number_at(address) {
            let known = snapshot.view().peers().known(peer);
            let counters = worker.table.slot(known.place);
            let picked = Picked { known, counters };
            // SAFETY: as above.
            let log = unsafe { (*pc).log };
            if trace::is_on(log) {
                let (view, tried) = (snapshot.view(), Tried::default());
                trace::picked(log, self.block(), (view, &tried), Some(peer));
            }
            self.counted.begin(worker, picked, permit, now().monotonic);
        }
    }
}

impl Drop for StockAttempt {
    /// With the request's pool; nginx has freed the peer before, so this is for what it forgets.
    #[inline]
    fn drop(&mut self) {
        self.counted.end();
        if self.past.is_some() {
            self.forget_past();
        }
    }
}
