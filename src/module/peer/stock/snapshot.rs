//! Peers of nginx's types, made of a view by a method's own `init_upstream`.

use std::cell::{Cell, OnceCell};
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use nginx_sys::{
    NGX_DEFAULT_POOL_SIZE, NGX_HTTP_MAIN_CONF, NGX_HTTP_MODULE, ngx_addr_t, ngx_array_t,
    ngx_conf_t, ngx_create_pool, ngx_cycle, ngx_destroy_pool, ngx_http_request_t,
    ngx_http_upstream_rr_peer_data_t, ngx_http_upstream_rr_peer_t, ngx_http_upstream_rr_peers_t,
    ngx_http_upstream_server_t, ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_pcalloc, ngx_pool_t,
};

use super::super::delegate::Delegate;
use super::super::view::PeerView;
use super::carry::Key;
use super::{Stock, init_copy};
use crate::conf::Inner;
use crate::ffi::OK;

/// A view as a method has it.
pub(super) struct Snapshot {
    view: Rc<PeerView>,
    /// Of each tier a copy of the block with peers of its own; the method itself picks from the
    /// first one, nginx's round robin from the others.
    tiers: Box<[Tier]>,
    /// nginx's peers by their numbers in the view.
    peers: Box<[*mut ngx_http_upstream_rr_peer_t]>,
    numbers: OnceCell<HashMap<Key, usize>>,
    /// Whether a request was bound to it.
    used: Cell<bool>,
    /// The method is within nginx's `sticky`.
    is_sticky: bool,
    /// Dropped last: all of the above lives in it.
    _pool: Pool,
}

struct Pool(NonNull<ngx_pool_t>);

impl Pool {
    fn new() -> Option<Pool> {
        // SAFETY: a worker's cycle and its log live as long as the worker.
        let pool = unsafe { ngx_create_pool(NGX_DEFAULT_POOL_SIZE as usize, (*ngx_cycle).log) };
        NonNull::new(pool).map(Pool)
    }

    /// An array of zeros; null if memory is short.
    fn array<T>(&self, len: usize) -> *mut T {
        const { assert!(align_of::<T>() <= nginx_sys::NGX_ALIGNMENT) };
        // SAFETY: the pool is valid.
        unsafe { ngx_pcalloc(self.0.as_ptr(), len.saturating_mul(size_of::<T>())).cast() }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: created in new(), destroyed once; nobody holds what lives in it any more.
        unsafe { ngx_destroy_pool(self.0.as_ptr()) };
    }
}

impl Snapshot {
    /// `None` if memory is short. `view` is not empty.
    pub(super) fn new(stock: &Stock, view: Rc<PeerView>, has_fallback: bool) -> Option<Snapshot> {
        let pool = Pool::new()?;
        let round_robin = Inner::round_robin();
        let ranges: Vec<_> = view.peers().tiers().iter().map(|tier| tier.peers()).collect();
        let mut tiers = Vec::with_capacity(ranges.len());
        let mut peers = vec![ptr::null_mut(); view.len()].into_boxed_slice();
        let alone = ranges.len() == 1 && !has_fallback;
        for range in ranges {
            let method = if tiers.is_empty() { &stock.method } else { &round_robin };
            let Some(tier) = Tier::new(stock, method, &pool, &view, range) else {
                // The method may refer to what it made so far.
                std::mem::forget(pool);
                return None;
            };
            tier.collect(&view, &mut peers, alone);
            tiers.push(tier);
        }
        Some(Snapshot {
            view,
            tiers: tiers.into(),
            peers,
            numbers: OnceCell::new(),
            used: Cell::new(false),
            is_sticky: stock.method.is_sticky,
            _pool: pool,
        })
    }

    pub(super) fn view(&self) -> &Rc<PeerView> {
        &self.view
    }

    /// Number of its tiers, at least 1.
    pub(super) fn tiers(&self) -> usize {
        self.tiers.len()
    }

