//! `consul_status ready`: whether there is data to serve from, for load balancers and probes.

use std::time::Duration;

use nginx_consul_core::status::ready::{Demand, Origin, Readiness};
use nginx_sys::{
    NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_OK, NGX_HTTP_SERVICE_UNAVAILABLE, ngx_http_request_t,
    ngx_int_t,
};

use crate::conf::args::{self, Parsed, text};
use crate::conf::{self, HttpConf};
use crate::ffi::{self, fence};
use crate::response;

/// Reads the words of the directive that follow `ready`.
pub(crate) fn parse(words: &[&[u8]]) -> Parsed<Demand> {
    let (mut source, mut max_age, mut peers) = (None, None, None);
    for word in words {
        let parameter = text(word)?;
        let wrong =
            |what| format!("{what} parameter \"{parameter}\" in \"consul_status\" directive");
        let invalid = |_| wrong("invalid");
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let is_first = match name {
            "source" => {
                let origin = Origin::from_name(value).ok_or_else(|| wrong("invalid"))?;
                source.replace(origin).is_none()
            }
            "max_age" => {
                let age: Duration = args::positive_time(name, value.as_bytes()).map_err(invalid)?;
                max_age.replace(age).is_none()
            }
            "peers" => {
                let number = args::number(name, value.as_bytes(), 0).map_err(invalid)?;
                peers.replace(number as usize).is_none()
            }
            _ => return Err(wrong("invalid")),
        };
        if !is_first {
            return Err(wrong("duplicate"));
        }
    }
    Ok(Demand { source: source.unwrap_or_default(), max_age, peers: peers.unwrap_or_default() })
}

pub(crate) extern "C" fn ngx_http_consul_ready_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    fence(NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t, || {
        // SAFETY: nginx passes a request that is ours until it is finalized.
        unsafe {
            if let Err(rc) = response::only_read(r) {
                return rc;
            }
            let http: *const HttpConf =
                ffi::conf_of((*r).main_conf, &raw const crate::ngx_http_consul_module);
            let demand = conf::loc_conf(r).ready.unwrap_or_default();
            let readiness = look(&*http, demand);
            let status = match readiness.is_ready() {
                true => NGX_HTTP_OK,
                false => NGX_HTTP_SERVICE_UNAVAILABLE,
            };
            let (kind, body) = match wants_json(r) {
                true => ("application/json", readiness.to_json()),
                false => ("text/plain; charset=utf-8", readiness.to_text()),
            };
            response::send(r, status, kind, vec![body.into()])
        }
    })
}

/// Judges the upstreams whose services the configuration names.
fn look(http: &HttpConf, demand: Demand) -> Readiness {
    let mut readiness = Readiness::default();
    for &upstream in &http.blocks {
        // SAFETY: a block of the running configuration.
        let Some(block) = (unsafe { conf::srv_conf(upstream).block.as_deref() }) else { continue };
        readiness.upstreams += 1;
        if let Err(lack) = block.judge(&demand) {
            readiness.waiting.push((block.name().into_owned(), block.service.clone(), lack));
        }
    }
    readiness
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
