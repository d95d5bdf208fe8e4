//! What nginx says of the process. Its main thread alone writes these, and asks for them.

use std::collections::HashSet;

use nginx_consul_core::address::Listeners;
use nginx_sys::{
    NGX_PROCESS_MASTER, NGX_PROCESS_SINGLE, NGX_PROCESS_WORKER, ngx_core_conf_t, ngx_core_module,
    ngx_current_msec, ngx_cycle, ngx_cycle_t, ngx_exiting, ngx_inherited, ngx_listening_t,
    ngx_msec_t, ngx_process, ngx_test_config, ngx_worker,
};

use super::log::Log;
use super::text::{bytes, elements};

/// The number of this worker; `None` of the master, and of cache managers and loaders. A process
/// without a master is worker 0.
pub(crate) fn worker() -> Option<usize> {
    // SAFETY: set before nginx calls init_process. Helpers have a worker's number too.
    let (kind, number) = unsafe { (ngx_process, ngx_worker) };
    match u32::try_from(kind) {
        Ok(NGX_PROCESS_SINGLE) => Some(0),
        Ok(NGX_PROCESS_WORKER) => Some(number),
        _ => None,
    }
}

/// nginx's master, once it has started.
pub(crate) fn is_master() -> bool {
    // SAFETY: set when nginx has started, before it forks.
    unsafe { ngx_process as u32 == NGX_PROCESS_MASTER }
}

/// Whether this is nginx's start, and not a reload.
///
/// # Safety
///
/// nginx has passed `cycle` to a hook that runs in its master.
pub(crate) unsafe fn is_start(cycle: *const ngx_cycle_t) -> bool {
    // SAFETY: the cycle before is there as long as the new one is made (the caller's promise); the
    // first one has no configuration.
    unsafe { (*cycle).old_cycle.as_ref() }.is_none_or(|old| old.conf_ctx.is_null())
}

/// nginx is about to become a daemon, once `cycle` is made.
///
/// # Safety
///
/// As of [`is_start`], and it is a start.
pub(crate) unsafe fn will_fork(cycle: *const ngx_cycle_t) -> bool {
    // SAFETY: the core module has a configuration in each cycle, and nginx has set the flag.
    unsafe {
        let core = *(*cycle).conf_ctx.add(ngx_core_module.index);
        (*core.cast::<ngx_core_conf_t>()).daemon != 0 && ngx_inherited == 0
    }
}

/// A process without a master, or one that is starting.
pub(crate) fn is_single() -> bool {
    // SAFETY: set when nginx has started.
    unsafe { ngx_process as u32 == NGX_PROCESS_SINGLE }
}

/// Under `nginx -t`.
pub(crate) fn is_test() -> bool {
    // SAFETY: set before nginx reads the configuration.
    unsafe { ngx_test_config != 0 }
}

/// The worker takes no more connections, and ends with those that it has.
pub(crate) fn is_exiting() -> bool {
    // SAFETY: nginx's own flag, which the main thread writes.
    unsafe { ngx_exiting != 0 }
}

/// The log of the configuration in use, for as long as that is in use: not to be kept.
pub(crate) fn log<'l>() -> Log<'l> {
    // SAFETY: the cycle in use and its log are there until nginx has made another one.
    unsafe { Log::new((*ngx_cycle).log) }
}

/// `worker_connections`.
pub(crate) fn connections() -> usize {
    // SAFETY: the cycle in use is there.
    unsafe { (*ngx_cycle).connection_n }
}

/// Where nginx listens.
pub(crate) fn listeners() -> Listeners {
    // SAFETY: the cycle in use is there, and its sockets are those of its configuration.
    let sockets: &[ngx_listening_t] = unsafe { elements(&(*ngx_cycle).listening) };
    // SAFETY: the text lives as long as the cycle.
    let text = |socket: &ngx_listening_t| unsafe { bytes(&socket.addr_text) }.to_owned();
    sockets.iter().filter_map(|socket| String::from_utf8(text(socket)).ok()?.parse().ok()).collect()
}

/// The connections of a worker of this cycle, besides its listening sockets, the channel to its master,
/// and those of one request, to the client and to a peer.
///
/// # Safety
///
/// nginx passes the cycle to a hook that is running.
pub(crate) unsafe fn free_connections(cycle: *const ngx_cycle_t) -> usize {
    // SAFETY: the caller's promise: it was configured.
    let (all, sockets) = unsafe { ((*cycle).connection_n, elements(&(*cycle).listening)) };
    // SAFETY: the text lives as long as the cycle.
    let text = |socket: &ngx_listening_t| unsafe { bytes(&socket.addr_text) };
    // With `reuseport` there is one of each for every worker.
    let sockets: HashSet<&[u8]> = sockets.iter().map(text).collect();
    all.saturating_sub(sockets.len() + 1 + 2)
}

/// The time of the event loop's turn, milliseconds of the monotonic clock.
#[inline]
pub(crate) fn current_msec() -> ngx_msec_t {
    // SAFETY: a word that the main thread writes.
    unsafe { ngx_current_msec }
}
