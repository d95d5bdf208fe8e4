//! Peers of nginx's types, made of a view's first tier by a method's own `init_upstream`.

use std::cell::{Cell, OnceCell};
use std::collections::HashMap;
use std::iter;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::time::Instant;

use nginx_sys::{
    NGX_DEFAULT_POOL_SIZE, NGX_HTTP_MAIN_CONF, NGX_HTTP_MODULE, ngx_addr_t, ngx_array_t,
    ngx_conf_t, ngx_create_pool, ngx_cycle, ngx_destroy_pool, ngx_http_request_t,
    ngx_http_upstream_rr_peer_t, ngx_http_upstream_rr_peers_t, ngx_http_upstream_server_t,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_pcalloc, ngx_pool_t, ngx_shm_zone_t,
};

use super::super::view::PeerView;
use super::{Key, Snapshots};
use crate::ffi::{ERROR, OK, bits};

/// A view's first tier as a method has it.
pub(in super::super) struct Snapshot {
    view: Rc<PeerView>,
    /// A copy of the block with peers of its own.
    upstream: *mut ngx_http_upstream_srv_conf_t,
    /// nginx's peers, by their numbers in the view.
    peers: Box<[NonNull<ngx_http_upstream_rr_peer_t>]>,
    numbers: OnceCell<HashMap<Key, usize>>,
    /// When work on it began.
    pub(super) start: Instant,
    /// Whether a request was prepared for picks from it.
    used: Cell<bool>,
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

    /// An array of zeros; `None` if memory is short.
    fn array<T>(&self, len: usize) -> Option<NonNull<T>> {
        const { assert!(align_of::<T>() <= nginx_sys::NGX_ALIGNMENT) };
        // SAFETY: the pool is valid.
        let place = unsafe { ngx_pcalloc(self.0.as_ptr(), len.saturating_mul(size_of::<T>())) };
        NonNull::new(place.cast())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: created in new(), destroyed once; nobody holds what lives in it any more.
        unsafe { ngx_destroy_pool(self.0.as_ptr()) };
    }
}

impl Snapshot {
    /// `None` if memory is short, or the method refuses. `view` is not empty; `alone`: there are no
    /// `server` lines.
    pub(super) fn new(
        method: &Snapshots,
        view: &Rc<PeerView>,
        (alone, start): (bool, Instant),
    ) -> Option<Snapshot> {
        let pool = Pool::new()?;
        let made = make(method, &pool, view);
        let Some(upstream) = made else {
            // The method may refer to what it made so far.
            std::mem::forget(pool);
            return None;
        };
        // SAFETY: all methods that nginx ships have round robin's list in `peer.data`.
        let list =
            unsafe { &mut *(*upstream.as_ptr()).peer.data.cast::<ngx_http_upstream_rr_peers_t>() };
        if !alone || view.peers().tiers().len() > 1 {
            // The failures of a single peer would not count, but there are others to ask.
            // SAFETY: the method has just made the list, in the pool.
            unsafe { bits::upstream_rr_peers::SINGLE.set(list, false) };
        }
        // SAFETY: the list is a valid one, just made.
        let next = |peer: &NonNull<ngx_http_upstream_rr_peer_t>| unsafe {
            NonNull::new((*peer.as_ptr()).next)
        };
        let peers = iter::successors(NonNull::new(list.peer), next).collect();
        let (view, upstream) = (Rc::clone(view), upstream.as_ptr());
        let (numbers, used) = (OnceCell::new(), Cell::new(false));
        Some(Snapshot { view, upstream, peers, numbers, start, used, _pool: pool })
    }

    pub(in super::super) fn view(&self) -> &Rc<PeerView> {
        &self.view
    }

    /// Whether no request was prepared for picks from it before.
    pub(in super::super) fn is_first_use(&self) -> bool {
        !self.used.replace(true)
    }

    /// Prepares a request for picks, as the method's `peer.init`.
    ///
    /// # Safety
    ///
    /// Called with a request with an upstream that holds this snapshot as long as it picks.
    #[inline]
    pub(in super::super) unsafe fn init(&self, r: *mut ngx_http_request_t) -> ngx_int_t {
        // SAFETY: the caller's promise; the method's init_upstream has set the callback for this
        // copy of the block.
        unsafe { (*self.upstream).peer.init.map_or(ERROR, |init| init(r, self.upstream)) }
    }

