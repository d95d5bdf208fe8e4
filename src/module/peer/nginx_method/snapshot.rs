//! nginx's peers of a view's first tier, made by a method's own `init_upstream`.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::iter;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::time::Instant;

use nginx_consul_core::balance::PickContext;
use nginx_sys::{
    NGX_DEFAULT_POOL_SIZE, NGX_HTTP_MAIN_CONF, NGX_HTTP_MODULE, ngx_addr_t, ngx_array_t,
    ngx_conf_t, ngx_create_pool, ngx_cycle, ngx_destroy_pool, ngx_http_conf_ctx_t,
    ngx_http_request_t, ngx_http_upstream_rr_peer_t, ngx_http_upstream_rr_peers_t,
    ngx_http_upstream_server_t, ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_pcalloc, ngx_pool_t,
    ngx_shm_zone_t,
};

use super::super::set::PeerView;
use super::method::NginxMethod;
use crate::ffi::{ERROR, OK, bits};

/// Identity of an instance, and which of the upstream's sets it is from: nodes of several
/// datacenters can have the same names.
pub(super) type Key = (u64, usize);

/// Excluded peers that are looked at per millisecond, at most.
const LOOKS_PER_MS: u64 = 512;

/// There are none.
const NEVER: u64 = u64::MAX;

/// What snapshots are made with.
#[derive(Clone)]
pub(super) struct Maker {
    pub(super) method: NginxMethod,
    /// The block with the method.
    pub(super) us: *mut ngx_http_upstream_srv_conf_t,
    /// Of `http`. Both live as long as the configuration.
    pub(super) context: *mut ngx_http_conf_ctx_t,
}

/// A view's first tier as a method has it.
pub(crate) struct Snapshot {
    view: Rc<PeerView>,
    /// A copy of the block with peers of its own.
    us: *mut ngx_http_upstream_srv_conf_t,
    /// nginx's peers, by their numbers in the view.
    peers: Box<[NonNull<ngx_http_upstream_rr_peer_t>]>,
    numbers: OnceCell<HashMap<Key, usize>>,
    /// When work on it began.
    pub(super) start: Instant,
    /// Whether a request was prepared for picks from it.
    used: Cell<bool>,
    /// Peers that the method takes for `down`, because the shared counters exclude them.
    excluded: RefCell<Vec<usize>>,
    /// When to look at them again, milliseconds of the monotonic clock.
    look_at: Cell<u64>,
    /// Dropped last: all of the above lives in it.
    _pool: Pool,
}

/// Why there is no snapshot.
pub(super) enum Failed {
    /// Memory is short.
    Memory,
    /// The method refuses. It may refer to what it has made so far, until it makes peers again.
    Refused(Pool),
}

