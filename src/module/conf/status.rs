//! `consul_status`.

use std::ffi::{c_char, c_void};

use nginx_consul_core::directives::status::{StatusPage, status};
use nginx_consul_core::directives::words::duplicate;
use nginx_sys::{ngx_command_t, ngx_conf_t, ngx_http_core_loc_conf_t};

use super::args::{Parsed, finish};
use crate::ffi::{CONF_ERROR, Cf, catch_panic};
use crate::ready::ngx_http_consul_ready_handler;
use crate::status::{LocationOptions, ngx_http_consul_status_handler};

/// The directive: makes the status the location's content.
pub(super) extern "C" fn ngx_http_consul_status(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    catch_panic(CONF_ERROR, || {
        // SAFETY: nginx passes these to the directive's handler, within `http`; `conf` is ours of the
        // location, and nothing else refers to it or to the core module's now.
        let (cf, core, conf) = unsafe {
            let cf = Cf::new(cf);
            (cf, &mut *cf.location(), &mut *conf.cast::<LocationOptions>())
        };
        finish(cf, set(core, conf, cf.words().get(1..).unwrap_or_default()))
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
