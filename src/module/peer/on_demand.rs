//! An `upstream` whose service requests name.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nginx_consul_core::model::ServiceName;
use nginx_consul_core::on_demand::{Channel, Refusal, ServiceTarget, Template, Templates};
use nginx_consul_core::table::{LookupResult, Table};
use nginx_consul_core::watch::Plan;
use nginx_sys::{
    NGX_HTTP_BAD_GATEWAY, NGX_LOG_ERR, ngx_http_complex_value, ngx_http_complex_value_t,
    ngx_http_request_t, ngx_int_t, ngx_log_t,
};

use super::set::WatchedSet;
use super::upstream::Upstream;
use super::worker::{Interval, Worker, monotonic};
use crate::ffi::{OK, bytes, str_over};

/// Upstreams of dropped services are removed whenever so many more are kept.
const PURGE: usize = 64;

/// What the configuration says.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    /// The service's name, in the pool of the configuration.
    pub(crate) service: NonNull<ngx_http_complex_value_t>,
    /// `consul_first_wait`.
    pub(crate) first_wait: Duration,
    /// Response status if there is no such service, or it is not allowed.
    pub(crate) unknown_status: i16,
}

/// An `upstream` whose service requests name, as one worker sees it: an [`Upstream`] for each service
/// that they have named.
pub(crate) struct OnDemandUpstream {
    /// What each of them is made like; itself it has no peers.
    pattern: Upstream,
    options: Options,
    templates: Arc<Templates>,
    /// Its template's number.
    number: usize,
    plan: Arc<Plan>,
    worker: Cell<Option<Worker>>,
    /// By name, in lower case.
    upstreams: RefCell<HashMap<Box<[u8]>, Rc<Upstream>>>,
    /// Without peers, for requests whose service can't be had.
    nobody: Rc<Upstream>,
    complained: Interval,
}

/// A service that this worker has no upstream for yet.
pub(crate) struct New {
    /// Of its result in the lookup cache.
    key: u128,
    service: ServiceName,
    targets: Vec<ServiceTarget>,
}

impl New {
    /// The service's name.
    pub(crate) fn name(&self) -> &str {
        &self.service.name
    }

    /// Asks worker 0 to look it up. If the queue is full, the request is lost; a caller that waits
    /// asks again.
    pub(crate) fn ask(&self) {
        if let Some(channel) = Channel::get() {
            channel.ask(&self.service);
        }
    }
}

/// What is known of the service that a request names.
pub(crate) enum Lookup {
    /// It is followed.
    Followed(Rc<Upstream>),
    /// There is no result yet.
    New(New),
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
}

impl OnDemandUpstream {
    pub(crate) fn new(
        pattern: Upstream,
        options: Options,
        (templates, number, plan): (Arc<Templates>, usize, Arc<Plan>),
    ) -> OnDemandUpstream {
        OnDemandUpstream {
            nobody: Rc::new(pattern.for_nobody()),
            pattern,
            options,
            templates,
            number,
            plan,
            worker: Cell::new(None),
            upstreams: RefCell::default(),
            complained: Interval::default(),
        }
    }

    /// In a new worker.
    pub(crate) fn start(&self, worker: Worker) {
        self.worker.set(Some(worker));
        self.nobody.start(worker);
    }

    /// The upstream that each service's is made like; itself it has no peers.
    pub(crate) fn pattern(&self) -> &Upstream {
        &self.pattern
    }

    pub(crate) fn template(&self) -> Option<&Template> {
        self.templates.of_block(self.number)
    }

    /// How long a first request waits for the service.
    pub(crate) fn first_wait(&self) -> Duration {
        self.options.first_wait
    }

    /// The name that the request gives, in its pool.
    ///
    /// # Safety
    ///
    /// `r` is a valid request; the name lives as long as it.
    pub(crate) unsafe fn name<'a>(&self, r: *mut ngx_http_request_t) -> Option<&'a [u8]> {
        let mut name = str_over(b"");
        // A `map` puts the captures of its pattern in place of those of the location.
        // SAFETY: the request is valid; so many captures are, in an array that never shrinks.
        let (count, data, captures) = unsafe {
            let (count, data) = ((*r).ncaptures, (*r).captures_data);
            let captures = match count {
                0 => Vec::new(),
                _ => std::slice::from_raw_parts((*r).captures, count).to_vec(),
            };
            (count, data, captures)
        };
        // SAFETY: the value was compiled for this configuration, which outlives the request.
        let done =
            unsafe { ngx_http_complex_value(r, self.options.service.as_ptr(), &mut name) == OK };
        // SAFETY: as above.
        unsafe {
            if count != 0 {
                ptr::copy_nonoverlapping(captures.as_ptr(), (*r).captures, count);
            }
            ((*r).ncaptures, (*r).captures_data) = (count, data);
        }
        // SAFETY: nginx has put the name into the request's pool, or it is part of the configuration.
        done.then(|| unsafe { bytes(&name) })
    }

