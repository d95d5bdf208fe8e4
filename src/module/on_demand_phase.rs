//! The first request for a service waits for Consul's answer, without holding up its worker.
//!
//! A balancer can't: its `peer.init` has to know the peers at once. So the request waits before, in
//! nginx's precontent phase, where access was granted already.

use std::cell::Cell;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::{ptr, slice};

use nginx_sys::{
    NGX_HTTP_INTERNAL_SERVER_ERROR, ngx_add_timer, ngx_array_push, ngx_conf_t, ngx_current_msec,
    ngx_del_timer, ngx_event_t, ngx_handle_read_event, ngx_http_block_reading,
    ngx_http_core_loc_conf_t, ngx_http_core_main_conf_t, ngx_http_core_module,
    ngx_http_core_run_phases, ngx_http_finalize_request, ngx_http_handler_pt,
    ngx_http_phases_NGX_HTTP_PRECONTENT_PHASE, ngx_http_request_empty_handler, ngx_http_request_t,
    ngx_http_run_posted_requests, ngx_http_test_reading, ngx_http_upstream_conf_t,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_module_t, ngx_post_event, ngx_posted_events,
};

use crate::api::ngx_http_consul_api_handler;
use crate::ffi::{self, AGAIN, DECLINED, ERROR, OK, catch_panic, conf_of, give_to_pool};
use crate::peer::trace::trace;
use crate::peer::{Lookup, New, OnDemandUpstream, Slot, Why};
use crate::ready::ngx_http_consul_ready_handler;
use crate::status::ngx_http_consul_status_handler;
use crate::upstreams::Upstreams;

/// `NGX_MODULE_UNSET_INDEX`: of a module that is not in use.
const UNSET: usize = usize::MAX;

/// The modules that send requests to an `upstream`. The configuration of each, for a location,
/// begins with nginx's `ngx_http_upstream_conf_t`.
const PROXIES: [&CStr; 6] = [
    c"ngx_http_proxy_module",
    c"ngx_http_grpc_module",
    c"ngx_http_fastcgi_module",
    c"ngx_http_uwsgi_module",
    c"ngx_http_scgi_module",
    c"ngx_http_memcached_module",
];

/// How often a single request looks whether there is an answer, milliseconds.
const LOOK: usize = 4;

/// How long after a question the same one is asked again, milliseconds: whoever had it in hand may
/// have been killed.
const ASK_AGAIN: usize = 500;

thread_local! {
    /// Requests of this worker that wait.
    static WAITING: Cell<usize> = const { Cell::new(0) };
}

/// How often a waiting request looks whether there is an answer, milliseconds: the less often the
/// more of them there are.
fn look_every() -> usize {
    LOOK + WAITING.get() / 64
}

/// A request that waits, or has waited.
struct Waiting {
    request: *mut ngx_http_request_t,
    block: *const OnDemandUpstream,
    /// For whom; `None` once it is over.
    service: Option<New>,
    until: usize,
    /// When worker 0 was asked.
    asked: usize,
    /// It has waited in vain.
    is_late: bool,
    timer: ngx_event_t,
}

/// Adds the phase handler, if there are upstreams whose service requests name. `false` if memory
/// is short.
///
/// # Safety
///
/// `cf` is that of the `postconfiguration` of `http`, and `upstreams` that of its configuration.
pub(crate) unsafe fn install(cf: *mut ngx_conf_t, upstreams: &mut Upstreams) -> bool {
    if upstreams.on_demand.is_empty() {
        return true;
    }
    upstreams.proxies = proxies();
    // SAFETY: the caller's promise; the main configurations of `http` are complete.
    let handlers = unsafe {
        let core: *mut ngx_http_core_main_conf_t =
            conf_of(ffi::http_context(cf).main_conf, &raw const ngx_http_core_module);
        let phase = ngx_http_phases_NGX_HTTP_PRECONTENT_PHASE as usize;
        &raw mut (*core).phases[phase].handlers
    };
    // SAFETY: nginx's array of phase handlers.
    let place = unsafe { ngx_array_push(handlers).cast::<ngx_http_handler_pt>() };
    if place.is_null() {
        return false;
    }
    // SAFETY: the element that was just pushed.
    unsafe { place.write(Some(ngx_http_consul_precontent_handler)) };
    true
}

