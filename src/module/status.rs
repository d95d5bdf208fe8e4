//! `consul_status`: the status page.

use std::ffi::{c_char, c_void};

use nginx_consul_core::status::{self, Ask, Format};
use nginx_sys::{
    NGX_HTTP_BAD_REQUEST, NGX_HTTP_HEAD, NGX_HTTP_NOT_FOUND, NGX_HTTP_OK, ngx_command_t,
    ngx_conf_t, ngx_http_request_t, ngx_int_t,
};

use crate::conf::args::{Parsed, duplicate};
use crate::conf::commands::finish;
use crate::conf::{self, LocConf};
use crate::ffi::response;
use crate::ffi::{self, CONF_ERROR, ERROR, INTERNAL_SERVER_ERROR, Request, catch_panic};
use crate::ready;
use collect::Walk;

mod collect;
mod send;
mod service;

pub(crate) use service::service;

/// `metrics=`: what Prometheus gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Metrics {
    /// Nothing for each peer: as many series as the configuration has services.
    Service,
    /// Also some for each peer.
    #[default]
    Peer,
}

const TEXT: &str = "text/plain; charset=utf-8";

/// The directive: makes the status the location's content.
pub(crate) extern "C" fn ngx_http_consul_status(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    catch_panic(CONF_ERROR, || {
        // SAFETY: the directive is only allowed in `location`, whose core configuration `core` is,
        // and `conf` is ours; nothing else refers to them now.
        unsafe {
            let core = ffi::location(cf);
            let conf = &mut *conf.cast::<LocConf>();
            let words = ffi::args(cf);
            if conf.status.is_some() || conf.ready.is_some() {
                return finish(cf, Err(duplicate("consul_status")));
            }
            if words.get(1).is_some_and(|word| *word == b"ready") {
                (*core).handler = Some(ready::ngx_http_consul_ready_handler);
                let demand = ready::parse(&words[2..]);
                return finish(cf, demand.map(|demand| conf.ready = Some(demand)));
            }
            (*core).handler = Some(ngx_http_consul_status_handler);
            finish(cf, parse(&words[1..]).map(|metrics| conf.status = Some(metrics)))
        }
    })
}

/// Reads the words of the directive that follow its name.
fn parse(words: &[&[u8]]) -> Parsed<Metrics> {
    let mut metrics = None;
    for word in words {
        let wrong = |what| {
            let parameter = String::from_utf8_lossy(word);
            format!("{what} parameter \"{parameter}\" in \"consul_status\" directive")
        };
        let found = match *word {
            b"metrics=service" => Metrics::Service,
            b"metrics=peer" => Metrics::Peer,
            _ => return Err(wrong("invalid")),
        };
        if metrics.replace(found).is_some() {
            return Err(wrong("duplicate"));
        }
    }
    Ok(metrics.unwrap_or_default())
}

pub(crate) extern "C" fn ngx_http_consul_status_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    catch_panic(INTERNAL_SERVER_ERROR, || {
        // SAFETY: nginx passes a request, which is the handler's until it is finalized.
        let r = unsafe { Request::new(r) };
        if let Err(rc) = r.only_read() {
            return rc;
        }
        match Ask::parse(r.args(), &accept(r)) {
            Ok(ask) => answer(r, ask),
            Err(error) => {
                let text = vec![format!("{error}\n").into_bytes()];
                response::send(r, NGX_HTTP_BAD_REQUEST, TEXT, text)
            }
        }
    })
}

/// The request's body was discarded.
fn answer(r: Request<'_>, ask: Ask) -> ngx_int_t {
    // SAFETY: the cycle that the worker runs, as long as the worker.
    let http = unsafe { conf::http_conf(nginx_sys::ngx_cycle) };
    let Some(http) = http else { return ERROR };
    let with_peers = r.loc_conf::<LocConf>().status.unwrap_or_default() == Metrics::Peer;
    if ask.format == Format::Html {
        return page(r);
    }
    let Some(walk) = Walk::new(http, ask.service, (ask.format, with_peers)) else {
        let (kind, text) = match ask.format {
            Format::Json => ("application/json", "{\"error\":\"no such service\"}\n"),
            _ => (TEXT, "no such service\n"),
        };
        return response::send(r, NGX_HTTP_NOT_FOUND, kind, vec![text.into()]);
    };
    if r.method() == NGX_HTTP_HEAD {
        return response::send(r, NGX_HTTP_OK, ask.format.content_type(), Vec::new());
    }
    send::answer(r, walk, ask.format)
}

fn page(r: Request<'_>) -> ngx_int_t {
    let page = status::page();
    if !page.headers().iter().all(|(name, value)| response::add_header(r, name, value)) {
        return ERROR;
    }
    let body = vec![page.body.clone().into_bytes()];
    response::send(r, NGX_HTTP_OK, Format::Html.content_type(), body)
}

/// The `Accept` headers of a request. nginx keeps them by name only if it was built so.
fn accept(r: Request<'_>) -> String {
    r.headers("accept").map(String::from_utf8_lossy).collect::<Vec<_>>().join(",")
}
