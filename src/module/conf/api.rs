//! `consul_api`.

use std::ffi::{c_char, c_void};
use std::ptr;

use nginx_consul_core::directives::words::duplicate;
use nginx_sys::{NGX_LOG_EMERG, ngx_command_t, ngx_conf_t, ngx_http_core_loc_conf_t};

use super::args::{Parsed, finish};
use super::http::{ApiLocation, HttpConf};
use crate::api::ngx_http_consul_api_handler;
use crate::ffi::{CONF_ERROR, Cf, bits, bytes, catch_panic};

/// The directive: makes the API the location's content.
pub(super) extern "C" fn ngx_http_consul_api(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    catch_panic(CONF_ERROR, || {
        // SAFETY: nginx passes these to the directive's handler, within `http`; `conf` is our main one,
        // and nothing else refers to it or to the core module's of the location now.
        let (cf, core, http) = unsafe {
            let cf = Cf::new(cf);
            (cf, &mut *cf.location(), &mut *conf.cast::<HttpConf>())
        };
        finish(cf, set(core, http, cf.place()))
    })
}

fn set(core: &mut ngx_http_core_loc_conf_t, http: &mut HttpConf, place: String) -> Parsed {
    if http.apis.iter().any(|location| ptr::eq(location.core, core)) {
        return Err(duplicate("consul_api"));
    }
    let wrong = |why| Err(format!("\"consul_api\" directive {why}"));
    if core.handler.is_some() {
        return wrong("can't be used together with another directive that makes the answer");
    }
    // SAFETY: the name lies in the configuration's pool, and the rest is nginx's.
    let (name, is_exact) =
        unsafe { (bytes(&core.name), bits::core_loc_conf::EXACT_MATCH.get(core)) };
    #[cfg(nginx_pcre)]
    let is_regex = !core.regex.is_null();
    #[cfg(not(nginx_pcre))]
    let is_regex = false;
    if is_regex || is_exact || name.starts_with(b"@") {
        return wrong("must be in a location that is a prefix");
    }
    core.handler = Some(ngx_http_consul_api_handler);
    http.apis.push(ApiLocation { core, place });
    Ok(())
}

/// Checks that no later directive has replaced the handler of a location.
pub(super) fn check_locations(cf: Cf<'_>, locations: &[ApiLocation]) -> bool {
    let is_ours = |location: &&ApiLocation| {
        // SAFETY: a location of the configuration that is being read.
        let present = unsafe { (*location.core).handler };
        present
            .is_some_and(|present| present as *const () == ngx_http_consul_api_handler as *const ())
    };
    match locations.iter().find(|location| !is_ours(location)) {
        None => true,
        Some(ApiLocation { place, .. }) => {
            ngx::ngx_log_error!(
                NGX_LOG_EMERG,
                cf.log().as_ptr(),
                "\"consul_api\" directive can't be used together with another directive that \
                 makes the answer, in {place}"
            );
            false
        }
    }
}
