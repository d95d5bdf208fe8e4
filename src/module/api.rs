//! `consul_api`: what an operator orders over HTTP.
//!
//! A request is checked before its body is read; what it asks for is done in the worker that got it
//! ([`act`]), by way of the shared zone.

use nginx_consul_core::control::{
    Arguments, Body, MAX_BODY, Refusal, Route, Verb, check_origin, route, to_json,
};
use nginx_sys::{
    NGX_HTTP_DELETE, NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_PATCH,
    NGX_HTTP_POST, ngx_http_discard_request_body, ngx_http_finalize_request,
    ngx_http_read_client_request_body, ngx_http_request_t, ngx_int_t,
};

use crate::ffi::response;
use crate::ffi::{self, catch_panic};
use crate::services::Services;
use crate::upstreams::Upstreams;

mod request;
mod act;

use act::Answer;
use request::{body_of, path_of, who};

const FAILED: ngx_int_t = NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;
const DONE: ngx_int_t = nginx_sys::NGX_DONE as ngx_int_t;
/// `NGX_HTTP_SPECIAL_RESPONSE`.
const SPECIAL: ngx_int_t = 300;

pub(crate) extern "C" fn ngx_http_consul_api_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
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
    let (upstreams, args, who, log) = unsafe {
        let upstreams = Upstreams::of_cycle(nginx_sys::ngx_cycle);
        (upstreams, ffi::bytes(&(*r).args), who(r), (*(*r).connection).log)
    };
    let none = || Refusal::new(404, "ServiceNotFound", "no upstream follows Consul");
    let services = upstreams.and_then(Services::new).ok_or_else(none)?;
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
