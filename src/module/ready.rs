//! `consul_status ready`: whether there is data to serve from, for load balancers and probes.

use std::ptr;
use std::time::Duration;

use nginx_consul_core::status::ready::{Demand, Origin, Readiness};
use nginx_sys::{
    NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_NOT_ALLOWED, NGX_HTTP_OK,
    NGX_HTTP_SERVICE_UNAVAILABLE, ngx_buf_t, ngx_chain_t, ngx_http_discard_request_body,
    ngx_http_output_filter, ngx_http_request_t, ngx_http_send_header, ngx_int_t, ngx_palloc,
    ngx_pcalloc,
};

use crate::conf::args::{self, Parsed, text};
use crate::conf::{self, HttpConf};
use crate::ffi::{self, ERROR, OK, fence, str_over};

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
            if (*r).method & (NGX_HTTP_GET | NGX_HTTP_HEAD) as usize == 0 {
                return NGX_HTTP_NOT_ALLOWED as ngx_int_t;
            }
            let rc = ngx_http_discard_request_body(r);
            if rc != OK {
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
            if wants_json(r) {
                send(r, status, b"application/json", &readiness.to_json())
            } else {
                send(r, status, b"text/plain; charset=utf-8", &readiness.to_text())
            }
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

/// # Safety
///
/// `r` is a valid request whose header was not sent; `kind` is static.
unsafe fn send(
    r: *mut ngx_http_request_t,
    status: u32,
    kind: &'static [u8],
    body: &str,
) -> ngx_int_t {
    // SAFETY: the request's pool lives until the response is sent, and so does what is taken of it.
    unsafe {
        let headers = &mut (*r).headers_out;
        headers.status = status as _;
        headers.content_length_n = body.len() as _;
        headers.content_type = str_over(kind);
        headers.content_type_len = kind.split(|&b| b == b';').next().map_or(0, <[u8]>::len);
        let rc = ngx_http_send_header(r);
        // Not `header_only`: nginx 1.30 has a 16-bit field before the request's bit fields, and
        // bindgen misplaces those by it.
        if rc == ERROR || rc > OK || (*r).method & NGX_HTTP_HEAD as usize != 0 {
            return rc;
        }
        let data = ngx_palloc((*r).pool, body.len()).cast::<u8>();
        let buf = ngx_pcalloc((*r).pool, size_of::<ngx_buf_t>()).cast::<ngx_buf_t>();
        if data.is_null() || buf.is_null() {
            return ERROR;
        }
        ptr::copy_nonoverlapping(body.as_ptr(), data, body.len());
        (*buf).pos = data;
        (*buf).last = data.add(body.len());
        (*buf).set_temporary(1);
        (*buf).set_last_buf(u32::from(ptr::eq((*r).main, r)));
        (*buf).set_last_in_chain(1);
        let mut chain = ngx_chain_t { buf, next: ptr::null_mut() };
        ngx_http_output_filter(r, &mut chain)
    }
}
