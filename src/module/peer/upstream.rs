//! An `upstream` that follows Consul, as one worker sees it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use nginx_consul_core::balance::{
    self, Admitted, Clock, Method, PickContext, ServerParams, Tried, View,
};
use nginx_consul_core::table::Table;
use nginx_sys::{ngx_http_complex_value, ngx_http_request_t, ngx_str_t};
use rand::{RngCore, SeedableRng};
use rand_xoshiro::SplitMix64;

use super::clock::{Interval, now};
use super::keepalive::{self, Keepalive};
use super::nginx_method::Snapshots;
use super::options::Options;
use super::view::{Part, PeerView};
use super::watched_set::{self, Source};
use super::worker::Worker;
use crate::ffi::{OK, bytes, str_over};

mod failures;
mod told;

/// An `upstream` that follows Consul, as requests see it. Each worker has its own after fork().
pub(crate) struct Upstream {
    name: Box<[u8]>,
    name_str: ngx_str_t,
    pub(crate) service: String,
    options: Options,
    /// What picks in place of `consul_balance`.
    nginx_method: Option<Snapshots>,
    /// One for each datacenter, the first to be used first.
    sources: Box<[Source]>,
    part: keepalive::Part,
    worker: Cell<Option<Worker>>,
    view: RefCell<Option<Rc<PeerView>>>,
    turn: RefCell<Turn>,
    in_panic: Cell<bool>,
    counted: Interval,
    complained: Interval,
    looked: Interval,
    /// Whether views have what variables tell of peers from the beginning.
    keeps_labels: Cell<bool>,
}

/// Where a worker is in its picks.
struct Turn {
    /// Of the round robin order.
    cursor: u64,
    /// Half the instructions of rand's own generators, and good enough by far.
    rng: SplitMix64,
}

impl Upstream {
    pub(crate) fn new(
        name: &[u8],
        service: &str,
        sources: Box<[Source]>,
        options: Options,
        nginx_method: Option<Snapshots>,
        keepalive: Option<Rc<Keepalive>>,
    ) -> Upstream {
        let name: Box<[u8]> = name.into();
        Upstream {
            name_str: str_over(&name),
            name,
            service: service.to_owned(),
            options,
            nginx_method,
            sources,
            part: keepalive::Part { keepalive },
            worker: Cell::new(None),
            view: RefCell::new(None),
            turn: RefCell::new(Turn { cursor: 0, rng: SplitMix64::seed_from_u64(0) }),
            in_panic: Cell::new(false),
            counted: Interval::default(),
            complained: Interval::default(),
            looked: Interval::default(),
            keeps_labels: Cell::new(false),
        }
    }

    /// One like it for requests that name nobody: they are not even for its `server` lines.
    pub(super) fn for_nobody(&self) -> Upstream {
        let options = Options { has_fallback: false, ..self.options };
        self.like(options, "", Box::new([]))
    }

    /// One like it, for a service that a request has named.
    pub(super) fn for_service(&self, service: &str, sources: Box<[Source]>) -> Upstream {
        self.like(self.options, service, sources)
    }

    fn like(&self, options: Options, service: &str, sources: Box<[Source]>) -> Upstream {
        let nginx_method = self.nginx_method.as_ref().map(Snapshots::another);
        let keepalive = self.part.keepalive.clone();
        let block = Upstream::new(&self.name, service, sources, options, nginx_method, keepalive);
        block.keep_labels(self.keeps_labels.get());
        block
    }

    /// Variables tell of its peers.
    pub(crate) fn keep_labels(&self, keep: bool) {
        self.keeps_labels.set(keep);
    }

    pub(super) fn part(&self) -> &keepalive::Part {
        &self.part
    }

    /// Whether idle connections to its instances are kept by us.
    pub(crate) fn keeps_alive(&self) -> bool {
        self.part.keepalive.is_some()
    }

    #[inline]
    pub(super) fn nginx_method(&self) -> Option<&Snapshots> {
        self.nginx_method.as_ref()
    }

    /// Whether there are `server` lines to fall back on.
    #[inline]
    pub(super) fn has_fallback(&self) -> bool {
        self.options.has_fallback
    }

    /// Parameters of its peers that have none of their own.
    pub(crate) fn rules(&self) -> ServerParams {
        self.options.rules
    }

