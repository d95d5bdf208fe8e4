//! The peer callbacks: what nginx calls for a request to an upstream.
//!
//! The same order as in nginx's own balancers: init the upstream, init a request, get a peer,
//! free it.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::rc::Rc;

use nginx_consul_core::balance::{self, Candidates, Clock, Method, Rules, Tried};
use nginx_consul_core::table::{Lane, Table};
use nginx_sys::{
    NGX_LOG_ERR, NGX_LOG_WARN, NGX_PEER_FAILED, ngx_conf_t, ngx_current_msec, ngx_http_request_t,
    ngx_http_upstream_init_round_robin, ngx_http_upstream_init_round_robin_peer,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_log_t, ngx_peer_connection_t, ngx_str_t,
    ngx_uint_t, time_t,
};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use crate::conf::{self, Dynamic, SrvConf};
use crate::ffi::{DECLINED, ERROR, OK, fence, give_to_pool, str_over};
use crate::session;

mod view;

use view::PeerView;

/// A block's line "no usable instance" comes at most so often, in milliseconds.
const COMPLAINT_INTERVAL: u64 = 1000;

/// What this worker has of the shared memory.
#[derive(Clone, Copy)]
pub(crate) struct Worker {
    pub(crate) table: Table<'static>,
    /// `None` if all lanes are held by others: requests are then not counted as in flight.
    pub(crate) lane: Option<Lane>,
}

/// An `upstream` that follows Consul, as requests see it. Each worker has its own after fork().
pub(crate) struct Block {
    name: Box<[u8]>,
    name_str: ngx_str_t,
    pub(crate) service: String,
    pub(crate) key: u128,
    pub(crate) target: usize,
    pub(crate) method: Method,
    pub(crate) rules: Rules,
    has_fallback: bool,
    worker: Cell<Option<Worker>>,
    entry: Cell<Option<usize>>,
    view: RefCell<Option<Rc<PeerView>>>,
    cursor: Cell<u64>,
    rng: RefCell<SmallRng>,
    last_complaint: Cell<u64>,
}

/// A request to the block; `peer.data`.
struct Attempt {
    view: Rc<PeerView>,
    tried: Tried,
    /// The peer that has the request.
    current: Option<usize>,
    /// Where it counts as in flight.
    counted: Option<(usize, Lane)>,
    /// Lives in the configuration, which outlives the request.
    block: *const Block,
}

impl Block {
    pub(crate) fn new(
        name: &[u8],
        dynamic: &Dynamic,
        key: u128,
        target: usize,
        method: Method,
    ) -> Block {
        let name: Box<[u8]> = name.into();
        Block {
            name_str: str_over(&name),
            name,
            service: dynamic.query.service.clone(),
            key,
            target,
            method,
            rules: dynamic.rules,
            has_fallback: dynamic.has_fallback,
            worker: Cell::new(None),
            entry: Cell::new(None),
            view: RefCell::new(None),
            cursor: Cell::new(0),
            rng: RefCell::new(SmallRng::seed_from_u64(0)),
            last_complaint: Cell::new(0),
        }
    }

