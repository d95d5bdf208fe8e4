//! What the threads of a watcher share.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::scheduler::Scheduler;
use crate::model::Connections;
use crate::stop::Stop;
use crate::watch::outages::Outages;
use crate::watch::sink::Sink;

pub(super) struct Shared {
    pub(super) stop: Arc<Stop>,
    pub(super) sink: Arc<dyn Sink>,
    /// `consul_connections`.
    pub(super) connections: usize,
    /// Descriptors that are for requests; `None`: the system's limits don't matter.
    pub(super) worker_connections: Option<usize>,
    pub(super) scheduler: Mutex<Scheduler>,
    /// A task is due, or a thread has stopped waiting for the next one.
    pub(super) work: Condvar,
    /// Wakes the supervisor.
    pub(super) called: Condvar,
    /// A thread has ended.
    pub(super) ended: Condvar,
    /// Of the threads that have a connection, some of which may have ended.
    pub(super) handles: Mutex<Vec<JoinHandle<()>>>,
    /// What the sink knows.
    pub(super) noted: Mutex<Connections>,
    pub(super) outages: Arc<Outages>,
}

impl Shared {
    /// Reports the connections to the sink, if they have changed.
    pub(super) fn note_connections(&self, scheduler: &Scheduler) {
        let connections = scheduler.connections();
        let mut noted = self.noted.lock();
        if *noted != connections {
            *noted = connections;
            self.sink.note_connections(connections);
        }
    }

    /// Wakes the supervisor, for example to start threads.
    pub(super) fn call_supervisor(&self, scheduler: &mut Scheduler) {
        scheduler.is_called = true;
        self.called.notify_one();
    }
}