    /// The instances of the first tier.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        let set = self.view.peers().tiers().first().map_or(0, |tier| tier.set);
        self.view.peers().records().iter().map(move |record| (record.identity, set))
    }

    /// They and nginx's peers of them.
    pub(super) fn peers(
        &self,
    ) -> impl Iterator<Item = (Key, NonNull<ngx_http_upstream_rr_peer_t>)> + '_ {
        self.keys().zip(self.peers.iter().copied())
    }

    pub(super) fn peer_of(&self, wanted: Key) -> Option<NonNull<ngx_http_upstream_rr_peer_t>> {
        let numbers = || self.keys().zip(0..).collect();
        let number = self.numbers.get_or_init(numbers).get(&wanted)?;
        self.peers.get(*number).copied()
    }
}

/// Has the method make peers, for a copy of the block.
fn make(
    method: &Snapshots,
    pool: &Pool,
    view: &PeerView,
) -> Option<NonNull<ngx_http_upstream_srv_conf_t>> {
    let servers = servers(pool, view)?;
    let upstream = pool.array::<ngx_http_upstream_srv_conf_t>(1)?;
    // Since 1.27.3 nginx's `hash consistent` and `random` give memory back by ngx_free() that they
    // took from the pool, unless the block has a zone: then they make their tables when the first
    // request comes, on the heap. They look at whether there is one.
    let zone = match cfg!(nginx_peers_config) {
        true => pool.array::<ngx_shm_zone_t>(1)?.as_ptr(),
        false => ptr::null_mut(),
    };
    // SAFETY: the block lives as long as the configuration; the copy and its servers live in the
    // pool. All zeros are a valid ngx_conf_t: null pointers and no handler.
    unsafe {
        let copy = upstream.as_ptr();
        *copy = *method.upstream;
        ((*copy).servers, (*copy).shm_zone) = (servers.as_ptr(), zone);
        let mut cf: ngx_conf_t = MaybeUninit::zeroed().assume_init();
        cf.cycle = ngx_cycle.cast();
        cf.log = (*ngx_cycle).log;
        (cf.pool, cf.temp_pool) = (pool.0.as_ptr(), pool.0.as_ptr());
        cf.ctx = method.context.cast();
        cf.module_type = NGX_HTTP_MODULE as _;
        cf.cmd_type = NGX_HTTP_MAIN_CONF as _;
        let done = (method.method.init)(&mut cf, copy);
        (*copy).shm_zone = ptr::null_mut();
        if done != OK || (*copy).peer.data.is_null() {
            return None;
        }
        #[cfg(nginx_peers_config)]
        set_config(pool, copy, method.serial.get())?;
    }
    Some(upstream)
}

/// Gives the list a number of its own, by which methods know their tables to be of it.
///
/// # Safety
///
/// `upstream` has the list, which nobody uses yet.
#[cfg(nginx_peers_config)]
unsafe fn set_config(
    pool: &Pool,
    upstream: *mut ngx_http_upstream_srv_conf_t,
    serial: usize,
) -> Option<()> {
    let place = pool.array::<nginx_sys::ngx_uint_t>(1)?;
    // SAFETY: the caller's promise; both live in the pool.
    unsafe {
        place.write(serial);
        let list = (*upstream).peer.data.cast::<ngx_http_upstream_rr_peers_t>();
        (*list).config = place.as_ptr();
        (*list).shpool = ptr::null_mut();
    }
    Some(())
}

/// The `server` lines that the instances of the first tier stand for.
fn servers(pool: &Pool, view: &PeerView) -> Option<NonNull<ngx_array_t>> {
    let count = view.peers().tiers().first()?.peers().len();
    let array = pool.array::<ngx_array_t>(1)?;
    let servers = pool.array::<ngx_http_upstream_server_t>(count)?;
    let addresses = pool.array::<ngx_addr_t>(count)?;
    for (number, record) in view.peers().records().iter().enumerate().take(count) {
        let rules = &view.peers().info(number).params;
        let (sockaddr, socklen) = view.address(number);
        // SAFETY: the arrays have an element for each of them; names and addresses live in the view,
        // which the snapshot holds.
        unsafe {
            let (server, address) = (servers.add(number).as_mut(), addresses.add(number).as_mut());
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
    // SAFETY: just made.
    unsafe {
        array.write(ngx_array_t {
            elts: servers.as_ptr().cast(),
            nelts: count,
            size: size_of::<ngx_http_upstream_server_t>(),
            nalloc: count,
            pool: pool.0.as_ptr(),
        });
    }
    Some(array)
}