/// Those of [`PROXIES`] that this nginx has.
fn proxies() -> Vec<*const ngx_module_t> {
    let find = |name: &&CStr| {
        // SAFETY: the symbol, if there is one, is an ngx_module_t.
        unsafe {
            let module = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()).cast::<ngx_module_t>();
            let is_used = !module.is_null() && (*module).ctx_index != UNSET;
            is_used.then_some(module.cast_const())
        }
    };
    PROXIES.iter().filter_map(find).collect()
}

extern "C" fn ngx_http_consul_precontent_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    catch_panic(DECLINED, || {
        // SAFETY: nginx passes a request of the running configuration.
        unsafe {
            let upstreams = Upstreams::of_request(r);
            let upstream = upstream_of(r, upstreams);
            let blocks = match &upstream {
                Some(upstream) => slice::from_ref(upstream),
                // The block is named by variables too, which only the content handler knows.
                None if has_content(r) => &upstreams.on_demand[..],
                None => &[],
            };
            let named = blocks.iter().filter_map(|upstream| named_block(*upstream));
            let mut decided = named.map(|block| decide(r, block, upstream.is_some()));
            decided.find(|rc| *rc != DECLINED).unwrap_or(DECLINED)
        }
    })
}

/// The `upstream` that the request's location names, if it does without variables.
///
/// # Safety
///
/// `r` is a valid request of the configuration.
unsafe fn upstream_of(
    r: *mut ngx_http_request_t,
    upstreams: &Upstreams,
) -> Option<*mut ngx_http_upstream_srv_conf_t> {
    upstreams.proxies.iter().find_map(|&module| {
        // SAFETY: the module's configuration of the location begins with that of its upstream.
        let conf = unsafe { conf_of::<ngx_http_upstream_conf_t>((*r).loc_conf, module).as_ref()? };
        Some(conf.upstream).filter(|upstream| !upstream.is_null())
    })
}

/// Whether the location has a handler that may send the request on.
///
/// # Safety
///
/// `r` is a valid request.
unsafe fn has_content(r: *mut ngx_http_request_t) -> bool {
    // SAFETY: the core module has a configuration for each location.
    let handler = unsafe {
        let core: *mut ngx_http_core_loc_conf_t =
            conf_of((*r).loc_conf, &raw const ngx_http_core_module);
        (*core).handler
    };
    let own = [
        ngx_http_consul_status_handler as *const (),
        ngx_http_consul_ready_handler as *const (),
        ngx_http_consul_api_handler as *const (),
    ];
    handler.is_some_and(|handler| !own.contains(&(handler as *const ())))
}

/// # Safety
///
/// `upstream` is of the running configuration.
unsafe fn named_block<'a>(
    upstream: *mut ngx_http_upstream_srv_conf_t,
) -> Option<&'a OnDemandUpstream> {
    // SAFETY: the caller's promise.
    unsafe { Slot::find(upstream)?.on_demand.as_deref() }
}

/// Lets the request go on, wait or end. `is_certain`: it goes to this very block.
///
/// # Safety
///
/// `r` is a valid request; the block lives as long as it.
unsafe fn decide(
    r: *mut ngx_http_request_t,
    block: &OnDemandUpstream,
    is_certain: bool,
) -> ngx_int_t {
    const FAILED: ngx_int_t = NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;
    // SAFETY: the caller's promise.
    let (name, waited, log) = unsafe { (block.name(r), waiting(r), (*(*r).connection).log) };
    let Some(name) = name else { return if is_certain { FAILED } else { DECLINED } };
    let why = match block.look_up(name) {
        Lookup::Followed(_) => return DECLINED,
        Lookup::Refused(why) => why,
        Lookup::New(_) if waited.is_some_and(|waited| waited.is_late) => Why::Late,
        // SAFETY: as above.
        Lookup::New(new) => match unsafe { wait(r, waited, block, new) } {
            OK => return AGAIN,
            _ => return FAILED,
        },
    };
    if is_certain { block.refuse(name, why, log) } else { DECLINED }
}

