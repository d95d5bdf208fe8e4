//! `consul_status ready`: whether there is data to serve from, for load balancers and probes.

use nginx_consul_core::status::ready::{Demand, Origin, Readiness};
use nginx_sys::{
    NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_OK, NGX_HTTP_SERVICE_UNAVAILABLE, ngx_http_request_t,
    ngx_int_t,
};

use crate::conf::args::{self, Parsed, text};
use crate::conf::{self, HttpConf};
use crate::ffi::response;
use crate::ffi::{self, catch_panic};

/// Reads the words of the directive that follow `ready`.
pub(crate) fn parse(words: &[&[u8]]) -> Parsed<Demand> {
    let (mut source, mut max_age, mut peers) = (None, None, None);
    for word in words {
        let parameter = text(word)?;
        let wrong =
            |what| format!("{what} parameter \"{parameter}\" in \"consul_status\" directive");
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let before = match name {
            "source" => Origin::from_name(value).map(|origin| source.replace(origin).is_some()),
            "max_age" => args::positive_time(name, value.as_bytes())
                .ok()
                .map(|age| max_age.replace(age).is_some()),
            "peers" => args::number(name, value.as_bytes(), 0)
                .ok()
                .map(|number| peers.replace(number as usize).is_some()),
            _ => None,
        };
        match before {
            Some(false) => {}
            Some(true) => return Err(wrong("duplicate")),
            None => return Err(wrong("invalid")),
        }
    }
    Ok(Demand { source: source.unwrap_or_default(), max_age, peers: peers.unwrap_or_default() })
}

pub(crate) extern "C" fn ngx_http_consul_ready_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    catch_panic(NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t, || {
        // SAFETY: nginx passes a request that is ours until it is finalized.
        unsafe {
            if let Err(rc) = response::only_read(r) {
                return rc;
            }
            let http: *const HttpConf = ffi::conf_of((*r).main_conf, ffi::module());
            let demand = conf::loc_conf(r).ready.unwrap_or_default();
            let readiness = look(&*http, demand);
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
fn look(http: &HttpConf, demand: Demand) -> Readiness {
    // SAFETY: a block of the running configuration.
    let block = |upstream: &*mut _| unsafe { conf::srv_conf(*upstream).block.as_deref() };
    Readiness::of(
        http.blocks
            .iter()
            .filter_map(block)
            .map(|block| (block.name().into_owned(), block.service.clone(), block.judge(&demand))),
    )
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
