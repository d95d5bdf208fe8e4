//! A balancing method of nginx that stands before `consul_dynamic`: it does the picking, over peers
//! that are made anew of each set.
//!
//! Each worker has peers of its own, as in an `upstream` without `zone`. The method's
//! `init_upstream` makes them, in a pool of their own, as it does when nginx reads a configuration
//! ([`snapshot`]). Requests hold the peers they use.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nginx_consul_core::balance::{Pair, pairs};
use nginx_sys::{
    NGX_LOG_DEBUG, ngx_cycle, ngx_http_conf_ctx_t, ngx_http_upstream_rr_peer_t,
    ngx_http_upstream_srv_conf_t,
};

use super::upstream::Upstream;
use super::view::PeerView;

mod method;
mod snapshot;

pub(crate) use method::{InitUpstream, NginxMethod};
pub(super) use snapshot::Snapshot;

/// After new peers were made the next ones have to wait so many times as long as that took: a storm
/// of changes takes at most 5 % of a worker's time.
const THROTTLE: u32 = 20;

/// Identity of an instance, and which of the block's sets it is from: nodes of several datacenters
/// can have the same names.
type Key = (u64, usize);

/// Requests in flight to instances that the present set lacks.
type Departed = HashMap<Key, usize>;

/// The method of a block, as a worker uses it.
pub(crate) struct Snapshots {
    method: NginxMethod,
    upstream: *mut ngx_http_upstream_srv_conf_t,
    /// Of `http`; lives as long as the configuration.
    context: *mut ngx_http_conf_ctx_t,
    current: RefCell<Option<Rc<Snapshot>>>,
    /// No new peers before that.
    throttled_until: Cell<Option<Instant>>,
    /// Number of the newest peers, never given twice.
    serial: Cell<usize>,
    departed: RefCell<Departed>,
}

impl Snapshots {
    /// # Safety
    ///
    /// The block and the context are of the configuration that the value becomes part of.
    pub(crate) unsafe fn new(
        method: NginxMethod,
        upstream: *mut ngx_http_upstream_srv_conf_t,
        context: *mut ngx_http_conf_ctx_t,
    ) -> Snapshots {
        Snapshots {
            method,
            upstream,
            context,
            current: RefCell::default(),
            throttled_until: Cell::new(None),
            serial: Cell::new(0),
            departed: RefCell::default(),
        }
    }

    /// The same for another service: the method keeps nothing in the block, or the configuration
    /// was refused.
    pub(super) fn another(&self) -> Snapshots {
        // SAFETY: both are of the configuration that `self` is part of.
        unsafe { Snapshots::new(self.method.clone(), self.upstream, self.context) }
    }

    /// The method, for people.
    pub(super) fn name(&self) -> &str {
        &self.method.name
    }

    /// The peers of the set of `view`, or of an older one for a while; `None` if there are none.
    #[inline]
    pub(super) fn snapshot(&self, block: &Upstream, view: &Rc<PeerView>) -> Option<Rc<Snapshot>> {
        match &*self.current.borrow() {
            Some(current) if Rc::ptr_eq(current.view(), view) => return Some(Rc::clone(current)),
            None if view.is_empty() => return None,
            _ => {}
        }
        self.renewed(view, !block.has_fallback())
    }

    #[cold]
    fn renewed(&self, view: &Rc<PeerView>, alone: bool) -> Option<Rc<Snapshot>> {
        let start = Instant::now();
        if self.throttled_until.get().is_none_or(|until| start >= until) {
            self.renew(view, alone, start);
        }
        self.current.borrow().clone()
    }

    /// Makes peers of a set. If memory is short, or the method refuses, the old ones serve on.
    fn renew(&self, view: &Rc<PeerView>, alone: bool, start: Instant) {
        let new = if view.is_empty() {
            None
        } else {
            self.serial.set(self.serial.get() + 1);
            match Snapshot::new(self, view, (alone, start)) {
                Some(new) => Some(Rc::new(new)),
                None => {
                    self.throttle(start.elapsed());
                    return;
                }
            }
        };
        let old = self.current.replace(None);
        carry_over(old.as_deref(), new.as_deref(), &mut self.departed.borrow_mut());
        self.current.replace(new);
    }

    #[inline]
    pub(super) fn is_current(&self, snapshot: &Rc<Snapshot>) -> bool {
        self.current.borrow().as_ref().is_some_and(|current| Rc::ptr_eq(current, snapshot))
    }

    /// A request to a peer of an older snapshot has ended.
    #[cold]
    pub(super) fn note_end(&self, snapshot: &Snapshot, peer: usize) {
        let Some(key) = snapshot.keys().nth(peer) else { return };
        let current = self.current.borrow();
        let mut departed = self.departed.borrow_mut();
        if let Some(peer) = current.as_ref().and_then(|current| current.peer_of(key)) {
            // SAFETY: a peer of the present snapshot; nobody else uses it in this moment.
            let conns = unsafe { &mut (*peer.as_ptr()).conns };
            *conns = conns.saturating_sub(1);
        } else if let Some(conns) = departed.get_mut(&key) {
            *conns -= 1;
            departed.retain(|_, conns| *conns != 0);
        }
    }

    /// The first request was prepared for picks from a snapshot: methods may leave work to that.
    #[cold]
    pub(super) fn note_first_use(&self, block: &Upstream, snapshot: &Snapshot) {
        let cost = snapshot.start.elapsed();
        // SAFETY: a worker's cycle and its log live as long as the worker.
        let log = unsafe { (*ngx_cycle).log };
        ngx::ngx_log_error!(
            NGX_LOG_DEBUG,
            log,
            "consul: upstream \"{}\": {} peers made anew for \"{}\" in {cost:?}",
            block.name(),
            snapshot.view().len(),
            self.name()
        );
        self.throttle(cost);
    }

    fn throttle(&self, cost: Duration) {
        self.throttled_until.set(Instant::now().checked_add(cost * THROTTLE));
    }
}

/// Makes the peers of `new` go on where those of `old` are. From then on the numbers of requests in
/// flight are right in `new`; requests that hold older peers tell when they end
/// ([`Snapshots::note_end`]).
fn carry_over(old: Option<&Snapshot>, new: Option<&Snapshot>, departed: &mut Departed) {
    let peers = |snapshot: Option<&Snapshot>| -> Vec<_> {
        snapshot.into_iter().flat_map(Snapshot::peers).collect()
    };
    let (old, new) = (peers(old), peers(new));
    // SAFETY: peers of the two snapshots, which nobody else uses in this moment.
    pairs(
        &old,
        &new,
        |(key, _)| *key,
        |pair| unsafe {
            match pair {
                Pair::Both { old: i, new: j } => go_on(&mut *new[j].1.as_ptr(), old[i].1.as_ref()),
                Pair::Come(j) => {
                    (*new[j].1.as_ptr()).conns = departed.remove(&new[j].0).unwrap_or(0);
                }
                Pair::Gone(i) => {
                    departed.insert(old[i].0, old[i].1.as_ref().conns);
                }
            }
        },
    );
    departed.retain(|_, conns| *conns != 0);
}

fn go_on(peer: &mut ngx_http_upstream_rr_peer_t, before: &ngx_http_upstream_rr_peer_t) {
    peer.conns = before.conns;
    peer.fails = before.fails;
    peer.accessed = before.accessed;
    peer.checked = before.checked;
    if peer.weight == before.weight {
        peer.current_weight = before.current_weight;
        peer.effective_weight = before.effective_weight;
    }
}
