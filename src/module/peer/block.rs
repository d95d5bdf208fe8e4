//! An `upstream` that follows Consul, as one worker sees it.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;

use nginx_consul_core::balance::{self, Candidates, Clock, Method, Rules, Tried, View};
use nginx_consul_core::table::{Lane, Table};
use nginx_sys::{NGX_LOG_ERR, ngx_current_msec, ngx_log_t, ngx_str_t, time_t};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use super::view::PeerView;
use crate::conf::Dynamic;
use crate::ffi::str_over;
use crate::watcher;

/// What a block does not do for each request, it does at most so often, in milliseconds: saying
/// that there is no usable instance, and looking for its entry while it has none.
const INTERVAL: u64 = 1000;

/// What this worker has of the shared memory. A handle, because requests copy it.
#[derive(Clone, Copy)]
pub(crate) struct Worker(&'static Share);

pub(crate) struct Share {
    pub(crate) table: Table<'static>,
    /// `None` if all lanes are held by others: requests are then not counted as in flight.
    pub(crate) lane: Option<Lane>,
}

impl Worker {
    /// For as long as the process runs; made once, or again when it gets a lane after all.
    pub(crate) fn new(table: Table<'static>, lane: Option<Lane>) -> Worker {
        Worker(Box::leak(Box::new(Share { table, lane })))
    }
}

impl Deref for Worker {
    type Target = Share;

    fn deref(&self) -> &Share {
        self.0
    }
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
    pub(super) has_fallback: bool,
    worker: Cell<Option<Worker>>,
    entry: Cell<Option<usize>>,
    view: RefCell<Option<Rc<PeerView>>>,
    cursor: Cell<u64>,
    rng: RefCell<SmallRng>,
    complained: Interval,
    looked: Interval,
    asked_for_lane: Interval,
}

/// When something was last done, on the event loop's clock.
#[derive(Default)]
struct Interval(Cell<u64>);

impl Interval {
    /// Whether it is time to do it again; then it counts as done.
    fn is_due(&self) -> bool {
        // SAFETY: the event loop's clock, read in the event loop.
        let now = unsafe { ngx_current_msec } as u64;
        let last = self.0.get();
        let due = last == 0 || now.wrapping_sub(last) >= INTERVAL;
        if due {
            self.0.set(now.max(1));
        }
        due
    }
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
            complained: Interval::default(),
            looked: Interval::default(),
            asked_for_lane: Interval::default(),
        }
    }

    /// The block's name, for people.
    pub(crate) fn name(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.name)
    }

    /// The name for `$upstream_addr` when there is no peer.
    pub(super) fn name_ptr(&self) -> *mut ngx_str_t {
        (&raw const self.name_str).cast_mut()
    }

    /// In a new worker. Takes the present set, so that the
    /// worker has one even if the entry passes to another target before the first request.
    pub(crate) fn start(&self, worker: Worker) {
        self.worker.set(Some(worker));
        self.rng.replace(SmallRng::from_os_rng());
        self.view(worker);
    }

    /// What the worker has of the shared memory; `None` outside of workers.
    pub(super) fn worker(&self) -> Option<Worker> {
        let worker = self.worker.get()?;
        if worker.lane.is_none() && self.asked_for_lane.is_due() {
            if let Some(better) = watcher::try_lane() {
                self.worker.set(Some(better));
            }
        }
        self.worker.get()
    }

    /// This worker's copy of the present set; one atomic load if nothing changed.
    pub(super) fn view(&self, worker: Worker) -> Option<Rc<PeerView>> {
        let mut held = self.view.borrow_mut();
        let Some(entry) = self.entry(worker.table) else { return held.clone() };
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
        } else if worker.table.key(entry) != self.key {
            self.entry.set(None);
        }
        held.clone()
    }

    fn entry(&self, table: Table<'static>) -> Option<usize> {
        if self.entry.get().is_none() && self.looked.is_due() {
            self.entry.set(table.find(self.key));
        }
        self.entry.get()
    }

    /// The next peer of a request that holds `view`.
    pub(super) fn pick(&self, worker: Worker, view: &View, tried: &Tried) -> Option<usize> {
        let candidates =
            Candidates { view, table: worker.table, rules: &self.rules, tried, now: now() };
        let mut cursor = self.cursor.get();
        let picked =
            balance::pick(self.method, &candidates, &mut cursor, &mut *self.rng.borrow_mut());
        self.cursor.set(cursor);
        picked
    }

    /// Says, once a second at most, that there is nobody to ask.
    pub(super) fn complain(&self, log: *mut ngx_log_t) {
        if !self.complained.is_due() {
            return;
        }
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
pub(super) fn now() -> Clock {
    // SAFETY: ngx_cached_time always points to a valid time; only the event loop moves it.
    let time = unsafe { &*nginx_sys::ngx_cached_time.cast_const() };
    let seconds = u64::try_from(time.sec as time_t).unwrap_or(0);
    Clock { seconds, millis: seconds * 1000 + time.msec as u64 }
}
