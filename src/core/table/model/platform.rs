//! The platform of the model: words that loom watches, and processes that can be killed at any store.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::{AcqRel, Release};

use crate::process::ProcessId;

/// Most processes of a model; their ids are below it, and 0 is nobody's.
const PROCESSES: usize = 4;

loom::lazy_static! {
    static ref DEAD: [AtomicBool; PROCESSES] = std::array::from_fn(|_| AtomicBool::new(false));
}

loom::thread_local! {
    /// How many more stores this thread makes before it is killed.
    static STORES_LEFT: Cell<Option<usize>> = Cell::new(None);
}

/// What a killed thread unwinds with.
struct Killed;

/// The process of this number.
pub(in crate::table) fn process(number: usize) -> ProcessId {
    assert!((1..PROCESSES).contains(&number));
    ProcessId::from_raw(number as u64)
}

/// Whether it was not killed. Always the truth, and with it goes the sight of everything the
/// killed one stored: it comes from the kernel, which has taken it off its processor.
pub(in crate::table) fn is_alive(process: u64) -> bool {
    // A process of no model is this one: clear_dead_shards() asks for it.
    DEAD.get(process as usize).is_none_or(|dead| !dead.fetch_or(false, AcqRel))
}

/// Time stands still, so that the model does the same each time.
pub(in crate::table) fn monotonic_ms() -> u64 {
    1
}

pub(in crate::table) fn wait(_: &mut u32) {
    loom::thread::yield_now();
}

/// Does `work` as `process`, which is killed before the store after `stores` of them. `true` if
/// it lived to the end of the work.
pub(in crate::table) fn killed_after(
    stores: usize,
    process: ProcessId,
    work: impl FnOnce(),
) -> bool {
    STORES_LEFT.with(|left| left.set(Some(stores)));
    let end = catch_unwind(AssertUnwindSafe(work));
    STORES_LEFT.with(|left| left.set(None));
    match end {
        Ok(()) => true,
        Err(end) if end.is::<Killed>() => {
            DEAD[process.get() as usize].store(true, Release);
            false
        }
        Err(failure) => resume_unwind(failure),
    }
}

/// Whether a store of this thread still happens: none does once it was killed, not even while the
/// stack of the thread, which a killed process would not have, is unwound.
fn lives_to_store() -> bool {
    if std::thread::panicking() {
        return false;
    }
    STORES_LEFT.with(|left| match left.get() {
        None => true,
        Some(0) => resume_unwind(Box::new(Killed)),
        Some(more) => {
            left.set(Some(more - 1));
            true
        }
    })
}

pub(in crate::table) mod atomic {
    pub(in crate::table) use loom::sync::atomic::fence;
    pub(in crate::table) use std::sync::atomic::Ordering;

    use super::lives_to_store;

    /// A word of the zone.
    #[derive(Debug)]
    pub enum AtomicU64 {
        /// Every order of accesses and every value the memory model allows is tried.
        Watched(loom::sync::atomic::AtomicU64),
        /// Accesses happen in the order of the schedule: for words whose value decides nothing.
        Plain(std::sync::atomic::AtomicU64),
    }

    macro_rules! word {
        ($self:ident.$method:ident($($argument:ident),*)) => {
            match $self {
                AtomicU64::Watched(word) => word.$method($($argument),*),
                AtomicU64::Plain(word) => word.$method($($argument),*),
            }
        };
    }

    impl AtomicU64 {
        pub(crate) fn new(value: u64) -> AtomicU64 {
            AtomicU64::Plain(std::sync::atomic::AtomicU64::new(value))
        }

        pub(crate) fn watched(value: u64) -> AtomicU64 {
            AtomicU64::Watched(loom::sync::atomic::AtomicU64::new(value))
        }

        pub(crate) fn load(&self, order: Ordering) -> u64 {
            word!(self.load(order))
        }

        pub(crate) fn store(&self, value: u64, order: Ordering) {
            if lives_to_store() {
                word!(self.store(value, order));
            }
        }

        pub(crate) fn swap(&self, value: u64, order: Ordering) -> u64 {
            assert!(lives_to_store(), "only destructors run in the killed");
            word!(self.swap(value, order))
        }

        pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
            assert!(lives_to_store(), "only destructors run in the killed");
            word!(self.fetch_add(value, order))
        }

        pub(crate) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
            assert!(lives_to_store(), "only destructors run in the killed");
            word!(self.fetch_sub(value, order))
        }

        pub(crate) fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
            assert!(lives_to_store(), "only destructors run in the killed");
            word!(self.fetch_max(value, order))
        }

        pub(crate) fn compare_exchange(
            &self,
            current: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            assert!(lives_to_store(), "only destructors run in the killed");
            word!(self.compare_exchange(current, new, success, failure))
        }
    }
}
