//! Notices who has left also while no request comes, and whose time is over.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::rc::Rc;

use nginx_sys::{ngx_add_timer, ngx_cycle, ngx_event_t};

use super::{Idle, Keepalive};
use crate::ffi::fence;

/// How often a worker with idle connections looks at its sets and at the oldest connection,
/// milliseconds: one load for each block.
const LOOK_EVERY: usize = 50;

struct Lookout {
    timer: Box<ngx_event_t>,
    /// Those with idle connections.
    watched: Vec<Rc<Keepalive>>,
}

thread_local! {
    static LOOKOUT: RefCell<Option<Lookout>> = const { RefCell::new(None) };
}

/// From here on it is looked after, until it has no idle connection.
pub(super) fn watch(keepalive: &Rc<Keepalive>) {
    LOOKOUT.with_borrow_mut(|lookout| {
        let lookout = lookout.get_or_insert_with(Lookout::new);
        lookout.watched.push(Rc::clone(keepalive));
        lookout.start();
    });
}

/// The worker ends: what it has not closed by now ends with it.
pub(crate) fn end() {
    let Some(mut lookout) = LOOKOUT.take() else { return };
    lookout.stop();
    for keepalive in lookout.watched {
        *keepalive.idle.borrow_mut() = Idle::new(1);
    }
}

impl Lookout {
    fn new() -> Lookout {
        // SAFETY: all zeros are an event that is not set.
        let mut timer: Box<ngx_event_t> = Box::new(unsafe { MaybeUninit::zeroed().assume_init() });
        timer.handler = Some(look);
        // SAFETY: a worker's cycle and its log live as long as the worker.
        timer.log = unsafe { (*ngx_cycle).log };
        timer.data = (&raw mut *timer).cast();
        // An exit does not wait for it.
        timer.set_cancelable(1);
        Lookout { timer, watched: Vec::new() }
    }

    fn start(&mut self) {
        if self.timer.timer_set() == 0 {
            // SAFETY: the event stays in its box until it is deleted or the process ends.
            unsafe { ngx_add_timer(&mut *self.timer, LOOK_EVERY) };
        }
    }

    fn stop(&mut self) {
        if self.timer.timer_set() != 0 {
            // SAFETY: set by ngx_add_timer(), in this process.
            unsafe { nginx_sys::ngx_del_timer(&mut *self.timer) };
        }
    }
}

/// # Safety
///
/// nginx calls it in the event loop.
unsafe extern "C" fn look(_: *mut ngx_event_t) {
    fence((), || {
        let watched = LOOKOUT.with_borrow_mut(|lookout| {
            lookout.as_mut().map(|lookout| std::mem::take(&mut lookout.watched))
        });
        let (busy, empty): (Vec<_>, Vec<_>) =
            watched.unwrap_or_default().into_iter().partition(|keepalive| keepalive.look());
        empty.iter().for_each(|keepalive| keepalive.is_watched.set(false));
        LOOKOUT.with_borrow_mut(|lookout| {
            if let Some(lookout) = lookout {
                lookout.watched.extend(busy);
                if !lookout.watched.is_empty() {
                    lookout.start();
                }
            }
        });
    });
}