    /// Whether no request was bound to it before.
    pub(super) fn is_first_use(&self) -> bool {
        !self.used.replace(true)
    }

    /// Prepares a request for picks from a tier, as the method's `peer.init`.
    ///
    /// # Safety
    ///
    /// Called with a request with an upstream that holds this snapshot as long as it lives.
    #[inline]
    pub(super) unsafe fn init(&self, r: *mut ngx_http_request_t, tier: usize) -> ngx_int_t {
        let upstream = self.tiers[tier].upstream;
        // SAFETY: the caller's promise; the method's init_upstream has set the callback for this
        // copy of the block.
        unsafe { (*upstream).peer.init.map_or(crate::ffi::ERROR, |init| init(r, upstream)) }
    }

    /// Has nginx's methods pass over the instances that the request has tried in older sets.
    ///
    /// # Safety
    ///
    /// `delegate` is of [`Snapshot::init`] for this tier.
    pub(super) unsafe fn pass_over(&self, delegate: &Delegate, tier: usize, tried: &[Key]) {
        let list = self.tiers[tier].list;
        let range = self.view.peers().tiers()[tier].peers();
        // SAFETY: what nginx's methods keep of a request begins with round robin's part, which
        // names the list; `sticky`'s begins with a pointer to that. `tried` has a bit for each
        // peer of the list, which are in the order of the view.
        unsafe {
            let mut request = delegate.data().cast::<ngx_http_upstream_rr_peer_data_t>();
            if self.is_sticky && tier == 0 {
                request = *delegate.data().cast();
            }
            if request.is_null() || (*request).peers != list.as_ptr() || (*request).tried.is_null()
            {
                return;
            }
            let first = range.start;
            for place in range.filter(|&n| tried.contains(&self.key(n))).map(|n| n - first) {
                let bits = usize::BITS as usize;
                *(*request).tried.add(place / bits) |= 1 << (place % bits);
            }
        }
    }

    /// nginx's peer of a number.
    pub(super) fn peer(&self, number: usize) -> Option<NonNull<ngx_http_upstream_rr_peer_t>> {
        self.peers.get(number).copied().and_then(NonNull::new)
    }

    pub(super) fn key(&self, number: usize) -> Key {
        let peers = self.view.peers();
        let tier = peers.tiers().iter().find(|tier| tier.peers().contains(&number));
        (peers.records()[number].identity, tier.map_or(0, |tier| tier.set))
    }

    pub(super) fn number_of(&self, key: Key) -> Option<usize> {
        let numbers = || (0..self.view.len()).map(|number| (self.key(number), number)).collect();
        self.numbers.get_or_init(numbers).get(&key).copied()
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        #[cfg(nginx_ssl)]
        for peer in self.peers.iter().filter_map(|&peer| NonNull::new(peer)) {
            // SAFETY: the peer lives in our pool, and its session, if any, is a reference of its own.
            unsafe {
                let session = (*peer.as_ptr()).ssl_session;
                if !session.is_null() {
                    nginx_sys::SSL_SESSION_free(session.cast());
                }
            }
        }
    }
}

struct Tier {
    upstream: *mut ngx_http_upstream_srv_conf_t,
    /// Round robin's list.
    list: NonNull<ngx_http_upstream_rr_peers_t>,
}

