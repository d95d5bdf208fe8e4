//! The configuration: what the directives fill, and what is made of it when all is read.

use std::cell::OnceCell;
use std::ffi::{c_char, c_void};
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nginx_consul_core::balance::{Method, ServerParams};
use nginx_consul_core::model::{Query, Selection};
use nginx_consul_core::on_demand::Templates;
use nginx_consul_core::status::ready::Demand;
use nginx_consul_core::watch::Plan;
use nginx_sys::{
    ngx_conf_t, ngx_http_complex_value_t, ngx_http_upstream_rr_peers_t,
    ngx_http_upstream_srv_conf_t, ngx_module_t, ngx_shm_zone_t, ngx_str_t,
};

use crate::api::ApiLocation;
use crate::ffi::{self, CONF_ERROR, CONF_OK, HttpLocConf, HttpMainConf, catch_panic, give_to_pool};
use crate::lifecycle::state_file::StateFile;
use crate::peer::{Guard, Keepalive, OnDemandUpstream, Upstream};
use crate::status;

pub(crate) mod args;
pub(crate) mod commands;
pub(crate) mod directives;
pub(crate) mod dynamic;
mod finish;
mod nginx_method;
mod keepalive;
mod on_demand;
mod policy;
mod settings;
mod target;

pub(crate) use commands::COMMANDS;
pub(crate) use directives::Directives;
pub(crate) use keepalive::KeepaliveConf;
pub(crate) use nginx_method::Inner;
pub(crate) use on_demand::ByRequest;
pub(crate) use settings::Settings;

/// What holds for the whole of `http`.
#[derive(Default)]
pub(crate) struct HttpConf {
    /// `consul_zone`: name and size in bytes.
    pub(crate) zone: Option<(ngx_str_t, usize)>,
    /// `consul_init_timeout`.
    pub(crate) init_timeout: Option<Duration>,
    /// `consul_connections`.
    pub(crate) connections: Option<usize>,
    /// `consul_max_services`.
    pub(crate) max_services: Option<usize>,
    /// `consul_state`; `Some(None)` is `off`.
    pub(crate) state: Option<Option<StateFile>>,
    /// The zone asked for; none while no block follows Consul.
    shm_zone: Option<NonNull<ngx_shm_zone_t>>,
    /// The blocks that follow Consul.
    pub(crate) blocks: Vec<*mut ngx_http_upstream_srv_conf_t>,
    /// The blocks whose service requests name, in the order of their templates.
    pub(crate) on_demand_upstreams: Vec<*mut ngx_http_upstream_srv_conf_t>,
    /// The locations with `consul_api`.
    pub(crate) apis: Vec<ApiLocation>,
    /// The modules that may send requests to them.
    pub(crate) proxies: Vec<*const ngx_module_t>,
    /// What the watch threads do.
    pub(crate) plan: Option<Arc<Plan>>,
    /// What they do for names, if a request can name a service.
    pub(crate) templates: Option<Arc<Templates>>,
}

/// `consul_balance`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Balance {
    pub(crate) method: Method,
    /// Of `hash`: in the pool of the configuration.
    pub(crate) key: Option<NonNull<ngx_http_complex_value_t>>,
}

/// `consul_dynamic` of a block.
pub(crate) struct Dynamic {
    /// What to ask, but for the datacenter.
    pub(crate) query: Query,
    /// The service's name, if it has variables; then the query has none.
    pub(crate) by_request: Option<ByRequest>,
    /// `dc=`, in the order of use; none: the agent's own.
    pub(crate) datacenters: Vec<String>,
    pub(crate) selection: Selection,
    pub(crate) rules: ServerParams,
    /// The block has `server` lines to fall back on.
    pub(crate) has_fallback: bool,
    /// What our `init_upstream` has made of the `server` lines; null if nginx has not called it,
    /// since another method took the block away.
    pub(crate) servers: *mut ngx_http_upstream_rr_peers_t,
    /// The method that stands before, and picks.
    pub(crate) inner: Option<Inner>,
    /// How many [`Directives::methods`] stand before.
    pub(crate) before: usize,
    /// Where the directive stands, as `file:line`.
    pub(crate) place: String,
}

/// Of `http` (its `block` stays empty) or of one `upstream`.
#[derive(Default)]
pub(crate) struct SrvConf {
    pub(crate) settings: Settings,
    pub(crate) dynamic: Option<Dynamic>,
    /// `consul_keepalive`.
    pub(crate) keepalive_conf: Option<KeepaliveConf>,
    /// The idle connections, where they are kept by us.
    pub(crate) keepalive: Option<Rc<Keepalive>>,
    /// What requests use; set when the configuration is read.
    pub(crate) block: Option<Box<Upstream>>,
    /// The same of a block whose service requests name.
    pub(crate) on_demand: Option<Box<OnDemandUpstream>>,
    /// Those of other modules.
    pub(crate) directives: Directives,
    /// With another module's callback around ours.
    pub(crate) guard: OnceCell<Guard>,
}

impl SrvConf {
    /// The last directive after `consul_dynamic` that has wrapped the block's method and that nginx
    /// doesn't ship, for people.
    pub(crate) fn wrapped_by(&self) -> Option<String> {
        self.directives.wrapper(self.dynamic.as_ref()?.before)
    }
}