    /// The block's name, for people.
    pub(crate) fn name(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.name)
    }

    /// In a new worker.
    pub(crate) fn start(&self, worker: Worker) {
        self.worker.set(Some(worker));
        self.entry.set(worker.table.find(self.key));
        self.rng.replace(SmallRng::from_os_rng());
    }

    /// This worker's copy of the present set; one atomic load if nothing changed.
    fn view(&self, worker: Worker) -> Option<Rc<PeerView>> {
        let mut held = self.view.borrow_mut();
        let entry = self.entry.get()?;
        let generation = worker.table.generation(entry);
        if let Some(view) = held.as_ref().filter(|v| v.generation() == generation) {
            return Some(Rc::clone(view));
        }
        if let Some(image) = worker.table.read_records(entry, self.key) {
            // Worker by worker and change by change another peer is the first, or the first ones
            // would get more than their share of a set that changes often.
            if held.is_some() {
                self.cursor.set(self.rng.borrow_mut().next_u64());
            }
            *held = Some(Rc::new(PeerView::new(image, held.as_deref())));
        }
        held.clone()
    }

    fn pick(&self, worker: Worker, attempt: &Attempt) -> Option<usize> {
        let candidates = Candidates {
            view: attempt.view.peers(),
            table: worker.table,
            rules: &self.rules,
            tried: &attempt.tried,
            now: now(),
        };
        let mut cursor = self.cursor.get();
        let picked =
            balance::pick(self.method, &candidates, &mut cursor, &mut *self.rng.borrow_mut());
        self.cursor.set(cursor);
        picked
    }

    /// Says, once a second at most, that there is nobody to ask.
    fn complain(&self, log: *mut ngx_log_t) {
        // SAFETY: the event loop's clock, read in the event loop.
        let now = unsafe { ngx_current_msec } as u64;
        let last = self.last_complaint.get();
        if last != 0 && now.wrapping_sub(last) < COMPLAINT_INTERVAL {
            return;
        }
        self.last_complaint.set(now.max(1));
        ngx::ngx_log_error!(
            NGX_LOG_ERR,
            log,
            "consul: no usable instance of service \"{}\" in upstream \"{}\"",
            self.service.escape_debug(),
            self.name()
        );
    }
}

/// The event loop's time.
fn now() -> Clock {
    // SAFETY: ngx_cached_time always points to a valid time; only the event loop moves it.
    let time = unsafe { &*nginx_sys::ngx_cached_time.cast_const() };
    let seconds = u64::try_from(time.sec as time_t).unwrap_or(0);
    Clock { seconds, millis: seconds * 1000 + time.msec as u64 }
}

/// `peer.init_upstream`. nginx's own round robin is made of the block's `server` lines, for when
/// the service has no instance.
pub(crate) extern "C" fn ngx_http_upstream_init_consul(
    cf: *mut ngx_conf_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes the block that is being read; its SrvConf is ours alone.
        unsafe {
            let conf = crate::ffi::conf_of::<SrvConf>(
                (*us).srv_conf,
                &raw const crate::ngx_http_consul_module,
            );
            if let Some(dynamic) = &mut (*conf).dynamic {
                dynamic.initialized = true;
            }
            // A zone would be refused later with a better message than what happens here.
            if ngx_http_upstream_init_round_robin(cf, us) != OK {
                return ERROR;
            }
            (*us).peer.init = Some(ngx_http_upstream_init_consul_peer);
        }
        OK
    })
}

/// `peer.init`.
extern "C" fn ngx_http_upstream_init_consul_peer(
    r: *mut ngx_http_request_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes a request with an upstream, and a block of the running
        // configuration, which lives as long as the worker.
        unsafe {
            let Some(block) = &conf::srv_conf(us).block else { return ERROR };
            let view = block.worker.get().and_then(|worker| block.view(worker));
            let view = view.unwrap_or_default();
            if view.is_empty() && block.has_fallback {
                return ngx_http_upstream_init_round_robin_peer(r, us);
            }
            let tries = view.len().max(1);
            let attempt = give_to_pool(
                (*r).pool,
                Attempt {
                    view,
                    tried: Tried::default(),
                    current: None,
                    counted: None,
                    block: &raw const **block,
                },
            );
            if attempt.is_null() {
                return ERROR;
            }
            let peer = &mut (*(*r).upstream).peer;
            peer.data = attempt.cast();
            peer.get = Some(ngx_http_upstream_get_consul_peer);
            peer.free = Some(ngx_http_upstream_free_consul_peer);
            peer.tries = tries as ngx_uint_t;
            session::install(peer, set_session, save_session);
        }
        OK
    })
}

/// # Safety
///
/// `data` is the `peer.data` of a request that [`ngx_http_upstream_init_consul_peer`] set; nginx
/// runs one callback of a request at a time.
unsafe fn attempt<'a>(data: *mut c_void) -> &'a mut Attempt {
    // SAFETY: the caller's promise; the request's pool has the attempt.
    unsafe { &mut *data.cast::<Attempt>() }
}

