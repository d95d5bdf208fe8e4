//! `consul_status`.

use std::ffi::{c_char, c_void};

use nginx_consul_core::directives::status::{StatusPage, status};
use nginx_consul_core::directives::words::duplicate;
use nginx_sys::{ngx_command_t, ngx_conf_t, ngx_http_core_loc_conf_t};

use super::args::{Parsed, finish};
use crate::ffi::{self, CONF_ERROR, catch_panic};
use crate::ready::ngx_http_consul_ready_handler;
use crate::status::{LocationOptions, ngx_http_consul_status_handler};

/// The directive: makes the status the location's content.
pub(super) extern "C" fn ngx_http_consul_status(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    catch_panic(CONF_ERROR, || {
        // SAFETY: the directive is only allowed in `location`, whose core configuration that is.
        let core = unsafe { &mut *ffi::location(cf) };
        // SAFETY: our configuration of the location; nothing else refers to it now.
        let conf = unsafe { &mut *conf.cast::<LocationOptions>() };
        // SAFETY: `cf` is that of this handler.
        let words = unsafe { ffi::args(cf) };
        finish(cf, set(core, conf, words.get(1..).unwrap_or_default()))
    })
}

fn set(core: &mut ngx_http_core_loc_conf_t, conf: &mut LocationOptions, words: &[&[u8]]) -> Parsed {
    if conf.status.is_some() || conf.ready.is_some() {
        return Err(duplicate("consul_status"));
    }
    match status(words)? {
        StatusPage::Status(metrics) => {
            core.handler = Some(ngx_http_consul_status_handler);
            conf.status = Some(metrics);
        }
        StatusPage::Ready(demand) => {
            core.handler = Some(ngx_http_consul_ready_handler);
            conf.ready = Some(demand);
        }
    }
    Ok(())
}
