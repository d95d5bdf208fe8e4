//! An `upstream` that follows Consul, as one worker sees it: its sets of peers, what picks from them,
//! and its idle connections.

use std::cell::Cell;
use std::ptr;
use std::rc::Rc;

use nginx_consul_core::balance::{Method, PickContext, ServerParams, Shared, Tried, View};
use nginx_consul_core::table::{Outage, Table};
use nginx_sys::{NGX_LOG_ERR, ngx_http_complex_value, ngx_http_request_t, ngx_log_t, ngx_str_t};

use super::keepalive::{Keepalive, Member};
use super::nginx_method::Snapshots;
use super::options::Options;
use super::set::{PeerSets, WatchedSet};
use super::worker::{Interval, Worker, monotonic};
use crate::ffi::{OK, bytes, str_over};

/// An `upstream` that follows Consul. Each worker has its own after fork().
pub(crate) struct Upstream {
    /// Its part in the idle connections.
    pub(super) member: Option<Member>,
    /// What picks in place of `consul_balance`.
    pub(super) nginx_method: Option<Snapshots>,
    pub(super) sets: Rc<PeerSets>,
    pub(super) options: Options,
    name_str: ngx_str_t,
    pub(super) worker: Cell<Option<Worker>>,
    /// Failures keep no peer out, as of the last look.
    in_panic: Cell<bool>,
    looked: Interval,
    complained: Interval,
}

impl Upstream {
    pub(crate) fn new(
        name: &[u8],
        service: &str,
        sets: Box<[WatchedSet]>,
        options: Options,
        nginx_method: Option<Snapshots>,
        keepalive: Option<Rc<Keepalive>>,
    ) -> Upstream {
        let picks = (options.balance.method, options.rules);
        let sets = Rc::new(PeerSets::new((name, service), sets, picks));
        Upstream {
            member: keepalive.map(Member::new),
            nginx_method: nginx_method.map(|method| method.of(name, !options.has_fallback)),
            name_str: str_over(&sets.name),
            sets,
            options,
            worker: Cell::new(None),
            in_panic: Cell::new(false),
            looked: Interval::default(),
            complained: Interval::default(),
        }
    }

    /// One without peers, for requests that name no service: not even for its `server` lines.
    pub(super) fn for_nobody(&self) -> Upstream {
        let options = Options { has_fallback: false, ..self.options };
        self.like(options, "", Box::new([]))
    }

    /// One like it, for a service that a request has named.
    pub(super) fn for_service(&self, service: &str, sets: Box<[WatchedSet]>) -> Upstream {
        self.like(self.options, service, sets)
    }

    fn like(&self, options: Options, service: &str, sets: Box<[WatchedSet]>) -> Upstream {
        let nginx_method = self.nginx_method.as_ref().map(Snapshots::another);
        let keepalive = self.member.as_ref().map(|member| Rc::clone(&member.keepalive));
        let name = &self.sets.name;
        let upstream = Upstream::new(name, service, sets, options, nginx_method, keepalive);
        upstream.keep_labels(self.sets.keeps_labels());
        upstream
    }

    /// Variables tell of its peers.
    pub(crate) fn keep_labels(&self, keep: bool) {
        self.sets.keep_labels(keep);
    }

    /// Whether the module keeps idle connections to its instances.
    pub(crate) fn keeps_alive(&self) -> bool {
        self.member.is_some()
    }

    /// The most idle connections that a worker keeps for it.
    pub(crate) fn idle_connections(&self) -> usize {
        self.member.as_ref().map_or(0, |member| member.keepalive.connections())
    }

    /// Parameters of its peers that have none of their own.
    pub(crate) fn rules(&self) -> ServerParams {
        self.options.rules
    }

    /// Whether its method lets new peers start slowly.
    pub(crate) fn has_slow_start(&self) -> bool {
        let hashes = matches!(self.options.balance.method, Method::Hash { .. });
        self.nginx_method.is_none() && !hashes
    }

