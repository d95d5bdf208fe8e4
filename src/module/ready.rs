//! `consul_status ready`: whether every upstream has instances to serve from, for load balancers
//! and probes.

use nginx_consul_core::status::ready::{Demand, Readiness};
use nginx_sys::{NGX_HTTP_OK, NGX_HTTP_SERVICE_UNAVAILABLE, ngx_http_request_t, ngx_int_t};

use crate::ffi::response;
use crate::ffi::{INTERNAL_SERVER_ERROR, Request, catch_panic};
use crate::status::LocationOptions;
use crate::upstreams::Upstreams;

pub(crate) extern "C" fn ngx_http_consul_ready_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    catch_panic(INTERNAL_SERVER_ERROR, || {
        // SAFETY: nginx passes a request, which is the handler's until it is finalized.
        let r = unsafe { Request::new(r) };
        if let Err(rc) = r.only_read() {
            return rc;
        }
        let demand = r.loc_conf::<LocationOptions>().ready.unwrap_or_default();
        let readiness = judge(r.main_conf(), demand);
        let status = if readiness.ready { NGX_HTTP_OK } else { NGX_HTTP_SERVICE_UNAVAILABLE };
        let (kind, body) = match wants_json(r) {
            true => ("application/json", readiness.to_json()),
            false => ("text/plain; charset=utf-8", readiness.to_text()),
        };
        response::send(r, status, kind, vec![body])
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
fn wants_json(r: Request<'_>) -> bool {
    r.args().split(|&b| b == b'&').any(|argument| argument == b"format=json")
        || r.headers("accept").any(|value| {
            String::from_utf8_lossy(value).to_ascii_lowercase().contains("application/json")
        })
}
