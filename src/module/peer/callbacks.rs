//! What nginx calls for a request to an upstream: `peer.init` prepares it, `get` picks a peer, the
//! header filter sees that the peer answers, and `free` ends the attempt.
//!
//! A callback makes shared references of the pointers that it gets, and leaves the rest to the
//! request's [`Attempt`].

use std::alloc::{Layout, alloc};
use std::ffi::c_void;
use std::mem::{self, MaybeUninit};
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use nginx_sys::{
    ngx_http_output_header_filter_pt, ngx_http_request_t, ngx_http_top_header_filter,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_peer_connection_t, ngx_pool_cleanup_t, ngx_pool_t,
    ngx_uint_t,
};

use super::attempt::{Attempt, attempt};
use super::keepalive::ConnParams;
use super::nginx_method::{MethodAttempt, Snapshots};
use super::servers;
use super::set::PeerView;
use super::slot::{LAST_INIT, LAST_PICK, Slot};
use super::upstream::Upstream;
use crate::ffi::{ERROR, OK, bits, catch_panic, srv_conf};

mod session;

/// `peer.init`.
pub(super) extern "C" fn ngx_http_upstream_init_consul_peer(
    r: *mut ngx_http_request_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    LAST_INIT.store(r, Relaxed);
    // SAFETY: nginx passes a request with an upstream, and a block of the running configuration.
    catch_panic(ERROR, || unsafe { init_peer(r, us) }.map_or(ERROR, |()| OK))
}

/// Prepares a request; `None` if that fails.
///
/// # Safety
///
/// `r` is a request with an upstream, and `us` a block of the running configuration.
#[inline(always)]
unsafe fn init_peer(
    r: *mut ngx_http_request_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> Option<()> {
    // SAFETY: the caller's promise; a configuration lives as long as the worker.
    let slot = unsafe { srv_conf::<Slot>(us) };
    let (at, on_demand) = match &slot.upstream {
        Some(upstream) => (NonNull::from(&**upstream), None),
        None => {
            // SAFETY: the request is valid.
            let found = unsafe { slot.on_demand.as_ref()?.upstream_of(r) }?;
            (NonNull::from(&*found), Some(found))
        }
    };
    // SAFETY: of the configuration, or held by `on_demand`, which the attempt gets.
    let upstream = unsafe { at.as_ref() };
    let view = upstream.worker.get().and_then(|worker| upstream.sets.view(worker));
    let view = view.unwrap_or_default();
    // Before there is an attempt that a variable may look at.
    let key = match upstream.options.balance.key {
        None => NonNull::from(b"".as_slice()),
        // SAFETY: the request is valid.
        Some(_) => unsafe { upstream.key(r) }?,
    };
    // SAFETY: our init_upstream has left round robin's data.
    let servers = if upstream.options.has_fallback { unsafe { servers::count(us) } } else { 0 };
    let tries = (view.len() + servers).max(1) as ngx_uint_t;
    let of = (r, us);
    let attempt = match &upstream.nginx_method {
        // SAFETY: a request has a pool; the upstream and the key live as long.
        None => unsafe { make((*r).pool, || Attempt::new(of, (at, on_demand), view, key))? },
        // SAFETY: as above.
        Some(method) => unsafe { init_by_method(of, method, (at, on_demand), view, key)? },
    };
    // SAFETY: a request to an upstream has one, and nobody else uses it now.
    let peer = unsafe { &mut (*(*r).upstream).peer };
    peer.tries = tries;
    peer.data = ptr::from_ref(attempt).cast_mut().cast();
    peer.get = Some(ngx_http_upstream_get_consul_peer);
    peer.free = Some(ngx_http_upstream_free_consul_peer);
    // nginx calls these for every TLS connection, without asking whether they are there.
    peer.set_session = Some(session::set);
    peer.save_session = Some(session::save);
    Some(())
}

/// An attempt whose peers a method of nginx picks; `None` if that fails.
///
/// # Safety
///
/// As of [`Attempt::new`], of a request whose callbacks are not set yet.
#[inline(never)]
unsafe fn init_by_method<'a>(
    (r, us): (*mut ngx_http_request_t, *mut ngx_http_upstream_srv_conf_t),
    method: &Snapshots,
    upstream: (NonNull<Upstream>, Option<Rc<Upstream>>),
    view: Rc<PeerView>,
    key: NonNull<[u8]>,
) -> Option<&'a Attempt> {
    let snapshot = method.snapshot(&view);
    let view = snapshot.as_ref().map_or(view, |snapshot| Rc::clone(snapshot.view()));
    // SAFETY: the caller's promise; a request has a pool.
    let attempt = unsafe { make((*r).pool, || Attempt::new((r, us), upstream, view, key))? };
    let mut notify: Option<session::Notify> = None;
    if let Some(snapshot) = snapshot {
        // SAFETY: the callbacks are not set yet; the attempt lives as long as the request.
        let method = unsafe { MethodAttempt::begin(method, snapshot, r) }?;
        notify = method.wants_notes().then_some(session::notify);
        attempt.pick_by(method);
    }
    // SAFETY: the request has an upstream, which nobody else uses now.
    unsafe { (*(*r).upstream).peer.notify = notify };
    Some(attempt)
}

