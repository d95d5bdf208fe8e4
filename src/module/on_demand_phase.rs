//! The first request for a service waits for Consul's answer without blocking its worker.
//!
//! A balancer can't wait: its `peer.init` needs the peers at once. So the request waits earlier, in
//! nginx's precontent phase, after the access checks.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;

use nginx_sys::{
    ngx_array_push, ngx_http_core_main_conf_t, ngx_http_core_module, ngx_http_handler_pt,
    ngx_http_phases_NGX_HTTP_PRECONTENT_PHASE, ngx_http_request_t, ngx_http_upstream_conf_t,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_module_t, ngx_msec_t,
};

use crate::api::ngx_http_consul_api_handler;
use crate::ffi::process::current_msec;
use crate::ffi::suspended::{self, Next, Work};
use crate::ffi::{AGAIN, Cf, DECLINED, INTERNAL_SERVER_ERROR, Request, catch_panic, conf_of};
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

/// Milliseconds between two checks for an answer, while one request waits.
const LOOK: ngx_msec_t = 4;

/// Milliseconds until an unanswered lookup is sent again: the process that had taken it may have
/// been killed.
const ASK_AGAIN: ngx_msec_t = 500;

thread_local! {
    /// Requests of this worker that wait.
    static WAITING: Cell<usize> = const { Cell::new(0) };
}

/// Milliseconds between two checks for an answer; longer while many requests wait.
fn look_every() -> ngx_msec_t {
    LOOK + WAITING.get() / 64
}

/// A request that waits, or has waited.
struct Waiting<'r> {
    block: &'r OnDemandUpstream,
    /// What it waits for; `None` once it is over.
    service: RefCell<Option<New>>,
    until: ngx_msec_t,
    /// When worker 0 was asked.
    asked: Cell<ngx_msec_t>,
    /// The wait has timed out.
    is_late: Cell<bool>,
}

/// Adds the phase handler, in postconfiguration, if there are upstreams whose service requests name.
/// `false` if memory is short.
pub(crate) fn install(cf: Cf<'_>, upstreams: &mut Upstreams) -> bool {
    if upstreams.on_demand.is_empty() {
        return true;
    }
    upstreams.proxies = proxies();
    // SAFETY: the core module has a main configuration; nothing else refers to it now.
    let core = unsafe {
        let list = cf.context().main_conf;
        &mut *conf_of::<ngx_http_core_main_conf_t>(list, &raw const ngx_http_core_module)
    };
    let number = ngx_http_phases_NGX_HTTP_PRECONTENT_PHASE as usize;
    let Some(precontent) = core.phases.get_mut(number) else { return false };
    // SAFETY: nginx's array of phase handlers; there is room for a new one, or null.
    unsafe {
        let handler = ngx_array_push(&mut precontent.handlers).cast::<ngx_http_handler_pt>();
        if handler.is_null() {
            return false;
        }
        handler.write(Some(ngx_http_consul_precontent_handler));
    }
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
        // SAFETY: nginx passes a request, which its handler outlives only by suspending it.
        let r = unsafe { Request::new(r) };
        let upstreams = r.main_conf::<Upstreams>();
        match upstream_of(r, upstreams) {
            Some(upstream) => {
                // SAFETY: it is of the running configuration, which outlives the request.
                let slot = unsafe { Slot::find(upstream) };
                let on_demand = slot.and_then(|slot| slot.on_demand.as_deref());
                on_demand.map_or(DECLINED, |on_demand| decide(r, on_demand, true))
            }
            // `proxy_pass` has variables too: only the content handler knows the upstream.
            None if has_content(r) => {
                let mut decided = upstreams.on_demand().map(|block| decide(r, block, false));
                decided.find(|rc| *rc != DECLINED).unwrap_or(DECLINED)
            }
            None => DECLINED,
        }
    })
}