/// A pool of the worker.
pub(super) struct Pool(NonNull<ngx_pool_t>);

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
    /// `view` is not empty; `alone`: there are no `server` lines. `serial` is given once only.
    pub(super) fn new(
        maker: &Maker,
        view: &Rc<PeerView>,
        alone: bool,
        (serial, start): (usize, Instant),
    ) -> Result<Snapshot, Failed> {
        let pool = Pool::new().ok_or(Failed::Memory)?;
        let us = maker.copy_block(&pool, view).ok_or(Failed::Memory)?;
        let Some(list) = maker.init_upstream(&pool, us, serial) else {
            return Err(Failed::Refused(pool));
        };
        if !alone || view.peers().tiers().len() > 1 {
            // SAFETY: the list was just made, and nobody uses it yet. The failures of a single peer
            // would not count, but there are others to ask.
            unsafe { bits::upstream_rr_peers::SINGLE.set(list.as_ptr(), false) };
        }
        // SAFETY: as above; the list is that of the peers.
        let first = unsafe { list.as_ref() }.peer;
        // SAFETY: as above.
        let next = |peer: &NonNull<_>| NonNull::new(unsafe { peer_next(*peer) });
        let peers: Box<[_]> = iter::successors(NonNull::new(first), next).collect();
        // SAFETY: as above.
        let is_down =
            |peer: &NonNull<ngx_http_upstream_rr_peer_t>| unsafe { peer.as_ref() }.down != 0;
        // The first pick looks at the counters of all.
        let numbers = peers.iter().enumerate().filter(|(_, peer)| !is_down(peer));
        let excluded = numbers.map(|(number, _)| number).collect();
        Ok(Snapshot {
            view: Rc::clone(view),
            us: us.as_ptr(),
            peers,
            numbers: OnceCell::new(),
            start,
            used: Cell::new(false),
            excluded: RefCell::new(excluded),
            look_at: Cell::new(0),
            _pool: pool,
        })
    }

    pub(crate) fn view(&self) -> &Rc<PeerView> {
        &self.view
    }

    /// Whether no request was prepared for picks from it before.
    pub(super) fn is_first_use(&self) -> bool {
        !self.used.replace(true)
    }

    /// Prepares a request for picks, as the method's `peer.init`.
    ///
    /// # Safety
    ///
    /// `r` is a request with an upstream that holds this snapshot as long as it picks.
    #[inline]
    pub(super) unsafe fn init(&self, r: *mut ngx_http_request_t) -> ngx_int_t {
        // SAFETY: the copy of the block lives in the pool.
        let init = unsafe { (*self.us).peer.init };
        // SAFETY: the method's init_upstream has set the callback for this copy of the block; the
        // request is valid (the caller's promise).
        init.map_or(ERROR, |init| unsafe { init(r, self.us) })
    }

    /// Has the method pass over a peer that the shared counters exclude.
    pub(super) fn exclude(&self, number: usize, now: u64) {
        self.set_down(number, true);
        self.excluded.borrow_mut().push(number);
        if self.look_at.get() == NEVER {
            self.look_at.set(now + 1);
        }
    }

    /// Lets the method pick those peers again that the shared counters don't exclude any more.
    #[inline]
    pub(super) fn readmit(&self, context: &PickContext<'_, '_>) {
        if context.now >= self.look_at.get() {
            self.look(context);
        }
    }

    #[cold]
    #[inline(never)]
    fn look(&self, context: &PickContext<'_, '_>) {
        let mut excluded = self.excluded.borrow_mut();
        let looks = excluded.len() as u64;
        excluded.retain(|&number| {
            let is_out = !context.is_usable(number);
            self.set_down(number, is_out);
            is_out
        });
        let pause = 1 + looks / LOOKS_PER_MS;
        let next = context.now + pause;
        self.look_at.set(if excluded.is_empty() { NEVER } else { next });
    }

    fn set_down(&self, number: usize, down: bool) {
        if let Some(peer) = self.peers.get(number) {
            // SAFETY: a peer of this snapshot; nobody else uses it in this moment.
            unsafe { (*peer.as_ptr()).down = down.into() };
        }
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

/// # Safety
///
/// `peer` is one of a snapshot's.
unsafe fn peer_next(
    peer: NonNull<ngx_http_upstream_rr_peer_t>,
) -> *mut ngx_http_upstream_rr_peer_t {
    // SAFETY: the caller's promise.
    unsafe { peer.as_ref() }.next
}

impl Maker {
    /// The block, with `server` lines for the instances of the first tier; `None` if memory is short.
    fn copy_block(
        &self,
        pool: &Pool,
        view: &PeerView,
    ) -> Option<NonNull<ngx_http_upstream_srv_conf_t>> {
        let servers = servers(pool, view)?;
        let copy = pool.array::<ngx_http_upstream_srv_conf_t>(1)?;
        // SAFETY: the block lives as long as the configuration.
        let mut block = unsafe { *self.us };
        block.servers = servers.as_ptr();
        // SAFETY: the pool has given room for it.
        unsafe { copy.write(block) };
        Some(copy)
    }

    /// Has the method make peers for a copy of the block. `None` if it refuses.
    fn init_upstream(
        &self,
        pool: &Pool,
        us: NonNull<ngx_http_upstream_srv_conf_t>,
        serial: usize,
    ) -> Option<NonNull<ngx_http_upstream_rr_peers_t>> {
        // Since 1.27.3 nginx's `hash consistent` and `random` give memory back by ngx_free() that
        // they took from the pool, unless the block has a zone: then they make their tables when the
        // first request comes, on the heap. They look at whether there is one.
        let zone = match cfg!(nginx_peers_config) {
            true => pool.array::<ngx_shm_zone_t>(1)?.as_ptr(),
            false => ptr::null_mut(),
        };
        // SAFETY: all zeros are a valid ngx_conf_t: null pointers and no handler.
        let mut cf: ngx_conf_t = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: a worker's cycle and its log live as long as the worker.
        (cf.cycle, cf.log) = unsafe { (ngx_cycle.cast(), (*ngx_cycle).log) };
        (cf.pool, cf.temp_pool) = (pool.0.as_ptr(), pool.0.as_ptr());
        cf.ctx = self.context.cast();
        (cf.module_type, cf.cmd_type) = (NGX_HTTP_MODULE as _, NGX_HTTP_MAIN_CONF as _);
        let us = us.as_ptr();
        // SAFETY: the copy lives in the pool, and nobody else uses it.
        unsafe { (*us).shm_zone = zone };
        // SAFETY: nginx calls the method's init_upstream likewise, with a configuration that has the
        // context of `http` and pools, and a block with servers.
        let done = unsafe { (self.method.init)(&mut cf, us) };
        // SAFETY: as above. All methods that nginx ships have round robin's list in `peer.data`.
        let list = unsafe {
            (*us).shm_zone = ptr::null_mut();
            (*us).peer.data.cast::<ngx_http_upstream_rr_peers_t>()
        };
        let list = NonNull::new(list).filter(|_| done == OK)?;
        #[cfg(nginx_peers_config)]
        set_config(pool, list, serial)?;
        #[cfg(not(nginx_peers_config))]
        let _ = serial;
        Some(list)
    }
}

/// Gives the list a number of its own, by which methods know their tables to be of it.
#[cfg(nginx_peers_config)]
fn set_config(
    pool: &Pool,
    list: NonNull<ngx_http_upstream_rr_peers_t>,
    serial: usize,
) -> Option<()> {
    let place = pool.array::<nginx_sys::ngx_uint_t>(1)?;
    // SAFETY: the pool has given room for it, and lives as long as the list.
    unsafe { place.write(serial) };
    // SAFETY: the list was just made, and nobody uses it yet.
    unsafe {
        (*list.as_ptr()).config = place.as_ptr();
        (*list.as_ptr()).shpool = ptr::null_mut();
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
        let (sockaddr, socklen, name) = view.address(number)?;
        // SAFETY: both arrays have so many elements, of zeros, which nobody else uses.
        let (server, address) =
            unsafe { (servers.add(number).as_mut(), addresses.add(number).as_mut()) };
        // The address lives in the view, which the snapshot holds.
        (address.sockaddr, address.socklen, address.name) = (sockaddr, socklen, name);
        server.name = name;
        server.addrs = address;
        server.naddrs = 1;
        server.weight = record.weight as _;
        server.down = record.params().down.into();
        // No `max_fails` and `max_conns`: the shared counters decide.
    }
    let (elts, pool) = (servers.as_ptr().cast(), pool.0.as_ptr());
    let size = size_of::<ngx_http_upstream_server_t>();
    // SAFETY: the pool has given room for it.
    unsafe { array.write(ngx_array_t { elts, nelts: count, size, nalloc: count, pool }) };
    Some(array)
}