impl Tier {
    fn new(
        stock: &Stock,
        method: &Inner,
        pool: &Pool,
        view: &PeerView,
        range: Range<usize>,
    ) -> Option<Tier> {
        let servers = servers(pool, view, range)?;
        let upstream = pool.array::<ngx_http_upstream_srv_conf_t>(1);
        if upstream.is_null() {
            return None;
        }
        // SAFETY: the block lives as long as the configuration; the copy and its servers live in
        // the pool. All zeros are a valid ngx_conf_t: null pointers and no handler.
        let done = unsafe {
            *upstream = *stock.upstream;
            (*upstream).servers = servers;
            (*upstream).shm_zone = ptr::null_mut();
            let mut cf: ngx_conf_t = MaybeUninit::zeroed().assume_init();
            cf.cycle = ngx_cycle.cast();
            cf.log = (*ngx_cycle).log;
            (cf.pool, cf.temp_pool) = (pool.0.as_ptr(), pool.0.as_ptr());
            cf.ctx = stock.context.cast();
            cf.module_type = NGX_HTTP_MODULE as _;
            cf.cmd_type = NGX_HTTP_MAIN_CONF as _;
            init_copy(method, &mut cf, upstream)
        };
        if done != OK {
            return None;
        }
        // SAFETY: all methods that nginx ships have round robin's list in `peer.data`.
        let list = NonNull::new(unsafe { (*upstream).peer.data.cast() })?;
        let tier = Tier { upstream, list };
        #[cfg(nginx_peers_config)]
        tier.set_config(pool, stock.next_serial())?;
        Some(tier)
    }

    /// Collects nginx's peers by their numbers in the view.
    fn collect(
        &self,
        view: &PeerView,
        peers: &mut [*mut ngx_http_upstream_rr_peer_t],
        alone: bool,
    ) {
        let list = self.list;
        // SAFETY: the list is a valid one, just made.
        unsafe {
            // The failures of a single peer would not count, but there is another tier.
            if !alone {
                (*list.as_ptr()).set_single(0);
            }
            let mut peer = (*list.as_ptr()).peer;
            while !peer.is_null() {
                if let Some(number) = view.number_at((*peer).sockaddr) {
                    peers[number] = peer;
                }
                peer = (*peer).next;
            }
        }
    }

    /// Gives the list a number of its own, by which methods know their tables to be of it.
    #[cfg(nginx_peers_config)]
    fn set_config(&self, pool: &Pool, serial: usize) -> Option<()> {
        let place = NonNull::new(pool.array::<nginx_sys::ngx_uint_t>(1))?;
        // SAFETY: both live in the pool; nobody uses the list yet.
        unsafe {
            place.write(serial);
            (*self.list.as_ptr()).config = place.as_ptr();
            (*self.list.as_ptr()).shpool = ptr::null_mut();
        }
        Some(())
    }
}

/// The `server` lines that instances stand for.
fn servers(pool: &Pool, view: &PeerView, range: Range<usize>) -> Option<*mut ngx_array_t> {
    let array = pool.array::<ngx_array_t>(1);
    let servers = pool.array::<ngx_http_upstream_server_t>(range.len());
    let addresses = pool.array::<ngx_addr_t>(range.len());
    if array.is_null() || servers.is_null() || addresses.is_null() {
        return None;
    }
    for (n, number) in range.clone().enumerate() {
        let (record, rules) = (&view.peers().records()[number], &view.peers().known(number).rules);
        let (sockaddr, socklen) = view.address(number);
        // SAFETY: the arrays have an element for each of the range; names and addresses live in
        // the view, which the snapshot holds.
        unsafe {
            let (server, address) = (&mut *servers.add(n), &mut *addresses.add(n));
            address.sockaddr = sockaddr;
            address.socklen = socklen;
            address.name = view.name(number);
            server.name = view.name(number);
            server.addrs = address;
            server.naddrs = 1;
            server.weight = record.weight as _;
            server.max_conns = rules.max_conns as _;
            server.max_fails = rules.max_fails as _;
            server.fail_timeout = rules.fail_timeout.into();
            server.slow_start = rules.slow_start as _;
            server.down = record.params().down.into();
        }
    }
    // SAFETY: as above.
    unsafe {
        (*array).elts = servers.cast();
        (*array).nelts = range.len();
        (*array).nalloc = range.len();
        (*array).size = size_of::<ngx_http_upstream_server_t>();
        (*array).pool = pool.0.as_ptr();
    }
    Some(array)
}
