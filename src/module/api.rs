//! `consul_api`: what an operator orders over HTTP.
//!
//! A request is checked before its body is read; what it asks for is done in the worker that got it
//! ([`act`]), by way of the shared zone.

use std::ffi::{c_char, c_void};

use nginx_consul_core::control::{
    Arguments, Body, MAX_BODY, Refusal, Route, Verb, check_origin, route, to_json,
};
use nginx_sys::{
    NGX_HTTP_DELETE, NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_PATCH,
    NGX_HTTP_POST, NGX_LOG_EMERG, ngx_command_t, ngx_conf_t, ngx_http_core_loc_conf_t,
    ngx_http_discard_request_body, ngx_http_finalize_request, ngx_http_read_client_request_body,
    ngx_http_request_t, ngx_int_t,
};

use crate::conf::{self, HttpConf};
use crate::ffi::response;
use crate::ffi::{self, CONF_ERROR, CONF_OK, bits, catch_panic};
use crate::services::Services;

mod act;
mod request;

use act::Answer;
use request::{body_of, path_of, who};

const FAILED: ngx_int_t = NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;
const DONE: ngx_int_t = nginx_sys::NGX_DONE as ngx_int_t;
/// `NGX_HTTP_SPECIAL_RESPONSE`.
const SPECIAL: ngx_int_t = 300;

/// A location with the directive.
pub(crate) struct ApiLocation {
    core: *mut ngx_http_core_loc_conf_t,
    /// Where the directive stands.
    place: String,
}

/// The directive: makes the API the location's content.
pub(crate) extern "C" fn ngx_http_consul_api(
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
            http.apis.push(ApiLocation { core, place: conf::args::place(cf) });
        }
        CONF_OK
    })
}

/// Once all is read: whether the locations are still ours.
///
/// # Safety
///
/// The locations are of the configuration that is being read.
pub(crate) unsafe fn check_locations(cf: *mut ngx_conf_t, locations: &[ApiLocation]) -> bool {
    let is_ours = |location: &&ApiLocation| {
        // SAFETY: the caller's promise.
        let present = unsafe { (*location.core).handler };
        present.is_some_and(|present| present as *const () == handler())
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

/// By which the module knows its own locations.
pub(crate) fn handler() -> *const () {
    ngx_http_consul_api_handler as *const ()
}

extern "C" fn ngx_http_consul_api_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    catch_panic(FAILED, || {
        // SAFETY: nginx passes a request that is ours until it is finalized.
        unsafe {
            let route = match admit(r) {
                Ok((Verb::Write | Verb::Delete, _)) => {
                    let rc = ngx_http_read_client_request_body(r, Some(with_body));
                    return if rc >= SPECIAL { rc } else { DONE };
                }
                Ok((_, route)) => Ok(route),
                Err(refusal) => Err(refusal),
            };
            let rc = ngx_http_discard_request_body(r);
            if rc != ffi::OK {
                return rc;
            }
            send(r, route.and_then(|route| answer(r, &route, b"")))
        }
    })
}

/// Checks a request before its body is read.
///
/// # Safety
///
/// `r` is a valid request to a location with the directive.
unsafe fn admit(r: *mut ngx_http_request_t) -> Result<(Verb, Route), Refusal> {
    // SAFETY: the caller's promise.
    unsafe {
        let verb = verb((*r).method);
        if verb != Verb::Read {
            check_origin(|name| ffi::headers(r, name).next())?;
        }
        let route = route(verb, path_of(r)?)?;
        Arguments::parse(ffi::bytes(&(*r).args))?;
        if (*r).headers_in.content_length_n > MAX_BODY as _ {
            return Err(Body::too_large());
        }
        Ok((verb, route))
    }
}

fn verb(method: usize) -> Verb {
    match method as u32 {
        NGX_HTTP_GET | NGX_HTTP_HEAD => Verb::Read,
        NGX_HTTP_POST | NGX_HTTP_PATCH => Verb::Write,
        NGX_HTTP_DELETE => Verb::Delete,
        _ => Verb::Other,
    }
}

/// Once the body is there.
///
/// # Safety
///
/// nginx passes the request whose body it was asked to read, which is ours.
unsafe extern "C" fn with_body(r: *mut ngx_http_request_t) {
    let rc = catch_panic(FAILED, || {
        // SAFETY: nginx passes the request whose body it has read.
        unsafe {
            let body = body_of(r);
            send(r, admit(r).and_then(|(_, route)| answer(r, &route, &body?)))
        }
    });
    // SAFETY: as above; reading the body has taken the request for us, and this gives it back.
    unsafe { ngx_http_finalize_request(r, rc) };
}

/// Does what the request asks for.
///
/// # Safety
///
/// `r` is a valid request of the running configuration.
unsafe fn answer(r: *mut ngx_http_request_t, route: &Route, body: &[u8]) -> Answer {
    // SAFETY: the caller's promise.
    let (http, args, who, log) = unsafe {
        let http = conf::http_conf(nginx_sys::ngx_cycle);
        (http, ffi::bytes(&(*r).args), who(r), (*(*r).connection).log)
    };
    let none = || Refusal::new(404, "ServiceNotFound", "no upstream follows Consul");
    let services = http.and_then(Services::new).ok_or_else(none)?;
    let asked = act::Asked { services, arguments: Arguments::parse(args)?, who, log };
    asked.answer(route, body)
}

/// Sends the response.
///
/// # Safety
///
/// `r` is a valid request whose header was not sent.
unsafe fn send(r: *mut ngx_http_request_t, answer: Answer) -> ngx_int_t {
    let (status, body, allow) = match answer {
        Ok((status, body)) => (status, to_json(&body), None),
        Err(refusal) => (refusal.status, refusal.to_json(), refusal.allow),
    };
    // SAFETY: the caller's promise.
    unsafe {
        if allow.is_some_and(|allow| !response::add_header(r, "Allow", allow)) {
            return ffi::ERROR;
        }
        response::send(r, status.into(), "application/json", vec![body])
    }
}