    /// The service; empty if requests name it.
    pub(crate) fn service(&self) -> &str {
        &self.sets.service
    }

    /// The sets that its peers come from.
    pub(crate) fn sets(&self) -> &[WatchedSet] {
        &self.sets.sets
    }

    /// Its name, for messages.
    pub(crate) fn name(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.sets.name)
    }

    /// Its name, for `$upstream_addr` when there is no peer.
    pub(super) fn name_ptr(&self) -> *mut ngx_str_t {
        (&raw const self.name_str).cast_mut()
    }

    /// Its method, as the configuration names it.
    pub(super) fn method_name(&self) -> &str {
        self.nginx_method.as_ref().map_or(self.options.balance.method.name(), Snapshots::name)
    }

    /// In a new worker. Takes the present sets, so that the worker has one even if the entry passes
    /// to another target before the first request.
    pub(crate) fn start(&self, worker: Worker) {
        self.worker.set(Some(worker));
        if let Some(member) = &self.member {
            member.join(&self.sets, worker);
        }
        self.sets.view(worker);
    }

    /// What the request is hashed by, in the request's pool; empty if the method hashes nothing.
    /// `None` if the value has no text.
    ///
    /// # Safety
    ///
    /// `r` is a valid request; the key lives as long as it.
    #[cold]
    #[inline(never)]
    pub(super) unsafe fn key(&self, r: *mut ngx_http_request_t) -> Option<ptr::NonNull<[u8]>> {
        let Some(value) = self.options.balance.key else { return Some(b"".as_slice().into()) };
        let mut key = str_over(b"");
        // SAFETY: the value was compiled for this configuration, which outlives the request.
        let done = unsafe { ngx_http_complex_value(r, value.as_ptr(), &mut key) == OK };
        // SAFETY: nginx has put it into the request's pool, or it is part of the configuration.
        done.then(|| unsafe { bytes(&key) }.into())
    }

    /// What peers are picked by, but for a request's key and time.
    pub(super) fn pick_context<'a>(
        &self,
        table: &'a Table<'static>,
        view: &'a View,
        tried: &'a Tried,
    ) -> PickContext<'a, 'static> {
        let alone = !self.options.has_fallback;
        PickContext { view, table, tried, now: monotonic(), key: b"", panic: false, alone }
    }

    /// Counters of the failures of all its instances.
    #[cold]
    pub(super) fn outage(&self, worker: Worker) -> Option<Outage<'static>> {
        let table = worker.table();
        Some(table.outage(self.sets.first_entry(table)?))
    }

    /// What its requests share while instances have failed.
    #[cold]
    pub(super) fn shared(&self, worker: Worker) -> Shared<'static> {
        Shared { outage: self.outage(worker), shard: worker.shard() }
    }

    /// Whether it has one peer and no `server` lines, so that failures never keep that peer out.
    pub(crate) fn is_single(&self) -> bool {
        !self.options.has_fallback && self.sets.has_one_peer()
    }

    /// Whether so many peers have failed that failures are not to count. Looked at once a second,
    /// because that takes a look at each peer.
    pub(super) fn is_in_panic(&self, context: &PickContext<'_, '_>) -> bool {
        let Some(percent) = self.options.panic else { return false };
        if self.looked.is_due() {
            self.in_panic.set(context.healthy_percent() < usize::from(percent));
        }
        self.in_panic.get()
    }

    /// Logs, once a second at most, that there is no instance to pick.
    #[cold]
    pub(super) fn log_no_peers(&self, log: *mut ngx_log_t) {
        // Without a service, the reason was logged when its name was looked up.
        if self.service().is_empty() || !self.complained.is_due() {
            return;
        }
        ngx::ngx_log_error!(
            NGX_LOG_ERR,
            log,
            "consul: no usable instance of service \"{}\" in upstream \"{}\"",
            self.service().escape_debug(),
            self.name()
        );
    }
}