/// `peer.get`.
extern "C" fn ngx_http_upstream_get_consul_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
) -> ngx_int_t {
    catch_panic(ERROR, || {
        // SAFETY: nginx passes our data, and the request's connection.
        let (attempt, peer) = unsafe { (attempt(data), &mut *pc) };
        // First of all, as nginx's own balancers do: while this says that a kept connection was used,
        // ngx_http_upstream_next() asks again, though nobody is left.
        peer.connection = ptr::null_mut();
        // SAFETY: as above.
        unsafe { bits::peer_connection::CACHED.set(pc, false) };
        // SAFETY: nginx passes the request's connection.
        let picked = unsafe { attempt.get(pc) };
        // SAFETY: as above.
        LAST_PICK.store(unsafe { (*pc).sockaddr }, Relaxed);
        if attempt.upstream().member.is_none() {
            return picked;
        }
        attempt.lease.forget();
        // SAFETY: as above.
        if picked == OK { unsafe { take_connection(pc, attempt) }.unwrap_or(OK) } else { picked }
    })
}

/// Takes an idle connection to the peer that was picked; `None` if the request needs its own.
///
/// # Safety
///
/// `pc` is the connection of the attempt's request.
#[inline(never)]
unsafe fn take_connection(pc: *mut ngx_peer_connection_t, attempt: &Attempt) -> Option<ngx_int_t> {
    // SAFETY: the caller's promise. This evaluates variables, which may look at the attempt.
    let params = unsafe { ConnParams::of(attempt.request, &*pc) }?;
    let (peer, member) = (attempt.upstream_peer()?, attempt.upstream().member.as_ref()?);
    // SAFETY: the caller's promise; the peer was just picked.
    Some(unsafe { attempt.lease.take(&member.keepalive, &mut *pc, &peer, &params) })
}

/// Keeps the request's connection, if it is fit for another request.
///
/// # Safety
///
/// `pc` is the connection of the attempt's request, whose `peer.free` gets `state`.
#[inline(never)]
unsafe fn keep_connection(
    pc: *mut ngx_peer_connection_t,
    attempt: &Attempt,
    state: ngx_uint_t,
) -> Option<()> {
    let lease = &attempt.lease;
    // SAFETY: the caller's promise. This evaluates variables, which may look at the attempt.
    let new = || unsafe { ConnParams::of(attempt.request, &*pc) };
    let params = if lease.was_given() { None } else { new() };
    let (peer, upstream) = (attempt.upstream_peer()?, attempt.upstream());
    let pool = (&upstream.member.as_ref()?.keepalive, upstream.worker.get());
    // SAFETY: the caller's promise.
    unsafe { lease.put(pool, (&mut *pc, state), attempt.request, (&peer, params)) };
    Some(())
}

