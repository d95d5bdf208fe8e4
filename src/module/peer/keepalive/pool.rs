//! `consul_keepalive`: a worker's idle connections to the peers of an `upstream`.
//!
//! A connection belongs to the instance that it was opened to, not to its address: it is closed
//! when the instance leaves, and nobody else ever gets it. [`kept`] is what a request does,
//! [`connection`] what an idle connection does, [`lookout`] sees to it that a worker without
//! requests notices who has left.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::ptr::{self, NonNull};
use std::rc::Rc;

use nginx_consul_core::idle::{Idle, Key};
use nginx_consul_core::table::PeerRecord;
use nginx_sys::{ngx_current_msec, ngx_msec_t};

use super::upstream::Upstream;
use super::view::PeerView;
use super::worker::Worker;

mod options;
mod connection;
mod attempt;
mod sweeper;
mod params;

pub(super) use attempt::Kept;
use connection::Connection;
pub(crate) use options::Options;
pub(super) use params::Wanted;
pub(crate) use sweeper::end;

/// The idle connections of an `upstream`, be it to the instances of many services. Each worker has
/// its own after fork().
pub(crate) struct Keepalive {
    /// Requests that a connection serves at most.
    requests: usize,
    /// How long one may be idle, and how long it is used, milliseconds.
    timeout: ngx_msec_t,
    time: ngx_msec_t,
    idle: RefCell<Idle<NonNull<Connection>>>,
    /// The blocks whose instances they lead to, by what they are as owners.
    owners: RefCell<HashMap<usize, *const Upstream>>,
    /// Where idle connections are counted; `None` outside of workers.
    worker: Cell<Option<Worker>>,
    /// The lookout knows of it.
    is_watched: Cell<bool>,
}

/// Owner of the connections to the block's `server` lines, which never leave.
const SERVERS: usize = 0;

impl Keepalive {
    pub(crate) fn new(options: &Options) -> Keepalive {
        Keepalive {
            requests: options.requests,
            timeout: options.timeout.as_millis() as ngx_msec_t,
            time: options.time.as_millis() as ngx_msec_t,
            idle: RefCell::new(Idle::new(options.connections)),
            owners: RefCell::default(),
            worker: Cell::new(None),
            is_watched: Cell::new(false),
        }
    }

    /// A connection to the peer that is what the request wants; it is idle no more.
    #[inline]
    fn take(&self, key: &Key, wanted: &Wanted) -> Option<NonNull<Connection>> {
        loop {
            // SAFETY: what is kept is alive until it is taken out.
            let suits = |held: &NonNull<Connection>| unsafe { held.as_ref().is == *wanted };
            let found = self.idle.borrow_mut().take(key, suits)?;
            self.note(key, false);
            // SAFETY: it was taken out, so this is its only user. What its peer has closed, or sent
            // unasked, the event loop may not have come to yet.
            unsafe {
                if found.as_ref().is_quiet() {
                    return Some(found);
                }
                connection::close(found);
            }
        }
    }

    /// Keeps a connection that has just become idle.
    fn put(self: &Rc<Keepalive>, key: Key, connection: NonNull<Connection>) {
        let (spot, evicted) = self.idle.borrow_mut().put(key, connection);
        // SAFETY: the connection is alive, and nobody else uses it now.
        unsafe { (*connection.as_ptr()).spot = Some(spot) };
        self.note(&key, true);
        if let Some(evicted) = evicted {
            self.close_all([evicted]);
        }
        if !self.is_watched.replace(true) {
            sweeper::watch(self);
        }
    }

    /// An idle connection is to be closed.
    fn remove(&self, connection: NonNull<Connection>) {
        // SAFETY: the connection is alive.
        let spot = unsafe { (*connection.as_ptr()).spot.take() };
        let removed = spot.and_then(|spot| self.idle.borrow_mut().remove(spot));
        self.close_all(removed);
    }

    /// Closes those that lead to nobody of the owner's new set.
    fn keep_only(&self, owner: usize, records: &[PeerRecord]) {
        if self.idle.borrow().is_empty() {
            return;
        }
        let wanted = records.iter().filter(|record| is_wanted(record));
        let set: HashSet<Key> = wanted.map(|record| key(owner, record)).collect();
        let gone = self.idle.borrow_mut().remove_owned(owner, |key| !set.contains(key));
        self.close_all(gone);
    }

