//! The instances that an upstream's requests go to, as this worker has them.
//!
//! | file          | holds                                                                     |
//! |---------------|---------------------------------------------------------------------------|
//! | `watched_set` | where a set is in the shared table, and how it is read                    |
//! | `address`     | an address in nginx's types                                               |
//!
//! [`PeerSets`] reads the sets of an upstream when their generations in the table have moved, and
//! makes a [`PeerView`] of them. Requests hold the view that they began with.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use nginx_consul_core::balance::{Method, Pair, ServerParams, View, pairs};
use nginx_consul_core::labels::LabelSet;
use nginx_consul_core::table::{PeerRecord, PeerSnapshot, Table};
use nginx_sys::{ngx_peer_connection_t, ngx_str_t, sockaddr};
use rand::{RngCore, SeedableRng};
use rand_xoshiro::SplitMix64;

use super::worker::{Interval, Worker, monotonic};
use crate::ffi::session::Sessions;

mod watched_set;
mod address;

use address::SockAddr;
pub(crate) use watched_set::WatchedSet;

/// Runs with each new view.
type OnChange = Box<dyn Fn(&View)>;

/// The sets that an upstream's peers come from, one for each datacenter, the first to be used first.
pub(crate) struct PeerSets {
    /// Its service; empty if requests name none.
    pub(super) service: String,
    /// The upstream's name.
    pub(super) name: Box<[u8]>,
    pub(super) sets: Box<[WatchedSet]>,
    rules: ServerParams,
    pub(super) method: Method,
    view: RefCell<Option<Rc<PeerView>>>,
    /// When entries were last looked for.
    searched: Interval,
    /// Whether views have the labels of their peers from the beginning.
    keeps_labels: Cell<bool>,
    /// Called with each new view.
    on_change: OnceCell<OnChange>,
}

/// A worker's copy of the sets. Requests hold it until their pool is destroyed: before nginx 1.27.3
/// `$upstream_addr` points at a peer's name until the access log is written.
pub(crate) struct PeerView {
    peers: View,
    /// Takes half the instructions of rand's own generators, and is good enough by far.
    pub(super) rng: RefCell<SplitMix64>,
    /// Of each peer, made when first asked for: a worker uses few peers of a long set before the
    /// next one comes.
    addresses: Box<[OnceCell<SockAddr>]>,
    sessions: Sessions,
    /// Of each set, if a variable wants them.
    labels: Box<[OnceCell<Rc<LabelSet>>]>,
}

/// One of the sets that a view is made of.
struct Part {
    image: PeerSnapshot,
    /// It is that of the view before.
    is_kept: bool,
}

impl PeerSets {
    pub(super) fn new(
        (name, service): (&[u8], &str),
        sets: Box<[WatchedSet]>,
        (method, rules): (Method, ServerParams),
    ) -> PeerSets {
        PeerSets {
            service: service.to_owned(),
            name: name.into(),
            sets,
            rules,
            method,
            view: RefCell::new(None),
            searched: Interval::default(),
            keeps_labels: Cell::new(false),
            on_change: OnceCell::new(),
        }
    }

    /// Variables tell of the peers.
    pub(super) fn keep_labels(&self, keep: bool) {
        self.keeps_labels.set(keep);
    }

    pub(super) fn keeps_labels(&self) -> bool {
        self.keeps_labels.get()
    }

    /// Has each new view shown to `on_change`, once for all.
    pub(super) fn observe(&self, on_change: impl Fn(&View) + 'static) {
        let _ = self.on_change.set(Box::new(on_change));
    }