/// The `upstream` that the request's location names without variables.
fn upstream_of(r: Request<'_>, upstreams: &Upstreams) -> Option<*mut ngx_http_upstream_srv_conf_t> {
    upstreams.proxies.iter().find_map(|&module| {
        // SAFETY: the module is one of PROXIES, whose configuration of a location begins so.
        let conf = unsafe { r.loc_conf_of::<ngx_http_upstream_conf_t>(module) };
        conf.map(|conf| conf.upstream).filter(|upstream| !upstream.is_null())
    })
}

/// Whether the location has a handler that may send the request on.
fn has_content(r: Request<'_>) -> bool {
    let own = [
        ngx_http_consul_status_handler as *const (),
        ngx_http_consul_ready_handler as *const (),
        ngx_http_consul_api_handler as *const (),
    ];
    r.location().handler.is_some_and(|handler| !own.contains(&(handler as *const ())))
}

/// Lets the request continue, wait or end. `is_certain`: the request goes to this very upstream.
fn decide<'r>(r: Request<'r>, block: &'r OnDemandUpstream, is_certain: bool) -> ngx_int_t {
    // SAFETY: the request is there; the name lives as long as its pool.
    let name = unsafe { block.name(r.as_ptr()) };
    let Some(name) = name else {
        return if is_certain { INTERNAL_SERVER_ERROR } else { DECLINED };
    };
    // SAFETY: wait() alone sets the module's context.
    let waited = unsafe { r.context::<Waiting<'r>>() };
    let is_late = waited.is_some_and(|waited| waited.is_late.get());
    let why = match block.look_up(name, is_late) {
        Lookup::Followed(_) => return DECLINED,
        Lookup::Refused(why) => why,
        Lookup::New(_) if is_late => Why::Late,
        Lookup::New(new) => {
            return wait(r, waited, block, new).map_or(INTERNAL_SERVER_ERROR, |()| AGAIN);
        }
    };
    if is_certain { block.refuse(name, why, r.log().as_ptr()) } else { DECLINED }
}

/// Suspends the request; `None` if that fails. `waited`: its wait so far.
fn wait<'r>(
    r: Request<'r>,
    waited: Option<&Waiting<'r>>,
    block: &'r OnDemandUpstream,
    service: New,
) -> Option<()> {
    let (upstream, name) = (block.pattern().name(), service.name().escape_debug());
    trace!(r.log().as_ptr(), "consul: upstream \"{upstream}\": waits for service \"{name}\"");
    service.ask();
    let now = current_msec();
    let until = waited.map_or(now + block.first_wait().as_millis() as ngx_msec_t, |w| w.until);
    r.set_context(suspended::in_phase(r, Waiting::new(block, service, until), look_every())?);
    Some(())
}

impl Work for Waiting<'_> {
    fn go_on(&self, r: Request<'_>) -> Next {
        let service = self.service.borrow();
        let Some(new) = service.as_ref() else { return Next::RunPhases };
        let now = current_msec();
        let is_late = now.wrapping_sub(self.until) as isize >= 0;
        if !is_late && !self.block.is_answered(new) {
            if now.wrapping_sub(self.asked.get()) >= ASK_AGAIN {
                new.ask();
                self.asked.set(now);
            }
            return Next::Wait(look_every());
        }
        drop(service);
        self.end();
        self.is_late.set(is_late);
        let what = if is_late { "no answer in time" } else { "there is an answer" };
        trace!(r.log().as_ptr(), "consul: the wait for a service is over, {what}");
        Next::RunPhases
    }
}

impl<'r> Waiting<'r> {
    fn new(block: &'r OnDemandUpstream, service: New, until: ngx_msec_t) -> Waiting<'r> {
        WAITING.set(WAITING.get() + 1);
        let (service, asked) = (RefCell::new(Some(service)), Cell::new(current_msec()));
        Waiting { block, service, until, asked, is_late: Cell::new(false) }
    }
}

impl Waiting<'_> {
    fn end(&self) {
        if self.service.take().is_some() {
            WAITING.set(WAITING.get() - 1);
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.end();
    }
}