    fn close_all(&self, connections: impl IntoIterator<Item = (Key, NonNull<Connection>)>) {
        for (key, connection) in connections {
            self.note(&key, false);
            // SAFETY: it was taken out, so this is its only user.
            unsafe { connection::close(connection) };
        }
    }

    #[inline]
    fn note(&self, key: &Key, more: bool) {
        let Some((worker, place)) = self.worker.get().zip(key.place) else { return };
        if let Some(shard) = worker.shard() {
            worker.table.note_idle(place, shard, more);
        }
    }

    /// Closes those that have been idle for too long.
    fn expire(&self) {
        loop {
            let Some(oldest) = self.idle.borrow().oldest().copied() else { return };
            // SAFETY: what is kept is alive; the event loop's clock, read in the event loop.
            let age = unsafe { ngx_current_msec.wrapping_sub(oldest.as_ref().since) };
            if age < self.timeout {
                return;
            }
            self.remove(oldest);
        }
    }

    /// Closes those whose time is over, and has the blocks notice who has left; `false` if there is
    /// no idle connection left.
    fn look(&self) -> bool {
        self.expire();
        let owners: Vec<_> = self.owners.borrow().values().copied().collect();
        for block in owners {
            // SAFETY: a block leaves before it goes.
            unsafe { (*block).look() };
        }
        !self.idle.borrow().is_empty()
    }
}

/// Whom a connection to an instance of an owner's set leads to.
fn key(owner: usize, record: &PeerRecord) -> Key {
    let (place, identity) = (Some(record.place), record.identity);
    Key { owner, place, identity, address: record.address_id() }
}

/// Whether connections to an instance of the set are worth keeping.
fn is_wanted(record: &PeerRecord) -> bool {
    !record.params().down
}

/// A block's part in the connections. In a worker it stays where it is, and its address is the owner
/// of those to the block's instances.
pub(super) struct Part {
    pub(super) keepalive: Option<Rc<Keepalive>>,
}

impl Part {
    /// In a worker.
    pub(super) fn join(&self, block: &Upstream, worker: Worker) {
        if let Some(keepalive) = &self.keepalive {
            keepalive.worker.set(Some(worker));
            keepalive.owners.borrow_mut().insert(self.owner(), &raw const *block);
        }
    }

    fn owner(&self) -> usize {
        ptr::from_ref(self).addr()
    }

    /// The block has a new set.
    pub(super) fn keep_only(&self, view: &PeerView) {
        if let Some(keepalive) = &self.keepalive {
            keepalive.keep_only(self.owner(), view.peers().records());
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(keepalive) = &self.keepalive {
            keepalive.owners.borrow_mut().remove(&self.owner());
            keepalive.keep_only(self.owner(), &[]);
        }
    }
}

/// Whom a request is with.
pub(super) enum UpstreamPeer<'a> {
    Instance(InstanceRef<'a>),
    /// One of the block's `server` lines.
    Server,
}

impl UpstreamPeer<'_> {
    /// Whether that is still there.
    #[inline]
    fn is_there(&self) -> bool {
        match self {
            UpstreamPeer::Instance(instance) => instance.is_there(),
            UpstreamPeer::Server => true,
        }
    }
}

/// The instance that a request is with.
pub(super) struct InstanceRef<'a> {
    pub(super) block: &'a Upstream,
    pub(super) view: &'a PeerView,
    pub(super) peer: usize,
}

impl InstanceRef<'_> {
    fn record(&self) -> &PeerRecord {
        &self.view.peers().records()[self.peer]
    }

    #[inline]
    fn key(&self) -> Key {
        key(self.block.part().owner(), self.record())
    }

    /// Whether the instance is still there, and where it was.
    #[inline(always)]
    fn is_there(&self) -> bool {
        let Some(worker) = self.block.worker() else { return false };
        if self.block.is_present(worker, self.view) {
            return is_wanted(self.record());
        }
        self.is_there_now(worker)
    }

    #[cold]
    fn is_there_now(&self, worker: Worker) -> bool {
        let Some(present) = self.block.view(worker) else { return false };
        let own = self.record();
        let same = |record: &&PeerRecord| {
            (record.place, record.identity) == (own.place, own.identity)
                && record.has_address_of(own)
        };
        present.peers().records().iter().find(same).is_some_and(is_wanted)
    }
}