extern "C" fn ngx_http_upstream_get_consul_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes the request's connection and our data.
        let (pc, attempt) = unsafe { (&mut *pc, attempt(data)) };
        // SAFETY: the configuration outlives the request.
        let block = unsafe { &*attempt.block };
        pc.set_cached(0);
        pc.connection = std::ptr::null_mut();
        attempt.end();
        let picked = block.worker.get().and_then(|worker| {
            let peer = block.pick(worker, attempt)?;
            attempt.begin(worker, peer, &block.rules);
            Some(peer)
        });
        let Some(peer) = picked else {
            if attempt.tried.count() == 0 {
                block.complain(pc.log);
            }
            // Not NGX_BUSY: nginx would log a line for each request.
            pc.name = (&raw const block.name_str).cast_mut();
            pc.tries = 0;
            return DECLINED;
        };
        attempt.view.point(pc, peer);
        OK
    })
}

extern "C" fn ngx_http_upstream_free_consul_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
    state: ngx_uint_t,
) {
    fence((), || {
        // SAFETY: nginx passes the request's connection and our data.
        let (pc, attempt) = unsafe { (&mut *pc, attempt(data)) };
        if let Some(peer) = attempt.current {
            // SAFETY: the configuration outlives the request.
            let block = unsafe { &*attempt.block };
            if let Some(worker) = block.worker.get() {
                attempt.judge(worker, peer, block, state, pc.log);
            }
        }
        attempt.end();
        pc.tries = if attempt.view.len() == 1 { 0 } else { pc.tries.saturating_sub(1) };
    });
}

impl Attempt {
    fn begin(&mut self, worker: Worker, peer: usize, rules: &Rules) {
        let record = &self.view.peers().records()[peer];
        let slot = record.slot as usize;
        self.tried.insert(peer);
        self.current = Some(peer);
        self.counted = worker
            .lane
            .filter(|&l| worker.table.enter(slot, record.identity, l))
            .map(|l| (slot, l));
        if rules.max_fails != 0 {
            worker.table.note_checked(slot, u64::from(rules.fail_timeout), now().seconds);
        }
    }

    /// Counts the outcome, as `ngx_http_upstream_free_round_robin_peer()` does.
    fn judge(
        &self,
        worker: Worker,
        peer: usize,
        block: &Block,
        state: ngx_uint_t,
        log: *mut ngx_log_t,
    ) {
        let slot = self.view.peers().records()[peer].slot as usize;
        if state & NGX_PEER_FAILED as ngx_uint_t == 0 {
            worker.table.note_passed(slot);
            return;
        }
        let fails = worker.table.note_failed(slot, now().seconds);
        let max_fails = u64::from(block.rules.max_fails);
        if max_fails != 0 && fails >= max_fails && self.view.len() > 1 {
            ngx::ngx_log_error!(NGX_LOG_WARN, log, "upstream server temporarily disabled");
        }
    }

    fn end(&mut self) {
        self.current = None;
        // SAFETY: the configuration outlives the request.
        let worker = unsafe { (*self.block).worker.get() };
        if let (Some(worker), Some((slot, lane))) = (worker, self.counted.take()) {
            worker.table.leave(slot, lane);
        }
    }
}

impl Drop for Attempt {
    /// With the request's pool; nginx has freed the peer before, so this is for what it forgets.
    fn drop(&mut self) {
        self.end();
    }
}

extern "C" fn set_session(pc: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    fence(ERROR, || {
        // SAFETY: nginx passes the request's connection and our data.
        let (pc, attempt) = unsafe { (&mut *pc, attempt(data)) };
        attempt.current.map_or(OK, |peer| attempt.view.sessions().resume(pc, peer))
    })
}

extern "C" fn save_session(pc: *mut ngx_peer_connection_t, data: *mut c_void) {
    fence((), || {
        // SAFETY: nginx passes the request's connection and our data.
        let (pc, attempt) = unsafe { (&mut *pc, attempt(data)) };
        if let Some(peer) = attempt.current {
            attempt.view.sessions().save(pc, peer);
        }
    });
}