    /// The upstream of the service that the request names, or one without peers. `None` if the name
    /// can't be evaluated.
    ///
    /// # Safety
    ///
    /// `r` is a valid request.
    pub(super) unsafe fn upstream_of(&self, r: *mut ngx_http_request_t) -> Option<Rc<Upstream>> {
        // SAFETY: the caller's promise.
        let name = unsafe { self.name(r)? };
        let why = match self.look_up(name, true) {
            Lookup::Followed(upstream) => return Some(upstream),
            Lookup::Refused(why) => why,
            Lookup::New(new) => {
                // The request has not waited, or the service was dropped in this moment.
                new.ask();
                Why::Late
            }
        };
        // SAFETY: a request's connection has a log.
        self.log_refusal(name, why, unsafe { (*(*r).connection).log });
        Some(Rc::clone(&self.nobody))
    }

    /// What is known of a service. For a request that waits no longer, a datacenter that has not
    /// answered yet has no instances.
    pub(crate) fn look_up(&self, raw: &[u8], waits_no_longer: bool) -> Lookup {
        let (Some(worker), Some(template)) = (self.worker.get(), self.template()) else {
            return Lookup::Refused(Why::Failed);
        };
        if let Some(upstream) = self.held(raw, worker) {
            return Lookup::Followed(upstream);
        }
        let name = match template.allowed.check(raw) {
            Ok(name) => name,
            Err(refusal) => return Lookup::Refused(Why::Name(refusal)),
        };
        if let Some(upstream) = self.held(name.as_bytes(), worker) {
            return Lookup::Followed(upstream);
        }
        let (key, service) = (template.lookup_key(&name), template.named(&name));
        let new = New { key, service, targets: template.targets_of(&name, &self.plan) };
        match outcome(&new, worker, waits_no_longer) {
            Some(Ok(())) => Lookup::Followed(self.keep(new, worker)),
            Some(Err(why)) => Lookup::Refused(why),
            None => Lookup::New(new),
        }
    }

    /// The upstream of a service, unless the service was dropped meanwhile.
    fn held(&self, name: &[u8], worker: Worker) -> Option<Rc<Upstream>> {
        let upstream = self.upstreams.borrow().get(name).map(Rc::clone)?;
        if upstream.sets.note_used(worker) {
            return Some(upstream);
        }
        self.upstreams.borrow_mut().remove(name);
        None
    }

    fn keep(&self, new: New, worker: Worker) -> Rc<Upstream> {
        let name = new.service.name;
        let set = |place: ServiceTarget| {
            let number = place.fixed.unwrap_or(usize::MAX);
            WatchedSet::new(place.key, number, place.target.query.datacenter)
        };
        let sets = new.targets.into_iter().map(set).collect();
        let upstream = Rc::new(self.pattern.for_service(&name, sets));
        upstream.start(worker);
        upstream.sets.note_used(worker);
        let mut upstreams = self.upstreams.borrow_mut();
        if upstreams.len() % PURGE == PURGE - 1 {
            upstreams.retain(|_, upstream| upstream.sets.is_current(worker));
        }
        upstreams.insert(name.as_bytes().into(), Rc::clone(&upstream));
        upstream
    }

    /// Whether there is a result for a service that was asked for.
    pub(crate) fn is_answered(&self, new: &New) -> bool {
        self.worker.get().is_none_or(|worker| outcome(new, worker, false).is_some())
    }

    /// The response status for a request whose service can't be had; the log says why.
    pub(crate) fn refuse(&self, name: &[u8], why: Why, log: *mut ngx_log_t) -> ngx_int_t {
        self.log_refusal(name, why, log);
        match why {
            Why::Name(_) | Why::Absent => self.options.unknown_status.into(),
            Why::Failed | Why::Late => NGX_HTTP_BAD_GATEWAY as ngx_int_t,
        }
    }

    /// Whether the service has one peer, and the upstream no `server` lines, as this worker knows.
    pub(crate) fn is_single(&self, name: &str) -> bool {
        self.upstreams.borrow().get(name.as_bytes()).is_some_and(|upstream| upstream.is_single())
    }

    /// Logs, once a second at most, that a service can't be had.
    fn log_refusal(&self, name: &[u8], why: Why, log: *mut ngx_log_t) {
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

/// Whether a service can be had; `None` while that is not known.
fn outcome(new: &New, worker: Worker, waits_no_longer: bool) -> Option<Result<(), Why>> {
    if new.targets.iter().all(|place| place.fixed.is_some()) {
        return Some(Ok(()));
    }
    match worker.table.lookup_result(new.key, monotonic())? {
        LookupResult::Absent => Some(Err(Why::Absent)),
        LookupResult::Failed => Some(Err(Why::Failed)),
        LookupResult::Followed => {
            is_ready(&new.targets, worker.table, waits_no_longer).then_some(Ok(()))
        }
    }
}

/// Whether a service that is followed can be served: the first datacenter that has instances is
/// known, or none has any. One that failed to answer has none, and if the request waits no longer one
/// that has not answered yet, unless that holds for all.
fn is_ready(places: &[ServiceTarget], table: Table<'static>, waits_no_longer: bool) -> bool {
    let find = |place: &ServiceTarget| Some((place.fixed, table.find(place.key)?));
    let entries: Vec<_> = places.iter().filter_map(find).collect();
    if entries.iter().all(|(fixed, _)| fixed.is_some()) {
        return false;
    }
    let mut has_answer = !waits_no_longer;
    for (_, entry) in entries {
        match table.peer_count(entry) {
            Some(0) => has_answer = true,
            Some(_) => return true,
            None if table.failures(entry) > 0 || waits_no_longer => {}
            None => return false,
        }
    }
    has_answer
}
