//! An `upstream` whose service requests name.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nginx_consul_core::named::{Asked, Place, Refusal, Template, Templates};
use nginx_consul_core::sync::Plan;
use nginx_consul_core::table::Verdict;
use nginx_sys::{
    NGX_LOG_ERR, ngx_http_complex_value, ngx_http_complex_value_t, ngx_http_request_t, ngx_log_t,
};

use super::block::Block;
use super::clock::{Interval, now};
use super::source::Source;
use super::worker::Worker;
use crate::conf::{ByRequest, Settings};
use crate::ffi::{OK, bytes, str_over};
use crate::watcher;

/// So many services of a worker's are kept before those that were dropped are looked for.
const PURGE: usize = 64;

/// The block as one worker sees it: a [`Block`] for each service that its requests have named.
pub(crate) struct NamedBlock {
    /// What each of them is made like.
    pattern: Block,
    value: NonNull<ngx_http_complex_value_t>,
    templates: Arc<Templates>,
    /// Its template's number.
    number: usize,
    plan: Arc<Plan>,
    /// `consul_first_wait`.
    pub(crate) first_wait: Duration,
    /// Of `consul_unknown_service`.
    pub(crate) status: u16,
    worker: Cell<Option<Worker>>,
    /// By name, in lower case.
    blocks: RefCell<HashMap<Box<[u8]>, Rc<Block>>>,
    /// For requests whose service can't be had.
    nobody: Rc<Block>,
    purge_at: Cell<usize>,
    /// How many requests wait for the first answer, by the service's key.
    waiting: RefCell<HashMap<u128, usize>>,
    complained: Interval,
}

/// What is known of the service that a request names.
pub(crate) enum Lookup {
    /// It is followed.
    Known(Rc<Block>),
    /// Nobody has asked for it yet.
    New(Box<Place>),
    /// It can't be had.
    Refused(Why),
}

/// Why a request's service can't be had.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(crate) enum Why {
    #[error("the name {0}")]
    Name(Refusal),
    #[error("Consul has no such service")]
    Absent,
    #[error("Consul did not answer, or there is no room for it")]
    Failed,
    #[error("there was no answer in time")]
    Late,
    #[error("too many other new services are asked for")]
    Busy,
}

impl NamedBlock {
    pub(crate) fn new(
        pattern: Block,
        by_request: &ByRequest,
        (templates, number, plan): (Arc<Templates>, usize, Arc<Plan>),
        settings: &Settings,
    ) -> NamedBlock {
        NamedBlock {
            nobody: Rc::new(pattern.for_nobody()),
            pattern,
            value: by_request.value,
            templates,
            number,
            plan,
            first_wait: settings.first_wait.unwrap_or(Duration::from_secs(1)),
            status: settings.unknown_service.unwrap_or_default().status(),
            worker: Cell::new(None),
            blocks: RefCell::default(),
            purge_at: Cell::new(PURGE),
            waiting: RefCell::default(),
            complained: Interval::default(),
        }
    }

    /// In a new worker.
    pub(crate) fn start(&self, worker: Worker) {
        self.worker.set(Some(worker));
        self.nobody.start(worker);
    }

    /// The block that each service's is made like; itself it has no peers.
    pub(crate) fn pattern(&self) -> &Block {
        &self.pattern
    }

    pub(crate) fn template(&self) -> Option<&Template> {
        self.templates.of_block(self.number)
    }

    /// The name that the request gives, in its pool.
    ///
    /// # Safety
    ///
    /// `r` is a valid request; the name lives as long as it.
    pub(crate) unsafe fn name<'a>(&self, r: *mut ngx_http_request_t) -> Option<&'a [u8]> {
        let mut name = str_over(b"");
        // SAFETY: the value was compiled for this configuration, which outlives the request.
        unsafe {
            let done = ngx_http_complex_value(r, self.value.as_ptr(), &mut name) == OK;
            done.then(|| bytes(&name))
        }
    }

    /// The block of the service that the request names, or one without peers. `None` if the name
    /// can't be told.
    ///
    /// # Safety
    ///
    /// `r` is a valid request.
    pub(super) unsafe fn block_of(&self, r: *mut ngx_http_request_t) -> Option<Rc<Block>> {
        // SAFETY: the caller's promise.
        let name = unsafe { self.name(r)? };
        let why = match self.look_up(name) {
            Lookup::Known(block) => return Some(block),
            Lookup::Refused(why) => why,
            // It has not waited, or the service was dropped at this moment.
            Lookup::New(place) if self.ask(&place) => Why::Late,
            Lookup::New(_) => Why::Busy,
        };
        // SAFETY: a request's connection has a log.
        self.complain(name, why, unsafe { (*(*r).connection).log });
        Some(Rc::clone(&self.nobody))
    }

