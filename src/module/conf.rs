//! The configuration: what the directives fill, and what is made of it when all is read.

use std::ffi::{c_char, c_void};
use std::mem::offset_of;
use std::ptr::{self, NonNull};

use nginx_consul_core::balance::ServerParams;
use nginx_consul_core::model::{Query, Selection};
use nginx_sys::{ngx_conf_t, ngx_http_complex_value_t, ngx_int_t};

use crate::ffi::panics;
use crate::ffi::{self, CONF_ERROR, CONF_OK, ERROR, OK, catch_panic, give_to_pool};
use crate::peer::{self, NginxMethod, Slot};
use crate::status::LocationOptions;
use crate::{on_demand_phase, variables};

mod args;
mod api;
mod http;
mod status;
mod state_file;
mod commands;
mod directives;
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
use http::HttpConf;
pub(crate) use keepalive::KeepaliveConf;
pub(crate) use settings::Settings;

/// `consul_dynamic` of a block.
pub(crate) struct Dynamic {
    /// What to ask, but for the datacenter.
    pub(crate) query: Query,
    /// The service's name, if it has variables; then the query has none.
    pub(crate) by_request: Option<NonNull<ngx_http_complex_value_t>>,
    /// `dc=`, in the order of use; none: the agent's own.
    pub(crate) datacenters: Vec<String>,
    pub(crate) selection: Selection,
    pub(crate) rules: ServerParams,
    /// The block has `server` lines to fall back on.
    pub(crate) has_fallback: bool,
    /// The method that stands before, and picks.
    pub(crate) nginx_method: Option<NginxMethod>,
    /// How many [`Directives::methods`] stand before.
    pub(crate) before: usize,
    /// Where the directive stands, as `file:line`.
    pub(crate) place: String,
}

/// Of `http` (its `block` stays empty) or of one `upstream`.
#[derive(Default)]
#[repr(C)]
pub(crate) struct SrvConf {
    /// What requests use; filled when the configuration was read.
    pub(crate) slot: Slot,
    pub(crate) settings: Settings,
    pub(crate) dynamic: Option<Dynamic>,
    /// `consul_keepalive`.
    pub(crate) keepalive_conf: Option<KeepaliveConf>,
    /// Those of other modules.
    pub(crate) directives: Directives,
}

// By it `peer` finds what it needs of a `srv_conf`, and knows nothing of the rest.
const _: () = assert!(offset_of!(SrvConf, slot) == 0);

/// Adds the variables, and begins to observe the directives of other modules.
pub(crate) extern "C" fn ngx_http_consul_preconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    catch_panic(ERROR, || {
        // SAFETY: nginx passes the configuration of `http`, before it is read.
        let is_done = unsafe { directives::begin(cf) && variables::add_all(cf) };
        if is_done { OK } else { ERROR }
    })
}

/// Once `http` is read and merged: what has to know all of it.
pub(crate) extern "C" fn ngx_http_consul_postconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    catch_panic(ERROR, || {
        directives::end();
        // SAFETY: `cf` is that of `http`, whose main configurations are complete; nothing else
        // refers to ours.
        let http = unsafe {
            &mut *ffi::conf_of::<HttpConf>(ffi::http_context(cf).main_conf, ffi::module())
        };
        // SAFETY: the locations are of this configuration.
        if !unsafe { api::check_locations(cf, &http.apis) } {
            return ERROR;
        }
        // SAFETY: this is the module's postconfiguration.
        unsafe { peer::install_header_filter() };
        // SAFETY: as above.
        let is_done = unsafe { on_demand_phase::install(cf, &mut http.upstreams) };
        if is_done { OK } else { ERROR }
    })
}

pub(crate) extern "C" fn ngx_http_consul_create_main_conf(cf: *mut ngx_conf_t) -> *mut c_void {
    // The first of all callbacks.
    panics::log_them();
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
            let (outer, inner) =
                (&*outer.cast::<LocationOptions>(), &mut *inner.cast::<LocationOptions>());
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
