//! The configuration: reads the directives, and makes the live registry ([`crate::upstreams`]) when
//! nginx has read all of `http`. It is the top floor: only `lib.rs` imports it.
//!
//! | file | holds |
//! |---|---|
//! | `args` | a directive as its handler gets it |
//! | `row` `settings` `commands` | the table of directives, a row for each |
//! | `srv` `http` | the module's configurations of an `upstream` and of `http` |
//! | `dynamic` `keepalive` `on_demand` `state_file` `status` `api` | directives with code of their own |
//! | `observe` | directives of other modules in an `upstream` |
//! | `target` | what the watch threads ask Consul for an upstream |
//! | `check` `finish` | checks across directives, and the registry |

use std::ffi::{c_char, c_void};
use std::ptr;

use nginx_sys::{ngx_conf_t, ngx_int_t};

use crate::ffi::{self, CONF_ERROR, CONF_OK, Cf, ERROR, OK, catch_panic, give_to_pool};
use crate::peer;
use crate::status::LocationOptions;
use crate::{on_demand_phase, variables};

mod args;
mod row;
mod state_file;
mod settings;
mod keepalive;
mod srv;
mod http;
mod observe;
mod dynamic;
mod on_demand;
mod target;
mod status;
mod api;
mod commands;
mod check;
mod finish;

pub(crate) use commands::COMMANDS;
pub(crate) use srv::SrvConf;

use http::HttpConf;

/// Adds the variables, and begins to observe the directives of other modules.
pub(crate) extern "C" fn ngx_http_consul_preconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    catch_panic(ERROR, || {
        // SAFETY: nginx passes the configuration of `http`, before it is read.
        let cf = unsafe { Cf::new(cf) };
        let is_done = observe::begin(cf) && variables::add_all(cf);
        if is_done { OK } else { ERROR }
    })
}

/// Runs when `http` is read and merged: checks locations, adds the header filter and the phase
/// handler.
pub(crate) extern "C" fn ngx_http_consul_postconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    catch_panic(ERROR, || {
        observe::end();
        // SAFETY: nginx passes the configuration of `http`; nothing else refers to ours now.
        let (cf, http) = unsafe {
            let cf = Cf::new(cf);
            (cf, &mut *ffi::conf_of::<HttpConf>(cf.context().main_conf, ffi::module()))
        };
        if !api::check_locations(cf, &http.apis) {
            return ERROR;
        }
        // SAFETY: this is the module's postconfiguration.
        unsafe { peer::install_header_filter() };
        if on_demand_phase::install(cf, &mut http.upstreams) { OK } else { ERROR }
    })
}

pub(crate) extern "C" fn ngx_http_consul_create_main_conf(cf: *mut ngx_conf_t) -> *mut c_void {
    // nginx calls this before all other callbacks.
    ffi::catch_panic::log_panics();
    create_conf::<HttpConf>(cf)
}

/// A configuration of `http`, of an `upstream` or of a `location`.
pub(crate) extern "C" fn create_conf<T: Default>(cf: *mut ngx_conf_t) -> *mut c_void {
    // SAFETY: nginx passes a valid configuration, whose pool lives as long as the cycle.
    catch_panic(ptr::null_mut(), || unsafe { give_to_pool((*cf).pool, T::default()).cast() })
}

/// A content handler isn't inherited, except by an `if` inside its location.
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
        // SAFETY: nginx passes the configuration of `http`, and what create_main_conf() has made; nothing
        // else refers to that now.
        let (cf, http) = unsafe { (Cf::new(cf), &mut *conf.cast::<HttpConf>()) };
        match finish::finish(cf, http) {
            Ok(()) => CONF_OK,
            Err(text) => {
                // The text names the directive's line; `cf` is at the end of `http`.
                ngx::ngx_log_error!(nginx_sys::NGX_LOG_EMERG, cf.log().as_ptr(), "{text}");
                CONF_ERROR
            }
        }
    })
}
