//! `consul_api`: overrides of instances and frozen services, set over HTTP.
//!
//! A request is checked before its body is read. The worker that received it does what it asks for
//! ([`act`]), in the shared zone.

use nginx_consul_core::control::{
    Arguments, Body, MAX_BODY, Refusal, Route, Verb, check_origin, route, to_json,
};
use nginx_sys::{
    NGX_HTTP_DELETE, NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_PATCH, NGX_HTTP_POST,
    NGX_HTTP_SPECIAL_RESPONSE, ngx_http_read_client_request_body, ngx_http_request_t, ngx_int_t,
};

use crate::ffi::response;
use crate::ffi::{DONE, ERROR, INTERNAL_SERVER_ERROR, Request, catch_panic};
use crate::services::Services;
use crate::upstreams::Upstreams;

mod request;
mod act;

use act::Answer;
use request::{body_of, path_of, who};

pub(crate) extern "C" fn ngx_http_consul_api_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    catch_panic(INTERNAL_SERVER_ERROR, || {
        // SAFETY: nginx passes a request, which is the handler's until it is finalized.
        let r = unsafe { Request::new(r) };
        let route = match admit(r) {
            Ok((Verb::Write | Verb::Delete, _)) => {
                // SAFETY: the request is in its content phase. Reading the body takes it for us.
                let rc = unsafe { ngx_http_read_client_request_body(r.as_ptr(), Some(with_body)) };
                return if rc >= NGX_HTTP_SPECIAL_RESPONSE as ngx_int_t { rc } else { DONE };
            }
            Ok((_, route)) => Ok(route),
            Err(refusal) => Err(refusal),
        };
        match r.discard_body() {
            Ok(()) => send(r, route.and_then(|route| answer(r, &route, b""))),
            Err(rc) => rc,
        }
    })
}

/// Checks a request before its body is read.
fn admit(r: Request<'_>) -> Result<(Verb, Route), Refusal> {
    let verb = verb(r.method());
    if verb != Verb::Read {
        check_origin(|name| r.headers(name).next())?;
    }
    let route = route(verb, path_of(r)?)?;
    Arguments::parse(r.args())?;
    if r.content_length() > MAX_BODY as _ {
        return Err(Body::too_large());
    }
    Ok((verb, route))
}

fn verb(method: u32) -> Verb {
    match method {
        NGX_HTTP_GET | NGX_HTTP_HEAD => Verb::Read,
        NGX_HTTP_POST | NGX_HTTP_PATCH => Verb::Write,
        NGX_HTTP_DELETE => Verb::Delete,
        _ => Verb::Other,
    }
}

/// Runs once nginx has read the body.
///
/// # Safety
///
/// nginx passes the request whose body it was asked to read, which is ours.
unsafe extern "C" fn with_body(r: *mut ngx_http_request_t) {
    // SAFETY: nginx passes the request whose body it has read.
    let r = unsafe { Request::new(r) };
    let rc = catch_panic(INTERNAL_SERVER_ERROR, || {
        let body = body_of(r);
        send(r, admit(r).and_then(|(_, route)| answer(r, &route, &body?)))
    });
    // SAFETY: reading the body has taken the request for us, and this gives it back.
    unsafe { r.finalize(rc) };
}

/// Does what the request asks for.
fn answer(r: Request<'_>, route: &Route, body: &[u8]) -> Answer {
    let none = || Refusal::new(404, "ServiceNotFound", "no upstream follows Consul");
    let services = Services::new(r.main_conf::<Upstreams>()).ok_or_else(none)?;
    let (arguments, who, log) = (Arguments::parse(r.args())?, who(r), r.log());
    act::ApiRequest { services, arguments, who, log }.answer(route, body)
}

/// Sends the response.
fn send(r: Request<'_>, answer: Answer) -> ngx_int_t {
    let (status, body, allow) = match answer {
        Ok((status, body)) => (status, to_json(&body), None),
        Err(refusal) => (refusal.status, refusal.to_json(), refusal.allow),
    };
    if allow.is_some_and(|allow| !response::add_header(r, "Allow", allow)) {
        return ERROR;
    }
    response::send(r, status.into(), "application/json", vec![body])
}