    /// Whether the present view, which may be an old one, has one peer.
    pub(super) fn has_one_peer(&self) -> bool {
        self.view.borrow().as_ref().is_some_and(|view| view.len() == 1)
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

    /// Whether that is a copy of the present sets.
    #[inline(always)]
    pub(super) fn is_present(&self, worker: Worker, view: &PeerView) -> bool {
        let same = |(set, held): (&WatchedSet, &u64)| generation(set, worker) == Some(*held);
        let generations = view.peers.generations();
        match (&*self.sets, generations.first()) {
            ([set], Some(held)) => same((set, held)),
            (sets, _) => sets.iter().zip(generations).all(same),
        }
    }

    /// A copy of the present sets, unless that is what it has.
    #[cold]
    fn renewed_view(&self, worker: Worker) -> Option<Rc<PeerView>> {
        let mut held = self.view.borrow_mut();
        self.find_entries(worker);
        let is_current = |view: &Rc<PeerView>| {
            let generations = view.peers.generations();
            self.sets
                .iter()
                .zip(generations)
                .all(|(set, held)| generation(set, worker).is_none_or(|present| present == *held))
        };
        if let Some(view) = held.as_ref().filter(|view| is_current(view)) {
            return Some(Rc::clone(view));
        }
        if let Some(parts) = self.read(worker, held.as_deref()) {
            let rng = held.as_deref().map_or_else(SplitMix64::from_os_rng, |held| {
                SplitMix64::seed_from_u64(held.rng.borrow_mut().next_u64())
            });
            let view = PeerView::new(parts, (&self.rules, self.method), rng, held.as_deref());
            if let Some(on_change) = self.on_change.get() {
                on_change(&view.peers);
            }
            *held = Some(Rc::new(view));
        }
        held.clone()
    }

    /// The present sets, those that did not change from the view before; `None` if there is none.
    fn read(&self, worker: Worker, held: Option<&PeerView>) -> Option<Vec<Part>> {
        let mut any = false;
        let parts = self.sets.iter().enumerate().map(|(number, set)| {
            let held = held.map(PeerView::peers);
            let present = generation(set, worker);
            let is_present = |held: &u64| present == Some(*held);
            let same = held.filter(|view| view.generations().get(number).is_some_and(is_present));
            let is_kept = Cell::new(false);
            let held = || {
                is_kept.set(true);
                held.map(|view| view.snapshot(number)).unwrap_or_default()
            };
            let read = || set.read(worker.table(), self.keeps_labels.get(), held);
            let read = if same.is_none() { read() } else { None };
            any |= read.is_some();
            let image = read.unwrap_or_else(held);
            Part { image, is_kept: is_kept.get() }
        });
        let mut parts: Vec<Part> = parts.collect();
        let images = parts.iter_mut().map(|part| &mut part.image);
        let who = (&*self.service, &*self.name);
        watched_set::apply_overrides(worker.table(), who, &self.sets, images)?;
        any.then_some(parts)
    }

    /// Looks for the entries of sets that have none, once a second at most.
    fn find_entries(&self, worker: Worker) {
        let is_missing = |set: &&WatchedSet| set.entry.get().is_none();
        if self.sets.iter().any(|set| is_missing(&set)) && self.searched.is_due() {
            for set in self.sets.iter().filter(is_missing) {
                set.find(worker.table());
            }
        }
    }

    /// The sets of a service that only requests name.
    fn on_demand(&self) -> impl Iterator<Item = &WatchedSet> {
        self.sets.iter().filter(|set| !set.is_fixed())
    }

    /// Notes that a request has named the service; `false` if it was dropped since it was found.
    /// One datacenter's set may be missing, because there was no room.
    pub(super) fn note_used(&self, worker: Worker) -> bool {
        let (table, now) = (worker.table(), monotonic());
        let mut is_current = self.on_demand().next().is_none();
        for entry in self.on_demand().filter_map(|set| set.present(table)) {
            table.note_used(entry, now);
            is_current = true;
        }
        is_current
    }

    /// Whether the service was not dropped since it was found.
    pub(super) fn is_current(&self, worker: Worker) -> bool {
        let table = worker.table();
        self.on_demand().next().is_none()
            || self.on_demand().any(|set| set.present(table).is_some())
    }

    /// The entry of the first set that has one.
    pub(super) fn first_entry(&self, table: &Table<'static>) -> Option<usize> {
        self.sets.iter().find_map(|set| set.present(table))
    }

    /// The labels of a set's peers. A request that uses a variable which the configuration doesn't
    /// know (by SSI, say) gets none if the set has changed since; the next requests do.
    pub(super) fn labels<'a>(
        &self,
        worker: Option<Worker>,
        view: &'a PeerView,
        number: usize,
    ) -> Option<&'a LabelSet> {
        let cell = view.labels.get(number)?;
        if cell.get().is_none() {
            self.keep_labels(true);
            let set = self.sets.get(number)?;
            let table = worker?.table();
            let mut image = table.read(set.present(table)?, set.key)?;
            if view.peers.generations().get(number) != Some(&image.generation) {
                return None;
            }
            let _ = cell.set(Rc::new(LabelSet::take(&mut image)?));
        }
        cell.get().map(Rc::as_ref)
    }
}

