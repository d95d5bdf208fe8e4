//! A balancing method of nginx that stands before `consul_dynamic`: it does the picking, over peers
//! that are made anew of each set.
//!
//! Each worker has peers of its own, as in an `upstream` without `zone`. The method's
//! `init_upstream` makes them, in a pool of their own, as it does when nginx reads a configuration
//! ([`snapshot`]). Requests hold the peers they use; a retry goes over to newer ones ([`attempt`]).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::ptr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nginx_sys::{
    NGX_LOG_DEBUG, ngx_conf_t, ngx_cycle, ngx_http_conf_ctx_t, ngx_http_upstream_srv_conf_t,
    ngx_int_t, ngx_pcalloc, ngx_shm_zone_t,
};

use super::block::Block;
use super::view::PeerView;
use crate::conf::Inner;
use crate::ffi::ERROR;

mod attempt;
mod carry;
mod places;
mod snapshot;

pub(super) use attempt::{StockAttempt, ngx_http_upstream_init_stock_peer, picked_by};
use carry::Key;
pub(super) use places::attempt_of;
use snapshot::Snapshot;

/// A balancer's `init_upstream`.
pub(crate) type InitUpstream =
    unsafe extern "C" fn(*mut ngx_conf_t, *mut ngx_http_upstream_srv_conf_t) -> ngx_int_t;

/// After new peers were made the next ones have to wait so many times as long as that took: a storm
/// of changes takes at most 5 % of a worker's time.
const REST: u32 = 20;

/// The method of a block, as a worker uses it.
pub(crate) struct Stock {
    method: Inner,
    upstream: *mut ngx_http_upstream_srv_conf_t,
    /// Of `http`; lives as long as the configuration.
    context: *mut ngx_http_conf_ctx_t,
    current: RefCell<Option<Rc<Snapshot>>>,
    /// No new peers before that.
    rest: Cell<Option<Instant>>,
    /// Number of the newest peers, never given twice.
    #[cfg(nginx_peers_config)]
    serial: Cell<usize>,
    /// Requests in flight to peers that are not in `current`.
    gone: RefCell<HashMap<Key, usize>>,
}

impl Stock {
    /// # Safety
    ///
    /// The block and the context are of the configuration that the value becomes part of.
    pub(crate) unsafe fn new(
        method: Inner,
        upstream: *mut ngx_http_upstream_srv_conf_t,
        context: *mut ngx_http_conf_ctx_t,
    ) -> Stock {
        Stock {
            method,
            upstream,
            context,
            current: RefCell::default(),
            rest: Cell::new(None),
            #[cfg(nginx_peers_config)]
            serial: Cell::new(0),
            gone: RefCell::default(),
        }
    }

    /// The same for another service: the method keeps nothing in the block, or the configuration
    /// was refused.
    pub(super) fn another(&self) -> Stock {
        // SAFETY: both are of the configuration that `self` is part of.
        unsafe { Stock::new(self.method.clone(), self.upstream, self.context) }
    }

    /// The method, for people.
    pub(super) fn name(&self) -> &str {
        &self.method.name
    }

    /// The peers for a new request or attempt; `None` if the service has no instance.
    #[inline(always)]
    fn current(&self, block: &Block) -> Option<Rc<Snapshot>> {
        if let (Some(current), Some(worker)) = (&*self.current.borrow(), block.worker()) {
            if block.is_present(worker, current.view()) {
                return Some(Rc::clone(current));
            }
        }
        self.renewed(block)
    }

    #[cold]
    fn renewed(&self, block: &Block) -> Option<Rc<Snapshot>> {
        if self.rests() {
            return self.current.borrow().clone();
        }
        let start = Instant::now();
        let view = block.worker().and_then(|worker| block.view(worker));
        let view = view.filter(|view| !view.is_empty());
        let mut current = self.current.borrow_mut();
        let is_same = match (&*current, &view) {
            (Some(held), Some(view)) => Rc::ptr_eq(held.view(), view),
            (None, None) => true,
            _ => false,
        };
        if !is_same {
            self.replace(&mut current, view, block);
            let peers = current.as_ref().map_or(0, |held| held.view().len());
            self.note_cost(block, start.elapsed(), format_args!("{peers} peers made anew"));
        }
        current.clone()
    }

