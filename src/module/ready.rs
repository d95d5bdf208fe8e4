//! `consul_status ready`: whether there is data to serve from, for load balancers and probes.

use nginx_consul_core::status::ready::{Demand, Origin, Readiness};
use nginx_sys::{NGX_HTTP_OK, NGX_HTTP_SERVICE_UNAVAILABLE, ngx_http_request_t, ngx_int_t};

use crate::conf::args::{self, Parsed, text};
use crate::conf::{self, HttpConf, LocConf};
use crate::ffi::response;
use crate::ffi::{INTERNAL_SERVER_ERROR, Request, catch_panic};

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
    catch_panic(INTERNAL_SERVER_ERROR, || {
        // SAFETY: nginx passes a request, which is the handler's until it is finalized.
        let r = unsafe { Request::new(r) };
        if let Err(rc) = r.only_read() {
            return rc;
        }
        let demand = r.loc_conf::<LocConf>().ready.unwrap_or_default();
        let readiness = look(r.main_conf(), demand);
        let status = if readiness.ready { NGX_HTTP_OK } else { NGX_HTTP_SERVICE_UNAVAILABLE };
        let (kind, body) = match wants_json(r) {
            true => ("application/json", readiness.to_json()),
            false => ("text/plain; charset=utf-8", readiness.to_text()),
        };
        response::send(r, status, kind, vec![body.into()])
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
fn wants_json(r: Request<'_>) -> bool {
    r.args().split(|&b| b == b'&').any(|argument| argument == b"format=json")
        || r.headers("accept").any(|value| {
            String::from_utf8_lossy(value).to_ascii_lowercase().contains("application/json")
        })
}