/// `peer.free`.
extern "C" fn ngx_http_upstream_free_consul_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
    state: ngx_uint_t,
) {
    catch_panic((), || {
        // SAFETY: nginx passes our data.
        let attempt = unsafe { attempt(data) };
        if attempt.upstream().member.is_some() {
            // SAFETY: nginx passes the request's connection.
            unsafe { keep_connection(pc, attempt, state) };
        }
        // SAFETY: as above.
        unsafe { attempt.free(pc, state) };
    });
}

type Filter = unsafe extern "C" fn(*mut ngx_http_request_t) -> ngx_int_t;

/// The header filter that comes next, of the configuration that was read last; null before the first.
static NEXT_FILTER: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Puts our header filter before those of the modules that were loaded earlier.
///
/// # Safety
///
/// Called in the postconfiguration of the module, where nginx's modules do the same.
pub(crate) unsafe fn install_header_filter() {
    // SAFETY: the caller's promise: the master reads one configuration at a time, in one thread.
    let next = unsafe { ngx_http_top_header_filter };
    NEXT_FILTER.store(next.map_or(ptr::null_mut(), |next| next as *mut ()), Relaxed);
    // SAFETY: as above.
    unsafe { ngx_http_top_header_filter = Some(ngx_http_consul_header_filter) };
}

/// Notes that nginx has accepted a response header. `peer.free` comes when the response has ended:
/// hours later, for a download or a WebSocket.
unsafe extern "C" fn ngx_http_consul_header_filter(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx passes a request whose header is about to be sent.
    catch_panic((), || unsafe { note_header(r) });
    // SAFETY: what install_header_filter() has stored, null or a filter.
    let next: ngx_http_output_header_filter_pt =
        unsafe { mem::transmute::<*mut (), Option<Filter>>(NEXT_FILTER.load(Relaxed)) };
    // SAFETY: nginx's own filter is always the last one.
    next.map_or(ERROR, |next| unsafe { next(r) })
}

/// # Safety
///
/// `r` is a valid request.
#[inline]
unsafe fn note_header(r: *mut ngx_http_request_t) {
    const FREE_PEER: Free = ngx_http_upstream_free_consul_peer;
    // SAFETY: the caller's promise; a request that is passed on has its upstream.
    let Some(u) = (unsafe { (*r).upstream.as_ref() }) else { return };
    let is_own = u.peer.free.is_some_and(|free| ptr::fn_addr_eq(free, FREE_PEER));
    // SAFETY: with our callback comes our data, once init_peer() was done. Else the request is valid,
    // and its upstream has the block that it was sent to.
    let attempt = unsafe {
        match is_own {
            true => u.peer.data.cast::<Attempt>().as_ref(),
            false => wrapped_attempt(r, u.upstream),
        }
    };
    if let Some(attempt) = attempt {
        attempt.note_header();
    }
}

type Free = unsafe extern "C" fn(*mut ngx_peer_connection_t, *mut c_void, ngx_uint_t);

/// The attempt of a request for which another module has put callbacks around ours.
///
/// # Safety
///
/// `r` is a valid request, and `us` null or the block that it was sent to.
unsafe fn wrapped_attempt<'a>(
    r: *mut ngx_http_request_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> Option<&'a Attempt> {
    // SAFETY: the caller's promise. nginx has made an upstream without configurations of modules for an
    // address of `proxy_pass`.
    if us.is_null() || unsafe { (*us).srv_conf.is_null() } {
        return None;
    }
    // SAFETY: a block of the running configuration.
    let slot: &Slot = unsafe { srv_conf(us) };
    if slot.upstream.is_none() && slot.on_demand.is_none() {
        return None;
    }
    // SAFETY: the request is valid.
    unsafe { find_attempt(r) }
}

/// The newest attempt of a request. What a balancer keeps of a request is in `peer.data`, or behind
/// what others put there (`keepalive`), and an internal redirect clears the contexts of modules. So it
/// is found by what the request's pool has to clean up: requests that use no variable pay nothing for
/// them.
///
/// # Safety
///
/// `r` is a valid request; the attempt lives as long as its pool.
pub(super) unsafe fn find_attempt<'a>(r: *mut ngx_http_request_t) -> Option<&'a Attempt> {
    // SAFETY: the caller's promise: the pool has a list of what it has to clean up.
    let mut cleanup = unsafe { (*(*r).pool).cleanup };
    // SAFETY: as above.
    while let Some(entry) = unsafe { cleanup.as_ref() } {
        cleanup = entry.next;
        // SAFETY: as above. Subrequests share the pool.
        if let Some(found) = unsafe { attempt_of(entry) }.filter(|found| found.request == r) {
            return Some(found);
        }
    }
    None
}

