//! Notices who has left also while no request comes, and whose time is over.

use std::cell::RefCell;
use std::rc::Rc;

use super::{Idle, Keepalive};
use crate::ffi::catch_panic;
use crate::ffi::timer::Timer;

/// How often a worker with idle connections looks at its sets and at the oldest connection,
/// milliseconds: one load for each block.
const LOOK_EVERY: usize = 50;

struct Sweeper {
    timer: Timer,
    /// Those with idle connections.
    watched: Vec<Rc<Keepalive>>,
}

thread_local! {
    static SWEEPER: RefCell<Option<Sweeper>> = const { RefCell::new(None) };
}

/// From here on it is looked after, until it has no idle connection.
pub(super) fn watch(keepalive: &Rc<Keepalive>) {
    SWEEPER.with_borrow_mut(|lookout| {
        let lookout = lookout.get_or_insert_with(Sweeper::new);
        lookout.watched.push(Rc::clone(keepalive));
        lookout.timer.start();
    });
}

/// The worker ends: what it has not closed by now ends with it.
pub(crate) fn end() {
    let Some(mut lookout) = SWEEPER.take() else { return };
    lookout.timer.stop();
    for keepalive in lookout.watched {
        *keepalive.idle.borrow_mut() = Idle::new(1);
    }
}

impl Sweeper {
    fn new() -> Sweeper {
        Sweeper { timer: Timer::new(LOOK_EVERY, look), watched: Vec::new() }
    }
}

/// `false` once there is no idle connection left. A panic over one of them does not keep it from
/// being looked after further on, nor the others.
fn look() -> bool {
    let watched =
        SWEEPER.with_borrow(|lookout| lookout.as_ref().map(|lookout| lookout.watched.clone()));
    for keepalive in watched.unwrap_or_default() {
        if !catch_panic(true, || keepalive.look()) {
            keepalive.is_watched.set(false);
        }
    }
    SWEEPER.with_borrow_mut(|lookout| {
        let Some(lookout) = lookout else { return false };
        lookout.watched.retain(|keepalive| keepalive.is_watched.get());
        !lookout.watched.is_empty()
    })
}