/// The generation in force; `None` if the set has no entry in the table.
#[inline(always)]
fn generation(set: &WatchedSet, worker: Worker) -> Option<u64> {
    set.entry.get().map(|entry| worker.table().generation(entry))
}

impl PeerView {
    /// Takes TLS sessions over from the view before, instance by instance.
    fn new(
        parts: Vec<Part>,
        (rules, method): (&ServerParams, Method),
        mut rng: SplitMix64,
        before: Option<&PeerView>,
    ) -> PeerView {
        let (images, labels): (Vec<PeerSnapshot>, _) =
            parts.into_iter().enumerate().map(|(set, part)| part.split(set, before)).unzip();
        let peers = View::new(images, rules, method, before.map(PeerView::peers));
        if before.is_some() {
            // By worker and change another peer is the first one. Else the first peers of a set that
            // changes often would get more than their share.
            peers.begin_at(rng.next_u64());
        }
        let addresses = peers.records().iter().map(|_| OnceCell::new()).collect();
        let sessions = Sessions::new(peers.records().len());
        if let Some(before) = before.filter(|b| b.sessions.any()) {
            // Two datacenters may have an instance of the same name, but not with the same owner.
            let name = |record: &PeerRecord| record.owner;
            pairs(before.peers.records(), peers.records(), name, |pair| {
                if let Pair::Both { old, new } = pair {
                    sessions.take_over(new, &before.sessions, old);
                }
            });
        }
        let (rng, labels) = (RefCell::new(rng), Vec::into_boxed_slice(labels));
        PeerView { peers, rng, addresses, sessions, labels }
    }

    #[inline]
    pub(super) fn peers(&self) -> &View {
        &self.peers
    }

    pub(super) fn len(&self) -> usize {
        self.peers.records().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.peers.records().is_empty()
    }

    pub(super) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    #[inline(always)]
    fn sockaddr(&self, peer: usize) -> Option<&SockAddr> {
        let cell = self.addresses.get(peer)?;
        match cell.get() {
            Some(made) => Some(made),
            None => self.make_sockaddr(cell, peer),
        }
    }

    #[cold]
    #[inline(never)]
    fn make_sockaddr<'a>(
        &'a self,
        cell: &'a OnceCell<SockAddr>,
        peer: usize,
    ) -> Option<&'a SockAddr> {
        let record = self.peers.records().get(peer)?;
        let made = cell.get_or_init(|| SockAddr::new(record.addr()));
        made.set_name();
        Some(made)
    }

    /// Address and name of a peer, for nginx's own lists; they live as long as the view.
    pub(super) fn address(
        &self,
        peer: usize,
    ) -> Option<(*mut sockaddr, libc::socklen_t, ngx_str_t)> {
        let made = self.sockaddr(peer)?;
        Some((made.storage.as_ptr().cast_mut().cast(), made.len, made.name.get()))
    }

    /// The peer that has this very address of [`PeerView::address`].
    pub(super) fn number_at(&self, address: *const sockaddr) -> Option<usize> {
        let offset = address.addr().checked_sub(self.addresses.as_ptr().addr())?;
        let number = offset / size_of::<OnceCell<SockAddr>>();
        let made = self.addresses.get(number)?.get()?;
        (made.storage.as_ptr().addr() == address.addr()).then_some(number)
    }

    /// Points the connection at a peer. The request holds this view, so the address stays.
    #[inline(always)]
    pub(super) fn point(&self, pc: &mut ngx_peer_connection_t, peer: usize) {
        if let Some(made) = self.sockaddr(peer) {
            pc.sockaddr = made.storage.as_ptr().cast_mut().cast();
            pc.socklen = made.len;
            pc.name = made.name.as_ptr();
        }
    }
}

impl Part {
    /// What peers are picked from, and their labels.
    fn split(
        mut self,
        set: usize,
        before: Option<&PeerView>,
    ) -> (PeerSnapshot, OnceCell<Rc<LabelSet>>) {
        let labels = match before.filter(|_| self.is_kept) {
            Some(before) => before.labels.get(set).cloned().unwrap_or_default(),
            None => {
                LabelSet::take(&mut self.image).map(Rc::new).map(OnceCell::from).unwrap_or_default()
            }
        };
        (self.image, labels)
    }
}

impl Default for PeerView {
    fn default() -> PeerView {
        let (rules, rng) = (ServerParams::default(), SplitMix64::seed_from_u64(0));
        PeerView::new(Vec::new(), (&rules, Method::default()), rng, None)
    }
}
