//! `consul_api`.

use std::ffi::{c_char, c_void};

use nginx_sys::{NGX_LOG_EMERG, ngx_command_t, ngx_conf_t};

use super::args::place;
use super::http::{ApiLocation, HttpConf};
use crate::api::ngx_http_consul_api_handler;
use crate::ffi::{self, CONF_ERROR, CONF_OK, bits, catch_panic};

/// The directive: makes the API the location's content.
pub(super) extern "C" fn ngx_http_consul_api(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    catch_panic(CONF_ERROR, || {
        // SAFETY: `conf` is the HttpConf; nothing else refers to it now. The directive is only
        // allowed in `location`, whose core configuration this is.
        unsafe {
            let http = &mut *conf.cast::<HttpConf>();
            let core = ffi::location(cf);
            if http.apis.iter().any(|location| location.core == core) {
                return c"is duplicate".as_ptr().cast_mut();
            }
            if (*core).handler.is_some() {
                return c"can't be used together with another directive that makes the answer"
                    .as_ptr()
                    .cast_mut();
            }
            let name = ffi::bytes(&(*core).name);
            #[cfg(nginx_pcre)]
            let is_regex = !(*core).regex.is_null();
            #[cfg(not(nginx_pcre))]
            let is_regex = false;
            if is_regex || bits::core_loc_conf::EXACT_MATCH.get(core) || name.starts_with(b"@") {
                return c"must be in a location that is a prefix".as_ptr().cast_mut();
            }
            (*core).handler = Some(ngx_http_consul_api_handler);
            http.apis.push(ApiLocation { core, place: place(cf) });
        }
        CONF_OK
    })
}

/// Once all is read: whether the locations are still ours.
///
/// # Safety
///
/// The locations are of the configuration that is being read.
pub(super) unsafe fn check_locations(cf: *mut ngx_conf_t, locations: &[ApiLocation]) -> bool {
    let is_ours = |location: &&ApiLocation| {
        // SAFETY: the caller's promise.
        let present = unsafe { (*location.core).handler };
        present
            .is_some_and(|present| present as *const () == ngx_http_consul_api_handler as *const ())
    };
    match locations.iter().find(|location| !is_ours(location)) {
        None => true,
        Some(ApiLocation { place, .. }) => {
            ngx::ngx_log_error!(
                NGX_LOG_EMERG,
                // SAFETY: the configuration that is being read has a log.
                unsafe { (*cf).log },
                "\"consul_api\" directive can't be used together with another directive that \
                 makes the answer, in {place}"
            );
            false
        }
    }
}