/// # Safety
///
/// `r` is a valid request.
unsafe fn waiting<'a>(r: *mut ngx_http_request_t) -> Option<&'a Waiting> {
    // SAFETY: our element of the contexts is null or what wait() set for this request.
    unsafe { conf_of::<Waiting>((*r).ctx, ffi::module()).as_ref() }
}

/// Has the request wait, as `limit_req` does.
///
/// # Safety
///
/// `r` is a valid request in a phase; `waited` is how it has waited before.
unsafe fn wait(
    r: *mut ngx_http_request_t,
    waited: Option<&Waiting>,
    block: &OnDemandUpstream,
    service: New,
) -> ngx_int_t {
    // SAFETY: the value lives in the request's pool, which the request's end destroys; the timer
    // is taken out of the event loop then at the latest.
    unsafe {
        let (connection, now) = ((*r).connection, ngx_current_msec);
        let (upstream, name) = (block.pattern().name(), service.name().escape_debug());
        trace!((*connection).log, "consul: upstream \"{upstream}\": waits for service \"{name}\"");
        service.ask();
        let until = waited.map_or(now + block.first_wait().as_millis() as usize, |w| w.until);
        let new = Box::new(Waiting::new(r, block, (service, now), until));
        let Some(new) = give_to_pool((*r).pool, new).as_mut() else { return ERROR };
        let waiting = &mut **new;
        waiting.timer.handler = Some(look);
        waiting.timer.log = (*connection).log;
        waiting.timer.data = ptr::from_mut(waiting).cast();
        *(*r).ctx.add((*ffi::module()).ctx_index) = waiting.timer.data;
        let read = (*connection).read;
        if (*read).ready() != 0 {
            // The client may have gone already, which epoll doesn't say twice.
            ngx_post_event(read, &raw mut ngx_posted_events);
        } else if ngx_handle_read_event(read, 0) != OK {
            return ERROR;
        }
        (*r).read_event_handler = Some(ngx_http_test_reading);
        (*r).write_event_handler = Some(ngx_http_request_empty_handler);
        ngx_add_timer(&mut waiting.timer, look_every());
    }
    OK
}

/// The timer of a waiting request.
extern "C" fn look(event: *mut ngx_event_t) {
    catch_panic((), || {
        // SAFETY: set in wait(); the request has not ended, or the timer would be gone.
        unsafe {
            let waiting = &mut *(*event).data.cast::<Waiting>();
            let Some(service) = &waiting.service else { return };
            let now = ngx_current_msec;
            let is_late = now as isize - waiting.until as isize >= 0;
            if !is_late && !(*waiting.block).is_answered(service) {
                if now - waiting.asked >= ASK_AGAIN {
                    service.ask();
                    waiting.asked = now;
                }
                ngx_add_timer(&mut waiting.timer, look_every());
                return;
            }
            waiting.end();
            waiting.is_late = is_late;
            let r = waiting.request;
            let connection = (*r).connection;
            let what = if is_late { "no answer in time" } else { "there is an answer" };
            trace!((*connection).log, "consul: the wait for a service is over, {what}");
            if ngx_handle_read_event((*connection).read, 0) == OK {
                (*r).read_event_handler = Some(ngx_http_block_reading);
                (*r).write_event_handler = Some(ngx_http_core_run_phases);
                ngx_http_core_run_phases(r);
            } else {
                ngx_http_finalize_request(r, NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t);
            }
            ngx_http_run_posted_requests(connection);
        }
    });
}

impl Waiting {
    fn new(
        request: *mut ngx_http_request_t,
        block: *const OnDemandUpstream,
        (service, asked): (New, usize),
        until: usize,
    ) -> Waiting {
        WAITING.set(WAITING.get() + 1);
        // SAFETY: all zeros are an event that is not set.
        let timer = unsafe { MaybeUninit::zeroed().assume_init() };
        Waiting { request, block, service: Some(service), until, asked, is_late: false, timer }
    }

    fn end(&mut self) {
        if self.service.take().is_some() {
            WAITING.set(WAITING.get() - 1);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.end();
        if self.timer.timer_set() != 0 {
            // SAFETY: set by ngx_add_timer(), in this process.
            unsafe { ngx_del_timer(&mut self.timer) };
        }
    }
}