    /// What is known of a service.
    pub(crate) fn look_up(&self, raw: &[u8]) -> Lookup {
        let (Some(worker), Some(template)) = (self.worker.get(), self.template()) else {
            return Lookup::Refused(Why::Failed);
        };
        if let Some(block) = self.held(raw, worker) {
            return Lookup::Known(block);
        }
        let name = match template.allowed.check(raw) {
            Ok(name) => name,
            Err(refusal) => return Lookup::Refused(Why::Name(refusal)),
        };
        if let Some(block) = self.held(name.as_bytes(), worker) {
            return Lookup::Known(block);
        }
        let places = template.places(&name, &self.plan);
        let Some(first) = places.first() else { return Lookup::Refused(Why::Failed) };
        let is_fixed = places.iter().all(|place| place.fixed.is_some());
        match worker.table.verdict(first.key, now().millis) {
            Some(Verdict::Absent) => Lookup::Refused(Why::Absent),
            Some(Verdict::Failed) => Lookup::Refused(Why::Failed),
            Some(Verdict::Followed) if worker.table.find(first.key).is_some() => {
                Lookup::Known(self.keep(&name, places, worker))
            }
            _ if is_fixed => Lookup::Known(self.keep(&name, places, worker)),
            _ => Lookup::New(Box::new(first.clone())),
        }
    }

    /// The block of a service, unless the service was dropped meanwhile.
    fn held(&self, name: &[u8], worker: Worker) -> Option<Rc<Block>> {
        let block = self.blocks.borrow().get(name).map(Rc::clone)?;
        if block.note_used(worker) {
            return Some(block);
        }
        self.blocks.borrow_mut().remove(name);
        None
    }

    fn keep(&self, name: &str, places: Vec<Place>, worker: Worker) -> Rc<Block> {
        let source = |place: Place| {
            let number = place.fixed.unwrap_or(usize::MAX);
            Source::new(place.key, number, place.target.query.datacenter)
        };
        let sources = places.into_iter().map(source).collect();
        let block = Rc::new(self.pattern.for_service(name, sources));
        block.start(worker);
        block.note_used(worker);
        let mut blocks = self.blocks.borrow_mut();
        if blocks.len() >= self.purge_at.get() {
            blocks.retain(|_, block| block.is_current(worker));
            self.purge_at.set((blocks.len() * 2).max(PURGE));
        }
        blocks.insert(name.as_bytes().into(), Rc::clone(&block));
        block
    }

    /// Has worker 0 find out about a service that a request waits for. `false` if too many
    /// others are asked for.
    pub(crate) fn ask(&self, place: &Place) -> bool {
        if self.waiting.borrow().contains_key(&place.key) {
            return true;
        }
        let Some(template) = self.template() else { return false };
        let until_ms = now().millis + self.first_wait.as_millis() as u64;
        let service = template.named(&place.target.query.service);
        watcher::channel().is_some_and(|channel| channel.ask(&Asked { service, until_ms }))
    }

    /// One more request waits for the service.
    pub(crate) fn begin_wait(&self, key: u128) {
        *self.waiting.borrow_mut().entry(key).or_default() += 1;
    }

    /// One of them does no more.
    pub(crate) fn end_wait(&self, key: u128) {
        let mut waiting = self.waiting.borrow_mut();
        if let Some(count) = waiting.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&key);
            }
        }
    }

    /// Whether there is an answer for a service that was asked for.
    pub(crate) fn is_answered(&self, key: u128) -> bool {
        self.worker.get().is_none_or(|w| w.table.verdict(key, now().millis).is_some())
    }

    /// Whether the service has one peer in this worker's eyes, and nobody else to ask.
    pub(crate) fn is_single(&self, name: &str) -> bool {
        self.blocks.borrow().get(name.as_bytes()).is_some_and(|block| block.is_single())
    }

    /// Says, once a second at most, that a service can't be had.
    pub(crate) fn complain(&self, name: &[u8], why: Why, log: *mut ngx_log_t) {
        if !self.complained.is_due() {
            return;
        }
        ngx::ngx_log_error!(
            NGX_LOG_ERR,
            log,
            "consul: no service \"{}\" for upstream \"{}\": {why}",
            name.escape_ascii(),
            self.pattern.name()
        );
    }
}