    fn replace(
        &self,
        current: &mut Option<Rc<Snapshot>>,
        view: Option<Rc<PeerView>>,
        block: &Block,
    ) {
        let mut gone = self.gone.borrow_mut();
        let new = match view {
            None => None,
            Some(view) => match Snapshot::new(self, view, block.has_fallback) {
                Some(new) => Some(Rc::new(new)),
                // Memory is short, or the method refuses: the old ones serve on.
                None => return,
            },
        };
        carry::over(current.as_deref(), new.as_deref(), &mut gone);
        *current = new;
    }

    fn is_current(&self, snapshot: &Rc<Snapshot>) -> bool {
        self.current.borrow().as_ref().is_some_and(|current| Rc::ptr_eq(current, snapshot))
    }

    /// A request to a peer of older peers has ended.
    fn note_end(&self, key: Key) {
        carry::note_end(self.current.borrow().as_deref(), key, &mut self.gone.borrow_mut());
    }

    fn rests(&self) -> bool {
        let Some(end) = self.rest.get() else { return false };
        let rests = Instant::now() < end;
        if !rests {
            self.rest.set(None);
        }
        rests
    }

    /// Work on new peers took so long.
    fn note_cost(&self, block: &Block, cost: Duration, work: fmt::Arguments<'_>) {
        // SAFETY: a worker's cycle and its log live as long as the worker.
        let log = unsafe { (*ngx_cycle).log };
        ngx::ngx_log_error!(
            NGX_LOG_DEBUG,
            log,
            "consul: upstream \"{}\": {work} for \"{}\" in {cost:?}",
            block.name(),
            self.name()
        );
        let now = Instant::now();
        let from = self.rest.get().map_or(now, |end| end.max(now));
        self.rest.set(from.checked_add(cost * REST));
    }

    #[cfg(nginx_peers_config)]
    fn next_serial(&self) -> usize {
        let serial = self.serial.get() + 1;
        self.serial.set(serial);
        serial
    }
}

/// Runs a method's `init_upstream` over a copy of a block, which has its `servers` already.
///
/// # Safety
///
/// `cf` has the pool and the context of the block's `http`; `copy` is a copy of a block whose
/// servers live in that pool.
unsafe fn init_copy(
    method: &Inner,
    cf: *mut ngx_conf_t,
    copy: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    // SAFETY: the caller's promise. Since 1.27.3 nginx's `hash consistent` and `random` give memory
    // back by ngx_free() that they took from the pool, unless the block has a zone: then they make
    // their tables when the first request comes, on the heap. They look at whether there is one.
    unsafe {
        let lends_zone = cfg!(nginx_peers_config) && (*copy).shm_zone.is_null();
        if lends_zone {
            let size = size_of::<ngx_shm_zone_t>();
            let zone = ngx_pcalloc((*cf).pool, size).cast::<ngx_shm_zone_t>();
            if zone.is_null() {
                return ERROR;
            }
            (*copy).shm_zone = zone;
        }
        let done = (method.init)(cf, copy);
        if lends_zone {
            (*copy).shm_zone = ptr::null_mut();
        }
        done
    }
}

/// Has the method look at the block when nginx reads the configuration, so that what it doesn't
/// like is an error then.
///
/// # Safety
///
/// `cf` and `us` are what nginx passes to an `init_upstream`.
pub(crate) unsafe fn check(
    method: &Inner,
    cf: *mut ngx_conf_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    // SAFETY: the copy lives in the pool of the configuration, as the block does.
    unsafe {
        let copy = ngx_pcalloc((*cf).pool, size_of::<ngx_http_upstream_srv_conf_t>());
        let copy = copy.cast::<ngx_http_upstream_srv_conf_t>();
        if copy.is_null() {
            return ERROR;
        }
        *copy = *us;
        init_copy(method, cf, copy)
    }
}
