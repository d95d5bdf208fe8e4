//! The `server` lines of an upstream beside `consul_dynamic`: requests fall back on them, and nginx
//! demands at least one.

use std::ptr;

use nginx_sys::{
    ngx_addr_t, ngx_array_push, ngx_http_upstream_rr_peers_t, ngx_http_upstream_server_t,
    ngx_http_upstream_srv_conf_t, sockaddr, sockaddr_in,
};

use crate::ffi::{Cf, NoMemory, bits, elements, str_over};

/// Name of the `server` that stands for the service.
static PLACEHOLDER: [u8; 6] = *b"consul";

/// Adds a `server` that is down and never used: nginx refuses an `upstream` without one.
pub(crate) fn add_placeholder(
    cf: Cf<'_>,
    upstream: &mut ngx_http_upstream_srv_conf_t,
) -> Result<(), NoMemory> {
    let sin: &mut sockaddr_in = cf.zeroed().ok_or(NoMemory)?;
    sin.sin_family = libc::AF_INET as _;
    let addr: &mut ngx_addr_t = cf.zeroed().ok_or(NoMemory)?;
    addr.sockaddr = ptr::from_mut(sin).cast::<sockaddr>();
    addr.socklen = size_of::<sockaddr_in>() as _;
    addr.name = str_over(b"0.0.0.0:0");
    // SAFETY: the block's array of servers, which nobody else uses while it is being read; there is
    // room for a new one, or null.
    let server = unsafe {
        let server = ngx_array_push(upstream.servers).cast::<ngx_http_upstream_server_t>();
        if server.is_null() {
            return Err(NoMemory);
        }
        ptr::write_bytes(server, 0, 1);
        &mut *server
    };
    server.name = str_over(&PLACEHOLDER);
    server.addrs = addr;
    server.naddrs = 1;
    server.weight = 1;
    server.max_fails = 1;
    server.fail_timeout = 10;
    server.down = 1;
    Ok(())
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