/// Of a `location`.
#[derive(Default)]
pub(crate) struct LocConf {
    /// `consul_status`.
    pub(crate) status: Option<status::Metrics>,
    /// `consul_status ready`.
    pub(crate) ready: Option<Demand>,
}

// SAFETY: ngx_http_consul_create_main_conf() makes it.
unsafe impl HttpMainConf for HttpConf {}

// SAFETY: create_conf() makes it.
unsafe impl HttpLocConf for LocConf {}

impl HttpConf {
    /// The state file in use.
    pub(crate) fn state_file(&self) -> Option<&StateFile> {
        self.state.as_ref()?.as_ref()
    }

    /// The blocks that follow Consul.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &Upstream> {
        // SAFETY: blocks of this configuration, which has been read.
        self.blocks.iter().filter_map(|&block| unsafe { srv_conf(block) }.block.as_deref())
    }

    /// The blocks whose service requests name.
    pub(crate) fn on_demand_upstreams(&self) -> impl Iterator<Item = &OnDemandUpstream> {
        // SAFETY: as above.
        self.on_demand_upstreams
            .iter()
            .filter_map(|&block| unsafe { srv_conf(block) }.on_demand.as_deref())
    }

    /// `consul_connections`.
    pub(crate) fn connections(&self) -> usize {
        self.connections.unwrap_or(64)
    }

    /// The zone; none while no block follows Consul.
    pub(crate) fn shm_zone(&self) -> Option<&ngx_shm_zone_t> {
        // SAFETY: the zone of this configuration, which lives as long.
        self.shm_zone.map(|zone| unsafe { zone.as_ref() })
    }
}

pub(crate) extern "C" fn ngx_http_consul_create_main_conf(cf: *mut ngx_conf_t) -> *mut c_void {
    // The first of all callbacks.
    ffi::catch_panic::log_panics();
    create_conf::<HttpConf>(cf)
}

/// A configuration of `http`, of an `upstream` or of a `location`.
pub(crate) extern "C" fn create_conf<T: Default>(cf: *mut ngx_conf_t) -> *mut c_void {
    // SAFETY: nginx passes a valid configuration, whose pool lives as long as the cycle.
    catch_panic(ptr::null_mut(), || unsafe { give_to_pool((*cf).pool, T::default()).cast() })
}

/// A handler isn't inherited, but it goes on in an `if` of its location.
pub(crate) extern "C" fn ngx_http_consul_merge_loc_conf(
    _: *mut ngx_conf_t,
    outer: *mut c_void,
    inner: *mut c_void,
) -> *mut c_char {
    catch_panic(CONF_ERROR, || {
        // SAFETY: both are what create_conf() made; nothing else refers to them
        // while nginx reads the configuration.
        unsafe {
            let (outer, inner) = (&*outer.cast::<LocConf>(), &mut *inner.cast::<LocConf>());
            inner.status = inner.status.or(outer.status);
            inner.ready = inner.ready.or(outer.ready);
        }
        CONF_OK
    })
}

/// Runs after `init_main_conf` of the upstream module, which calls every block's `init_upstream`:
/// a dynamic module comes last.
pub(crate) extern "C" fn ngx_http_consul_init_main_conf(
    cf: *mut ngx_conf_t,
    conf: *mut c_void,
) -> *mut c_char {
    catch_panic(CONF_ERROR, || {
        // SAFETY: `conf` is what ngx_http_consul_create_main_conf() made; nothing else refers to
        // it while nginx reads the configuration.
        let http = unsafe { &mut *conf.cast::<HttpConf>() };
        match finish::finish(cf, http) {
            Ok(()) => CONF_OK,
            Err(text) => {
                // It says where the directive stands; this is the end of `http`.
                // SAFETY: nginx passes a valid configuration.
                ngx::ngx_log_error!(nginx_sys::NGX_LOG_EMERG, unsafe { (*cf).log }, "{text}");
                CONF_ERROR
            }
        }
    })
}

/// The `http` configuration of a cycle; `None` if it has no `http` block.
///
/// # Safety
///
/// `cycle` is a cycle whose configuration was read and that lives as long as `'a`; nobody holds a
/// mutable reference (directive handlers have ended).
pub(crate) unsafe fn http_conf<'a>(cycle: *mut nginx_sys::ngx_cycle_t) -> Option<&'a HttpConf> {
    // SAFETY: conf_ctx has an element for every module's index; that of the http module is null
    // or its context.
    unsafe {
        let context = *(*cycle).conf_ctx.add(nginx_sys::ngx_http_module.index);
        let context = context.cast::<nginx_sys::ngx_http_conf_ctx_t>().as_ref()?;
        ffi::conf_of::<HttpConf>(context.main_conf, ffi::module()).as_ref()
    }
}

/// Our configuration of an `upstream`.
///
/// # Safety
///
/// `upstream` belongs to a configuration that lives as long as `'a`, and has a `srv_conf` (an
/// explicit `upstream` block). Mutable references are only made while the configuration is read,
/// by one thread.
pub(crate) unsafe fn srv_conf<'a>(upstream: *mut ngx_http_upstream_srv_conf_t) -> &'a SrvConf {
    // SAFETY: the caller's promise; create_conf() has filled the element.
    unsafe { &*ffi::conf_of((*upstream).srv_conf, ffi::module()) }
}
