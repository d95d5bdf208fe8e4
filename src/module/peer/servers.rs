//! The `server` lines of an upstream beside `consul_dynamic`: requests fall back on them, and nginx
//! demands at least one.

use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

use nginx_sys::{
    ngx_addr_t, ngx_array_push, ngx_conf_t, ngx_http_upstream_rr_peers_t,
    ngx_http_upstream_server_t, ngx_http_upstream_srv_conf_t, ngx_pcalloc, ngx_pool_t, sockaddr,
    sockaddr_in,
};

use crate::ffi::{bits, elements, str_over};

/// Name of the `server` that stands for the service.
static PLACEHOLDER: [u8; 6] = *b"consul";

/// Adds a `server` that is down and never used: nginx refuses an `upstream` without one. `None` if
/// memory is short.
///
/// # Safety
///
/// `cf` is that of a directive within the `upstream` block, which is being read.
pub(crate) unsafe fn add_placeholder(
    cf: *mut ngx_conf_t,
    upstream: &mut ngx_http_upstream_srv_conf_t,
) -> Option<()> {
    // SAFETY: the caller's promise: it has a pool, which lives as long as the configuration.
    let pool = unsafe { (*cf).pool };
    // SAFETY: all zeros are valid values of these C structs.
    let (addr, sin) = unsafe { (zeroed::<ngx_addr_t>(pool)?, zeroed::<sockaddr_in>(pool)?) };
    sin.sin_family = libc::AF_INET as _;
    addr.sockaddr = ptr::from_mut(sin).cast::<sockaddr>();
    addr.socklen = size_of::<sockaddr_in>() as _;
    addr.name = str_over(b"0.0.0.0:0");
    // SAFETY: as above.
    let mut server: ngx_http_upstream_server_t = unsafe { MaybeUninit::zeroed().assume_init() };
    server.name = str_over(&PLACEHOLDER);
    server.addrs = addr;
    server.naddrs = 1;
    server.weight = 1;
    server.max_fails = 1;
    server.fail_timeout = 10;
    server.down = 1;
    // SAFETY: the caller's promise: `servers` is the block's array of servers.
    let place = unsafe { ngx_array_push(upstream.servers) }.cast::<ngx_http_upstream_server_t>();
    // SAFETY: the array has made room for one more.
    NonNull::new(place).map(|place| unsafe { place.write(server) })
}

/// Zeros in a pool; `None` if memory is short.
///
/// # Safety
///
/// The pool is valid, and outlives `'a`; all zeros are a valid `T`.
unsafe fn zeroed<'a, T>(pool: *mut ngx_pool_t) -> Option<&'a mut T> {
    const { assert!(align_of::<T>() <= nginx_sys::NGX_ALIGNMENT) };
    // SAFETY: the caller's promise.
    unsafe { ngx_pcalloc(pool, size_of::<T>()).cast::<T>().as_mut() }
}

/// Takes the placeholder out again if the upstream has a `server` of the user's: nginx treats a
/// single peer otherwise than one of two.
///
/// # Safety
///
/// `upstream` is an `upstream` block that is being read.
pub(super) unsafe fn drop_placeholder(upstream: &mut ngx_http_upstream_srv_conf_t) {
    // SAFETY: the caller's promise; `servers` is the block's array, which nobody else uses now.
    let servers = unsafe { &mut *upstream.servers };
    // SAFETY: it holds the servers of the block.
    let list = unsafe { servers.as_slice_mut::<ngx_http_upstream_server_t>() };
    let ours = |s: &ngx_http_upstream_server_t| s.name.data == PLACEHOLDER.as_ptr().cast_mut();
    // SAFETY: nginx has made them.
    let backup = |s| unsafe { bits::upstream_server::BACKUP.get(s) };
    if !list.iter().any(|s| !ours(s) && !backup(s)) {
        return;
    }
    let at = list.iter().position(ours);
    if let Some(from_placeholder) = at.and_then(|at| list.get_mut(at..)) {
        from_placeholder.rotate_left(1);
        servers.nelts -= 1;
    }
}

/// Whether the upstream has a `server` of the user's that requests can fall back on.
pub(crate) fn has_fallback(upstream: &ngx_http_upstream_srv_conf_t) -> bool {
    // SAFETY: `servers` is the block's array of servers.
    let servers = unsafe { elements::<ngx_http_upstream_server_t>(upstream.servers) };
    servers.iter().any(|s| s.down == 0)
}

/// How many addresses the `server` lines have: so often a request may try them.
///
/// # Safety
///
/// nginx's round robin was made of them, and its peers are still the `data` of the upstream.
#[cold]
pub(super) unsafe fn count(us: *mut ngx_http_upstream_srv_conf_t) -> usize {
    // SAFETY: the caller's promise.
    let mut peers = unsafe { (*us).peer.data.cast::<ngx_http_upstream_rr_peers_t>() };
    let mut count = 0;
    // SAFETY: as above; the backups are the `next` of the others.
    while let Some(list) = unsafe { peers.as_ref() } {
        count += list.number;
        peers = list.next;
    }
    count
}
