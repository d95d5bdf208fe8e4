//! Debug lines of a request's way to its peer. They are of level `debug_http` and go to the log of
//! the request's connection, so that nginx's `debug_connection` chooses whose are written.

use nginx_consul_core::balance::Tried;
use nginx_sys::{NGX_LOG_DEBUG_HTTP, ngx_log_t};

use super::upstream::Upstream;
use super::view::PeerView;

/// So many peers that were passed over are named for each pick.
const MOST: usize = 16;

/// Whether debug lines are wanted: the only thing that is looked at when they aren't.
#[inline(always)]
pub(crate) fn is_on(log: *const ngx_log_t) -> bool {
    // SAFETY: nginx passes valid logs; a request's connection has one.
    unsafe { (*log).log_level & NGX_LOG_DEBUG_HTTP as usize != 0 }
}

/// Writes a debug line, if they are wanted.
macro_rules! trace {
    ($log:expr, $($text:tt)+) => {
        if $crate::peer::trace::is_on($log) {
            ::ngx::ngx_log_error!(::nginx_sys::NGX_LOG_DEBUG, $log, $($text)+);
        }
    };
}
pub(crate) use trace;

/// The sets that a request holds.
#[cold]
pub(super) fn held(log: *mut ngx_log_t, block: &Upstream, view: &PeerView) {
    let (service, peers) = (block.service.escape_debug(), view.peers().records().len());
    let generations: Vec<String> = view.peers().generations().iter().map(u64::to_string).collect();
    trace!(
        log,
        "consul: upstream \"{}\": service \"{service}\", {peers} peers, generation {}",
        block.name(),
        generations.join(",")
    );
}

/// Who was picked, and who was passed over before that.
#[cold]
pub(super) fn picked(
    log: *mut ngx_log_t,
    block: &Upstream,
    (view, tried): (&PeerView, &Tried),
    peer: Option<usize>,
) {
    let name = block.name();
    if let Some(worker) = block.worker() {
        let candidates = block.candidates(&worker.table, view.peers(), tried);
        let mut told = 0;
        for (other, record) in view.peers().records().iter().enumerate() {
            let obstacle = if Some(other) == peer { None } else { candidates.obstacle(other) };
            let Some(why) = obstacle else { continue };
            told += 1;
            if told > MOST {
                trace!(log, "consul: upstream \"{name}\": more peers passed over");
                break;
            }
            let address = record.addr();
            trace!(log, "consul: upstream \"{name}\": {address} passed over, {why}");
        }
    }
    let (method, attempt) = (block.method_name(), tried.count() + 1);
    let found = peer.and_then(|peer| {
        let tier = view.peers().tiers().iter().position(|tier| tier.peers().contains(&peer))?;
        Some((view.peers().records()[peer].addr(), tier + 1))
    });
    match found {
        Some((address, tier)) => trace!(
            log,
            "consul: upstream \"{name}\": {address} picked by {method}, tier {tier}, attempt \
             {attempt}"
        ),
        None => trace!(log, "consul: upstream \"{name}\": no instance to pick"),
    }
}

/// How an attempt ended.
#[cold]
pub(super) fn ended(
    log: *mut ngx_log_t,
    block: &Upstream,
    view: &PeerView,
    peer: usize,
    failed: bool,
) {
    let (name, address) = (block.name(), view.peers().records()[peer].addr());
    let how = if failed { "has failed" } else { "is done" };
    trace!(log, "consul: upstream \"{name}\": {address} {how}");
}