/// Where an attempt lives: not in its request's pool, since what is more there than with `server`
/// lines would at times be one block of the pool more, which costs as much as all the rest. A cell is
/// never given back to the allocator, since nginx looks at `cleanup.next` once more after the attempt
/// was dropped; there are as many as there were requests at a time.
struct AttemptCell {
    /// Has the pool drop the attempt.
    cleanup: ngx_pool_cleanup_t,
    attempt: MaybeUninit<Attempt>,
    /// The next free cell, if this one is.
    next: *mut AttemptCell,
}

/// The first free cell. Only the event loop's thread has requests.
static FREE: AtomicPtr<AttemptCell> = AtomicPtr::new(ptr::null_mut());

/// Makes an attempt that is dropped with the pool. `None` if memory is short, and then it is not made.
///
/// # Safety
///
/// `pool` is valid; the attempt must not be used after it is destroyed.
#[inline(always)]
unsafe fn make<'a>(
    pool: *mut ngx_pool_t,
    attempt: impl FnOnce() -> Attempt,
) -> Option<&'a Attempt> {
    let mut cell = FREE.load(Relaxed);
    if cell.is_null() {
        cell = new_cell()?;
    }
    // SAFETY: the cell is valid and nobody's; the pool is valid (the caller's promise).
    unsafe {
        FREE.store((*cell).next, Relaxed);
        (*cell).cleanup.next = (*pool).cleanup;
        (*pool).cleanup = &raw mut (*cell).cleanup;
        let place = (&raw mut (*cell).attempt).cast::<Attempt>();
        // Made where it lies.
        place.write(attempt());
        Some(&*place)
    }
}

#[cold]
#[inline(never)]
fn new_cell() -> Option<*mut AttemptCell> {
    // SAFETY: the layout is not of size 0.
    let cell = unsafe { alloc(Layout::new::<AttemptCell>()) }.cast::<AttemptCell>();
    let cell = NonNull::new(cell)?;
    let (data, next) = (cell.as_ptr().cast(), ptr::null_mut());
    let cleanup = ngx_pool_cleanup_t { handler: Some(free_cell), data, next };
    let new = AttemptCell { cleanup, attempt: MaybeUninit::uninit(), next: ptr::null_mut() };
    // SAFETY: the allocator has given room for it.
    unsafe { cell.write(new) };
    Some(cell.as_ptr())
}

/// The attempt that a pool has to clean up, if this is one.
///
/// # Safety
///
/// `entry` is in the list of a pool that was not destroyed; the attempt is not used after that.
unsafe fn attempt_of<'a>(entry: &ngx_pool_cleanup_t) -> Option<&'a Attempt> {
    const FREE_CELL: unsafe extern "C" fn(*mut c_void) = free_cell;
    if !ptr::fn_addr_eq(entry.handler?, FREE_CELL) {
        return None;
    }
    // SAFETY: make() has put it there, with a cell that has an attempt until the pool is destroyed.
    Some(unsafe { (*entry.data.cast::<AttemptCell>()).attempt.assume_init_ref() })
}

/// The handler of `cleanup`.
///
/// # Safety
///
/// The pool runs it once for each time that [`make`] put it there, with the cell.
unsafe extern "C" fn free_cell(cell: *mut c_void) {
    catch_panic((), || {
        let cell = cell.cast::<AttemptCell>();
        // SAFETY: nginx passes the cell; it has an attempt, which nobody uses any more.
        unsafe {
            (*cell).attempt.assume_init_drop();
            (*cell).next = FREE.load(Relaxed);
        }
        FREE.store(cell, Relaxed);
    });
}
