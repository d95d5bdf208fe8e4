//! A worker's idle connections of an upstream, and the sets of peers that they lead to.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::ptr::{self, NonNull};
use std::rc::{Rc, Weak};

use nginx_consul_core::idle::{Idle, PeerKey};
use nginx_consul_core::table::PeerRecord;
use nginx_sys::{ngx_msec_t, ngx_peer_connection_t};

use super::super::set::PeerSets;
use super::super::worker::Worker;
use super::connection::{self, Connection, Holder};
use super::options::Options;
use super::params::ConnParams;
use crate::ffi::process::current_msec;

/// The idle connections of an `upstream`, be it to the instances of many services. Each worker has
/// its own after fork().
pub(crate) struct Keepalive {
    /// Most idle connections of a worker.
    connections: usize,
    /// Most requests over one connection.
    pub(super) requests: usize,
    /// How long a connection may be idle, and how long it is used, milliseconds.
    timeout: ngx_msec_t,
    pub(super) time: ngx_msec_t,
    idle: RefCell<Idle<NonNull<Connection>>>,
    /// The sets whose instances they lead to, by their addresses, which connections are kept by.
    owners: RefCell<HashMap<usize, Weak<PeerSets>>>,
    /// Where idle connections are counted; `None` outside of workers.
    pub(super) worker: Cell<Option<Worker>>,
    /// The sweeper knows of it.
    pub(super) is_watched: Cell<bool>,
}

/// Owner of the connections to the upstream's `server` lines, which never leave.
pub(super) const SERVERS: usize = 0;

impl Keepalive {
    pub(crate) fn new(options: &Options) -> Keepalive {
        Keepalive {
            connections: options.connections,
            requests: options.requests,
            timeout: options.timeout.as_millis() as ngx_msec_t,
            time: options.time.as_millis() as ngx_msec_t,
            idle: RefCell::new(Idle::new(options.connections)),
            owners: RefCell::default(),
            worker: Cell::new(None),
            is_watched: Cell::new(false),
        }
    }

    /// The most idle connections of a worker.
    pub(crate) fn connections(&self) -> usize {
        self.connections
    }

    /// A connection to the peer that has these parameters; it is idle no more.
    #[inline]
    pub(super) fn take(&self, key: &PeerKey, params: &ConnParams) -> Option<NonNull<Connection>> {
        loop {
            // SAFETY: what is idle is open until it is taken out.
            let suits = |idle: &NonNull<Connection>| unsafe { idle.as_ref() }.params == *params;
            let found = self.idle.borrow_mut().take(key, suits)?;
            self.count(key, found, false);
            // SAFETY: it was taken out, so this is its only user.
            if unsafe { found.as_ref().is_quiet() } {
                return Some(found);
            }
            // Its peer has closed it or sent something, and the event loop has not come to that yet.
            // SAFETY: as above.
            unsafe { connection::close(found) };
        }
    }

    /// Keeps a connection that becomes idle.
    ///
    /// # Safety
    ///
    /// `pc` is that of a request that has done with the connection; `connection` is of it.
    #[inline(always)]
    pub(super) unsafe fn put(
        self: &Rc<Keepalive>,
        key: PeerKey,
        connection: NonNull<Connection>,
        pc: &mut ngx_peer_connection_t,
    ) {
        let holder: NonNull<dyn Holder> = NonNull::from(&**self);
        // SAFETY: the caller's promise. The pool closes its connections before it is dropped, or they
        // end with the worker.
        let is_ready = unsafe { connection::detach(connection, pc, holder) };
        let (idle_ref, evicted) = self.idle.borrow_mut().put(key, connection);
        // SAFETY: the connection is open.
        unsafe { connection.as_ref() }.idle_ref.set(Some(idle_ref));
        self.count(&key, connection, true);
        if let Some(evicted) = evicted {
            self.close_all([evicted]);
        }
        if is_ready {
            // SAFETY: it was detached, and is in the pool.
            unsafe { connection::check(connection) };
        }
    }

