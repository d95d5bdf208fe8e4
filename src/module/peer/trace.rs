//! Debug lines of a request's way to its peer. They are of level `debug_http` and go to the log of
//! the request's connection, so that nginx's `debug_connection` chooses whose are written.

use nginx_consul_core::balance::Tried;
use nginx_sys::ngx_log_t;

use super::set::PeerView;
use super::upstream::Upstream;

/// Most peers that are named as passed over for a pick.
const MOST: usize = 16;

/// Writes a debug line, if they are wanted.
macro_rules! trace {
    ($log:expr, $($text:tt)+) => {
        if $crate::peer::is_traced($log) {
            ::ngx::ngx_log_error!(::nginx_sys::NGX_LOG_DEBUG, $log, $($text)+);
        }
    };
}
pub(crate) use trace;

/// The sets that a request picks from.
#[cold]
pub(super) fn set(log: *mut ngx_log_t, upstream: &Upstream, view: &PeerView) {
    let (service, peers) = (upstream.service().escape_debug(), view.len());
    let generations: Vec<String> = view.peers().generations().iter().map(u64::to_string).collect();
    trace!(
        log,
        "consul: upstream \"{}\": service \"{service}\", {peers} peers, generation {}",
        upstream.name(),
        generations.join(",")
    );
}

/// The peer that was picked, and those that were passed over.
#[cold]
pub(super) fn pick(
    log: *mut ngx_log_t,
    upstream: &Upstream,
    (view, tried): (&PeerView, &Tried),
    peer: Option<usize>,
) {
    let name = upstream.name();
    if let Some(worker) = upstream.worker.get() {
        let context = upstream.pick_context(worker.table(), view.peers(), tried);
        let mut named = 0;
        for (other, record) in view.peers().records().iter().enumerate() {
            let obstacle = if Some(other) == peer { None } else { context.obstacle(other) };
            let Some(why) = obstacle else { continue };
            named += 1;
            if named > MOST {
                trace!(log, "consul: upstream \"{name}\": more peers passed over");
                break;
            }
            let address = record.addr();
            trace!(log, "consul: upstream \"{name}\": {address} passed over, {why}");
        }
    }
    let (method, attempt) = (upstream.method_name(), tried.count() + 1);
    let found = peer.and_then(|peer| {
        let tier = view.peers().tiers().iter().position(|tier| tier.peers().contains(&peer))?;
        Some((view.peers().records().get(peer)?.addr(), tier + 1))
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
pub(super) fn done(
    log: *mut ngx_log_t,
    upstream: &Upstream,
    view: &PeerView,
    peer: usize,
    failed: bool,
) {
    let Some(record) = view.peers().records().get(peer) else { return };
    let (name, address) = (upstream.name(), record.addr());
    let how = if failed { "has failed" } else { "is done" };
    trace!(log, "consul: upstream \"{name}\": {address} {how}");
}
