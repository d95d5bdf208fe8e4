//! A worker's timer that closes idle connections while no request comes: those of instances that
//! have left, and those that have been idle for too long.

use std::cell::RefCell;
use std::rc::Rc;

use super::pool::Keepalive;
use crate::ffi::catch_panic;
use crate::ffi::timer::Timer;

/// How often a worker with idle connections looks at its sets and at the oldest connection,
/// milliseconds: one load for each upstream.
const SWEEP_EVERY: usize = 50;

struct Sweeper {
    timer: Timer,
    /// Those with idle connections.
    watched: Vec<Rc<Keepalive>>,
}

thread_local! {
    static SWEEPER: RefCell<Option<Sweeper>> = const { RefCell::new(None) };
}

/// From here on it is swept, until it has no idle connection.
#[cold]
pub(super) fn watch(keepalive: &Rc<Keepalive>) {
    keepalive.is_watched.set(true);
    SWEEPER.with_borrow_mut(|sweeper| {
        let sweeper = sweeper.get_or_insert_with(Sweeper::new);
        sweeper.watched.push(Rc::clone(keepalive));
        sweeper.timer.start();
    });
}

/// The worker ends, and with it the connections that it has not closed.
pub(crate) fn end() {
    let Some(mut sweeper) = SWEEPER.take() else { return };
    sweeper.timer.stop();
    sweeper.watched.iter().for_each(|keepalive| keepalive.forget());
}

impl Sweeper {
    fn new() -> Sweeper {
        Sweeper { timer: Timer::new(SWEEP_EVERY, sweep), watched: Vec::new() }
    }
}

/// `false` once there is no idle connection left. After a panic over one of them it is swept again,
/// and so are the others.
fn sweep() -> bool {
    let watched =
        SWEEPER.with_borrow(|sweeper| sweeper.as_ref().map(|sweeper| sweeper.watched.clone()));
    for keepalive in watched.unwrap_or_default() {
        if !catch_panic(true, || keepalive.sweep()) {
            keepalive.is_watched.set(false);
        }
    }
    SWEEPER.with_borrow_mut(|sweeper| {
        let Some(sweeper) = sweeper else { return false };
        sweeper.watched.retain(|keepalive| keepalive.is_watched.get());
        !sweeper.watched.is_empty()
    })
}
