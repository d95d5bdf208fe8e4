//! Renderings of the status, which readers share: the status as one location shows it in one format
//! and selection. A reader of the same shares what is being rendered, unless the overrides or a set
//! have changed since it was begun.
//!
//! A rendering is there as long as a reader has it, and so is its text: until the last reader has
//! received it, or has left.

use std::cell::{Cell, LazyCell, OnceCell, RefCell};
use std::ops::Deref;
use std::rc::{Rc, Weak};
use std::time::Duration;

use nginx_consul_core::directives::status::Metrics;
use nginx_consul_core::status::Ask;
use nginx_sys::ngx_msec_t;

use super::collect::Walk;
use super::options::LocationOptions;
use crate::ffi::{Request, process};
use crate::upstreams::Upstreams;

/// Most texts, complete or not, that a worker has for the readers of a location in a format.
const MAX_TEXTS: usize = 8;
/// How old one may be that is sent in place of one more, milliseconds.
const MAX_AGE: ngx_msec_t = 1000;

thread_local! {
    /// Those that readers of this worker have, oldest first.
    static RENDERINGS: RefCell<Vec<Weak<Rendering>>> = const { RefCell::new(Vec::new()) };
}

/// What a reader wants.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Address of the configuration of its location.
    location: usize,
    with_peers: bool,
    ask: Ask,
}

/// What renders a status outdated when it moves.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    overrides: u64,
    generations: u64,
}

pub(super) struct Rendering {
    wanted: Wanted,
    /// `None` while it waits for its turn.
    begun: Cell<Option<Begun>>,
    /// While it is being written.
    walk: RefCell<Option<Walk>>,
    text: OnceCell<Vec<Vec<u8>>>,
}

#[derive(Clone, Copy)]
struct Begun {
    at: ngx_msec_t,
    version: Version,
}

/// The text of a rendering that is complete.
pub(super) struct Text(Rc<Rendering>);

impl Wanted {
    pub(super) fn new(r: Request<'_>, ask: Ask) -> Wanted {
        let options: &LocationOptions = r.loc_conf();
        let with_peers = options.status.unwrap_or_default() == Metrics::Peer;
        Wanted { location: std::ptr::from_ref(options).addr(), with_peers, ask }
    }
}

impl Version {
    fn now(upstreams: &Upstreams) -> Version {
        let numbers =
            upstreams.table().map(|table| (table.overrides_version(), table.generations()));
        let (overrides, generations) = numbers.unwrap_or_default();
        Version { overrides, generations }
    }
}

impl Rendering {
    /// The one for a reader that comes now.
    pub(super) fn of(wanted: Wanted, upstreams: &Upstreams) -> Rc<Rendering> {
        let same = all().filter(|other| other.wanted == wanted);
        let version = LazyCell::new(|| Version::now(upstreams));
        let may_share = |other: &Rc<Rendering>| match other.begun.get() {
            None => true,
            Some(begun) => other.is_being_written() && begun.version == *version,
        };
        if let Some(shared) = { same }.find(may_share) {
            return shared;
        }
        let new = Rc::new(Rendering {
            wanted,
            begun: Cell::default(),
            walk: RefCell::default(),
            text: OnceCell::new(),
        });
        RENDERINGS.with_borrow_mut(|all| {
            all.retain(|rendering| rendering.strong_count() != 0);
            all.push(Rc::downgrade(&new));
        });
        new
    }

    fn is_being_written(&self) -> bool {
        self.walk.borrow().is_some()
    }

    fn has_text(&self) -> bool {
        self.text.get().is_some() || self.is_being_written()
    }

    /// Begins it, unless that was done. If the worker has as many texts as it may, it is another
    /// one, a second old at most, that no change of the overrides has outdated; `None` if there is
    /// none.
    pub(super) fn begin(self: Rc<Rendering>, upstreams: &Upstreams) -> Option<Rc<Rendering>> {
        if self.begun.get().is_some() {
            return Some(self);
        }
        let Wanted { location, ask, with_peers } = &self.wanted;
        let is_alike = |other: &Rc<Rendering>| {
            other.has_text()
                && other.wanted.location == *location
                && other.wanted.ask.format == ask.format
        };
        let (at, version) = (process::current_msec(), Version::now(upstreams));
        if all().filter(is_alike).count() < MAX_TEXTS {
            self.begun.set(Some(Begun { at, version }));
            let what = (ask.format, *with_peers);
            self.walk.replace(Some(Walk::new(upstreams, ask.service.clone(), what)));
            return Some(self);
        }
        let is_recent = |begun: Begun| {
            at.wrapping_sub(begun.at) <= MAX_AGE && begun.version.overrides == version.overrides
        };
        let same = all().filter(|other| other.wanted == self.wanted && other.has_text());
        let recent = same.filter(|other| other.begun.get().is_some_and(is_recent));
        recent.min_by_key(|other| other.begun.get().map(|begun| at.wrapping_sub(begun.at)))
    }

    /// Writes for about that long. The text once it is complete, `None` before; an error if a panic
    /// has ended it.
    pub(super) fn go_on(
        self: Rc<Rendering>,
        upstreams: &Upstreams,
        time: Duration,
    ) -> Result<Option<Text>, ()> {
        if self.text.get().is_none() {
            let mut walk = self.walk.take().ok_or(())?;
            if !walk.go_on(upstreams, time) {
                self.walk.replace(Some(walk));
                return Ok(None);
            }
            self.text.get_or_init(|| walk.finish());
        }
        Ok(Some(Text(self)))
    }
}

impl Deref for Text {
    type Target = [Vec<u8>];

    fn deref(&self) -> &[Vec<u8>] {
        self.0.text.get().map_or(&[], Vec::as_slice)
    }
}

/// Those that readers have, oldest first.
fn all() -> impl Iterator<Item = Rc<Rendering>> {
    let all: Vec<_> = RENDERINGS.with_borrow(|all| all.iter().filter_map(Weak::upgrade).collect());
    all.into_iter()
}
