//! `consul_status ready`: whether there is data to serve from, for load balancers and probes.

use nginx_consul_core::status::ready::{Demand, Readiness};
use nginx_sys::{
    NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_OK, NGX_HTTP_SERVICE_UNAVAILABLE, ngx_http_request_t,
    ngx_int_t,
};

use crate::ffi::response;
use crate::ffi::{self, catch_panic};
use crate::status::LocationOptions;
use crate::upstreams::Upstreams;

pub(crate) extern "C" fn ngx_http_consul_ready_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    catch_panic(NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t, || {
        // SAFETY: nginx passes a request that is ours until it is finalized.
        unsafe {
            if let Err(rc) = response::only_read(r) {
                return rc;
            }
            let demand = LocationOptions::of(r).ready.unwrap_or_default();
            let readiness = judge(Upstreams::of_request(r), demand);
            let status = if readiness.ready { NGX_HTTP_OK } else { NGX_HTTP_SERVICE_UNAVAILABLE };
            let (kind, body) = match wants_json(r) {
                true => ("application/json", readiness.to_json()),
                false => ("text/plain; charset=utf-8", readiness.to_text()),
            };
            response::send(r, status, kind, vec![body.into()])
        }
    })
}

/// Judges the upstreams whose services the configuration names.
fn judge(upstreams: &Upstreams, demand: Demand) -> Readiness {
    let judged = upstreams.fixed().map(|upstream| {
        (upstream.name().into_owned(), upstream.service().to_owned(), upstream.judge(&demand))
    });
    Readiness::of(judged)
}

/// Whether the request asks for JSON, by an argument or a header.
///
/// # Safety
///
/// `r` is a valid request.
unsafe fn wants_json(r: *mut ngx_http_request_t) -> bool {
    // SAFETY: the caller's promise; the arguments live as long as the request.
    let (request, arguments) =
        unsafe { (ngx::http::Request::from_ngx_http_request(r), ffi::bytes(&(*r).args)) };
    arguments.split(|&b| b == b'&').any(|argument| argument == b"format=json")
        || request.headers_in_iterator().any(|(name, value)| {
            name.as_bytes().eq_ignore_ascii_case(b"accept")
                && value.to_string_lossy().to_ascii_lowercase().contains("application/json")
        })
}