    /// Its name, for people.
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
        self.part.join(self, worker);
        self.turn.borrow_mut().rng = SplitMix64::from_os_rng();
        self.view(worker);
    }

    /// What the worker has of the shared memory; `None` outside of workers.
    #[inline]
    pub(super) fn worker(&self) -> Option<Worker> {
        self.worker.get()
    }

    pub(super) fn method(&self) -> Method {
        self.options.balance.method
    }

    /// What the request is hashed by, in the request's pool; empty if the method wants nothing.
    ///
    /// # Safety
    ///
    /// `r` is a valid request; the key lives as long as it.
    #[inline]
    pub(super) unsafe fn key<'a>(&self, r: *mut ngx_http_request_t) -> Option<&'a [u8]> {
        let Some(value) = self.options.balance.key else { return Some(b"") };
        let mut key = str_over(b"");
        // SAFETY: the value was compiled for this configuration, which outlives the request.
        unsafe { (ngx_http_complex_value(r, value.as_ptr(), &mut key) == OK).then(|| bytes(&key)) }
    }

    /// Where its peers come from.
    pub(crate) fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// This worker's copy of the present sets; one atomic load for each if nothing changed.
    #[inline(always)]
    pub(super) fn view(&self, worker: Worker) -> Option<Rc<PeerView>> {
        // SAFETY: it is borrowed mutably in renewed_view() only, which calls nothing that comes here;
        // and while this looks at it, only the view's counter is touched.
        let held = unsafe { self.view.try_borrow_unguarded() };
        match held {
            Ok(Some(view)) if self.is_present(worker, view) => Some(Rc::clone(view)),
            _ => self.renewed_view(worker),
        }
    }

    /// Takes the present sets, also while no request comes.
    pub(super) fn look(&self) {
        if let Some(worker) = self.worker.get() {
            self.view(worker);
        }
    }

    /// Whether that is a copy of the present sets.
    #[inline(always)]
    pub(super) fn is_present(&self, worker: Worker, view: &PeerView) -> bool {
        let same = |(source, held): (&Source, &u64)| {
            source.generation(&worker.share().table) == Some(*held)
        };
        let generations = view.peers().generations();
        match (&*self.sources, generations.first()) {
            ([source], Some(held)) => same((source, held)),
            (sources, _) => sources.iter().zip(generations).all(same),
        }
    }

    /// A copy of the present sets, unless that is what it has.
    #[cold]
    fn renewed_view(&self, worker: Worker) -> Option<Rc<PeerView>> {
        let mut held = self.view.borrow_mut();
        self.find_entries(worker.table);
        let is_current = |view: &Rc<PeerView>| {
            let generations = view.peers().generations();
            self.sources.iter().zip(generations).all(|(source, held)| {
                source.generation(&worker.table).is_none_or(|present| present == *held)
            })
        };
        if let Some(view) = held.as_ref().filter(|view| is_current(view)) {
            return Some(Rc::clone(view));
        }
        if let Some(parts) = self.read(worker.table, held.as_deref()) {
            // Worker by worker and change by change another peer is the first, or the first ones
            // would get more than their share of a set that changes often.
            if held.is_some() {
                let mut turn = self.turn.borrow_mut();
                turn.cursor = turn.rng.next_u64();
            }
            let view = PeerView::new(parts, &self.options.rules, self.method(), held.as_deref());
            self.part.keep_only(&view);
            *held = Some(Rc::new(view));
        }
        held.clone()
    }

    /// The present sets, those that did not change from the view before; `None` if there is none.
    fn read(&self, table: Table<'static>, held: Option<&PeerView>) -> Option<Vec<Part>> {
        let mut any = false;
        let parts = self.sources.iter().enumerate().map(|(set, source)| {
            let held = held.map(PeerView::peers);
            let same = held.filter(|v| source.generation(&table) == Some(v.generations()[set]));
            let is_kept = Cell::new(false);
            let held = || {
                is_kept.set(true);
                held.map(|view| view.snapshot(set)).unwrap_or_default()
            };
            let with_labels = self.keeps_labels.get();
            let read = if same.is_none() { source.read(table, with_labels, held) } else { None };
            any |= read.is_some();
            let image = read.unwrap_or_else(held);
            Part { image, is_kept: is_kept.get() }
        });
        let mut parts: Vec<Part> = parts.collect();
        let images = parts.iter_mut().map(|part| &mut part.image);
        watched_set::apply_overrides(table, (&self.service, &self.name), &self.sources, images)?;
        any.then_some(parts)
    }

    fn find_entries(&self, table: Table<'static>) {
        let is_missing = |source: &Source| source.entry.get().is_none();
        if self.sources.iter().any(is_missing) && self.looked.is_due() {
            for source in self.sources.iter().filter(|source| is_missing(source)) {
                source.find(table, &self.service);
            }
        }
    }

    /// Notes that a request has named the service; `false` if it was dropped since it was found.
    /// One datacenter's set may be missing, because there was no room.
    pub(super) fn note_used(&self, worker: Worker) -> bool {
        let now = now().millis;
        let mut own = self.sources.iter().filter(|source| !source.is_fixed()).peekable();
        let mut is_current = own.peek().is_none();
        for entry in own.filter_map(|source| source.present(worker.table)) {
            worker.table.note_used(entry, now);
            is_current = true;
        }
        is_current
    }

    /// Whether the service was not dropped since it was found.
    pub(super) fn is_current(&self, worker: Worker) -> bool {
        let mut own = self.sources.iter().filter(|source| !source.is_fixed()).peekable();
        own.peek().is_none() || own.any(|source| source.present(worker.table).is_some())
    }

    /// The next peer of a request that holds `view`.
    #[inline(always)]
    pub(super) fn pick<'a>(
        &self,
        worker: Worker,
        view: &'a PeerView,
        tried: &'a Tried,
        key: &'a [u8],
        now: Clock,
    ) -> Option<Admitted<'a, 'static>> {
        let table = &worker.share().table;
        let peers = view.peers();
        let mut candidates = PickContext { key, now, ..self.candidates(table, peers, tried) };
        if self.options.panic.is_some() {
            candidates.panic = self.is_in_panic(&candidates);
        }
        let Turn { cursor, rng } = &mut *self.turn.borrow_mut();
        let shared = || self.shared(worker);
        balance::pick(self.method(), &candidates, shared, cursor, rng)
    }

    pub(super) fn candidates<'a>(
        &self,
        table: &'a Table<'static>,
        view: &'a View,
        tried: &'a Tried,
    ) -> PickContext<'a, 'static> {
        let alone = !self.options.has_fallback;
        PickContext { view, table, tried, now: now(), key: b"", panic: false, alone }
    }
}