    /// Closes the connections of an owner that lead to none of its instances any more.
    fn close_departed(&self, owner: usize, records: &[PeerRecord]) {
        if self.idle.borrow().is_empty() {
            return;
        }
        let present = records.iter().filter(|record| is_wanted(record));
        let present: HashSet<PeerKey> = present.map(|record| key(owner, record)).collect();
        let gone = self.idle.borrow_mut().remove_owned(owner, |key| !present.contains(key));
        self.close_all(gone);
    }

    fn close_all(&self, connections: impl IntoIterator<Item = (PeerKey, NonNull<Connection>)>) {
        for (key, connection) in connections {
            self.count(&key, connection, false);
            // SAFETY: it was taken out, so this is its only user.
            unsafe { connection::close(connection) };
        }
    }

    /// Counts an idle connection, or no longer. A worker that got its shard late has some that are not
    /// counted.
    #[inline]
    fn count(&self, key: &PeerKey, connection: NonNull<Connection>, more: bool) {
        let Some((worker, slot)) = self.worker.get().zip(key.slot) else { return };
        // SAFETY: the connection is open.
        let is_counted = unsafe { &connection.as_ref().is_counted };
        if let Some(shard) = worker.shard().filter(|_| more != is_counted.get()) {
            is_counted.set(more);
            worker.table().note_idle(slot, shard, more);
        }
    }

    /// Closes those that have been idle for too long.
    fn expire(&self) {
        loop {
            let Some(oldest) = self.idle.borrow().oldest().copied() else { return };
            // SAFETY: what is idle is open until it is taken out.
            let since = unsafe { oldest.as_ref() }.since.get();
            if current_msec().wrapping_sub(since) < self.timeout {
                return;
            }
            self.close(oldest);
        }
    }

    /// Closes old connections, and those of instances that have left; `false` if there is no idle
    /// connection left.
    pub(super) fn sweep(&self) -> bool {
        self.expire();
        let owners: Vec<_> = self.owners.borrow().values().filter_map(Weak::upgrade).collect();
        for sets in owners {
            // A new view closes the connections of those that have left.
            self.worker.get().and_then(|worker| sets.view(worker));
        }
        !self.idle.borrow().is_empty()
    }

    /// The worker ends: what is idle ends with it.
    pub(super) fn forget(&self) {
        *self.idle.borrow_mut() = Idle::new(1);
    }
}

impl Holder for Keepalive {
    fn close(&self, connection: NonNull<Connection>) {
        // SAFETY: the connection is open.
        let idle_ref = unsafe { connection.as_ref() }.idle_ref.take();
        let removed = idle_ref.and_then(|idle_ref| self.idle.borrow_mut().remove(idle_ref));
        self.close_all(removed);
    }
}

/// Identifies the instance of an owner's set that a connection leads to.
pub(super) fn key(owner: usize, record: &PeerRecord) -> PeerKey {
    let (slot, identity) = (Some(record.slot), record.owner);
    PeerKey { owner, slot, identity, address: record.address_id() }
}

/// Owner of the connections to the instances of these sets.
pub(super) fn owner(sets: &PeerSets) -> usize {
    ptr::from_ref(sets).addr()
}

/// Whether connections to an instance of the set are worth keeping.
pub(super) fn is_wanted(record: &PeerRecord) -> bool {
    !record.params().down
}

/// An upstream, or one of the services of an upstream, that shares the idle connections.
pub(crate) struct Member {
    pub(crate) keepalive: Rc<Keepalive>,
    /// In a worker: the owner of the connections to its instances.
    owner: Cell<usize>,
}

impl Member {
    pub(crate) fn new(keepalive: Rc<Keepalive>) -> Member {
        Member { keepalive, owner: Cell::new(SERVERS) }
    }

    /// In a worker.
    pub(crate) fn join(&self, sets: &Rc<PeerSets>, worker: Worker) {
        let owner = owner(sets);
        self.owner.set(owner);
        self.keepalive.worker.set(Some(worker));
        self.keepalive.owners.borrow_mut().insert(owner, Rc::downgrade(sets));
        let keepalive = Rc::clone(&self.keepalive);
        sets.observe(move |view| keepalive.close_departed(owner, view.records()));
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let owner = self.owner.get();
        if owner != SERVERS {
            self.keepalive.owners.borrow_mut().remove(&owner);
            self.keepalive.close_departed(owner, &[]);
        }
    }
}
