//! A worker's snapshots of an upstream whose peers a method of nginx picks.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nginx_sys::{
    NGX_LOG_DEBUG, NGX_LOG_ERR, ngx_http_conf_ctx_t, ngx_http_upstream_srv_conf_t, ngx_log_t,
};

use super::super::set::PeerView;
use super::carry_over::{Departed, carry_over};
use super::method::NginxMethod;
use super::snapshot::{Failed, Maker, Pool, Snapshot};
use crate::ffi::process;

/// After new peers were made the next ones have to wait so many times as long as that took: a storm
/// of changes takes at most 5 % of a worker's time.
const THROTTLE: u32 = 20;

/// How long the first new try waits after a method has made no peers, and the longest wait: each
/// failure doubles it, and may cost a pool.
const RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(3600);

/// nginx's peers of an upstream, as a worker has them.
pub(crate) struct Snapshots {
    maker: Maker,
    /// The upstream, for messages.
    upstream: String,
    /// There are no `server` lines.
    alone: bool,
    current: RefCell<Option<Rc<Snapshot>>>,
    /// No new peers before that.
    throttled_until: Cell<Option<Instant>>,
    /// Number of the newest peers, never given twice.
    serial: Cell<usize>,
    departed: RefCell<Departed>,
    /// What the method has refused to go on with since the newest peers.
    refused: RefCell<Vec<Pool>>,
    /// How often in a row no peers were made.
    failures: Cell<u32>,
}

impl Snapshots {
    /// # Safety
    ///
    /// The block and the context are of the configuration that the value becomes part of.
    pub(crate) unsafe fn new(
        method: NginxMethod,
        us: *mut ngx_http_upstream_srv_conf_t,
        context: *mut ngx_http_conf_ctx_t,
    ) -> Snapshots {
        Snapshots::with(Maker { method, us, context })
    }

    fn with(maker: Maker) -> Snapshots {
        Snapshots {
            maker,
            upstream: String::new(),
            alone: true,
            current: RefCell::default(),
            throttled_until: Cell::new(None),
            serial: Cell::new(0),
            departed: RefCell::default(),
            refused: RefCell::default(),
            failures: Cell::new(0),
        }
    }

    /// Of the upstream of this name.
    pub(crate) fn of(mut self, upstream: &[u8], alone: bool) -> Snapshots {
        self.upstream = String::from_utf8_lossy(upstream).into_owned();
        self.alone = alone;
        self
    }

    /// The same for another service: the method keeps nothing in the block, or the configuration
    /// was refused.
    pub(crate) fn another(&self) -> Snapshots {
        Snapshots::with(self.maker.clone())
    }

    /// The method, for people.
    pub(crate) fn name(&self) -> &str {
        &self.maker.method.name
    }

    /// The peers of the set of `view`, or of an older one for a while; `None` if there are none.
    #[inline]
    pub(crate) fn snapshot(&self, view: &Rc<PeerView>) -> Option<Rc<Snapshot>> {
        match &*self.current.borrow() {
            Some(current) if Rc::ptr_eq(current.view(), view) => return Some(Rc::clone(current)),
            None if view.is_empty() => return None,
            _ => {}
        }
        self.renewed(view)
    }

    #[cold]
    fn renewed(&self, view: &Rc<PeerView>) -> Option<Rc<Snapshot>> {
        let start = Instant::now();
        if self.throttled_until.get().is_none_or(|until| start >= until) {
            if view.is_empty() {
                self.replace(None);
            } else {
                self.renew(view, start);
            }
        }
        self.current.borrow().clone()
    }

    /// Makes peers of a set. If that fails, the old ones serve on.
    fn renew(&self, view: &Rc<PeerView>, start: Instant) {
        self.serial.set(self.serial.get() + 1);
        match Snapshot::new(&self.maker, view, self.alone, (self.serial.get(), start)) {
            Ok(new) => {
                self.replace(Some(Rc::new(new)));
                self.refused.take();
                self.failures.set(0);
            }
            Err(failed) => {
                let reason = match failed {
                    Failed::Memory => "memory is short",
                    Failed::Refused(pool) => {
                        self.refused.borrow_mut().push(pool);
                        "it has failed"
                    }
                };
                self.back_off(reason, view.len());
            }
        }
    }

    fn replace(&self, new: Option<Rc<Snapshot>>) {
        let old = self.current.replace(None);
        carry_over(old.as_deref(), new.as_deref(), &mut self.departed.borrow_mut());
        self.current.replace(new);
    }

    /// No peers were made.
    fn back_off(&self, reason: &str, peers: usize) {
        let failures = self.failures.get();
        self.failures.set(failures.saturating_add(1));
        let doubled = RETRY.saturating_mul(1 << failures.min(20));
        let wait = doubled.min(MAX_RETRY);
        self.throttled_until.set(Instant::now().checked_add(wait));
        ngx::ngx_log_error!(
            NGX_LOG_ERR,
            log(),
            "consul: upstream \"{}\": \"{}\" has made no peers of {peers} instances ({reason}), next \
             try in {}s",
            self.upstream,
            self.name(),
            wait.as_secs()
        );
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
    pub(super) fn note_first_use(&self, snapshot: &Snapshot) {
        let cost = snapshot.start.elapsed();
        ngx::ngx_log_error!(
            NGX_LOG_DEBUG,
            log(),
            "consul: upstream \"{}\": {} peers made anew for \"{}\" in {cost:?}",
            self.upstream,
            snapshot.view().len(),
            self.name()
        );
        self.throttled_until.set(Instant::now().checked_add(cost * THROTTLE));
    }
}

/// The worker's log.
fn log() -> *mut ngx_log_t {
    process::log().as_ptr()
}
