//! `consul_status`: the status page.

use nginx_consul_core::status::{self, Ask, Format};
use nginx_sys::{
    NGX_HTTP_BAD_REQUEST, NGX_HTTP_HEAD, NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_NOT_FOUND,
    NGX_HTTP_OK, ngx_http_request_t, ngx_int_t,
};

use crate::ffi::response;
use crate::ffi::{self, ERROR, catch_panic};
use crate::upstreams::Upstreams;
use collect::Walk;

mod options;
mod service;
mod collect;
mod send;

pub(crate) use options::{LocationOptions, Metrics};
pub(crate) use service::service;

const TEXT: &str = "text/plain; charset=utf-8";

pub(crate) extern "C" fn ngx_http_consul_status_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    catch_panic(NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t, || {
        // SAFETY: nginx passes a request that is ours until it is finalized.
        unsafe {
            if let Err(rc) = response::only_read(r) {
                return rc;
            }
            match Ask::parse(ffi::bytes(&(*r).args), &accept(r)) {
                Ok(ask) => answer(r, ask),
                Err(error) => {
                    let text = vec![format!("{error}\n").into_bytes()];
                    response::send(r, NGX_HTTP_BAD_REQUEST, TEXT, text)
                }
            }
        }
    })
}

/// # Safety
///
/// `r` is a valid request in the content phase, whose body was discarded.
unsafe fn answer(r: *mut ngx_http_request_t, ask: Ask) -> ngx_int_t {
    // SAFETY: the caller's promise; the cycle is the one that the worker runs.
    unsafe {
        let Some(upstreams) = Upstreams::of_cycle(nginx_sys::ngx_cycle) else { return ERROR };
        let with_peers = LocationOptions::of(r).status.unwrap_or_default() == Metrics::Peer;
        if ask.format == Format::Html {
            return page(r);
        }
        let Some(walk) = Walk::new(upstreams, ask.service, (ask.format, with_peers)) else {
            let (kind, text) = match ask.format {
                Format::Json => ("application/json", "{\"error\":\"no such service\"}\n"),
                _ => (TEXT, "no such service\n"),
            };
            return response::send(r, NGX_HTTP_NOT_FOUND, kind, vec![text.into()]);
        };
        if (*r).method & NGX_HTTP_HEAD as usize != 0 {
            return response::send(r, NGX_HTTP_OK, ask.format.content_type(), Vec::new());
        }
        send::answer(r, walk, ask.format)
    }
}

/// # Safety
///
/// `r` is a valid request whose header was not sent.
unsafe fn page(r: *mut ngx_http_request_t) -> ngx_int_t {
    let page = status::page();
    // SAFETY: the caller's promise.
    unsafe {
        if !page.headers().iter().all(|(name, value)| response::add_header(r, name, value)) {
            return ERROR;
        }
        let body = vec![page.body.clone().into_bytes()];
        response::send(r, NGX_HTTP_OK, Format::Html.content_type(), body)
    }
}

/// The `Accept` headers of a request. nginx keeps them by name only if it was built so.
///
/// # Safety
///
/// `r` is a valid request.
unsafe fn accept(r: *mut ngx_http_request_t) -> String {
    // SAFETY: the caller's promise.
    let accepts = unsafe { ffi::headers(r, "accept") };
    accepts.map(String::from_utf8_lossy).collect::<Vec<_>>().join(",")
}
