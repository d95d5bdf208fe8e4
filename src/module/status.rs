//! `consul_status`: the status page.

use std::rc::Rc;

use nginx_consul_core::dashboard;
use nginx_consul_core::status::{Ask, Format};
use nginx_sys::{
    NGX_HTTP_BAD_REQUEST, NGX_HTTP_HEAD, NGX_HTTP_NOT_FOUND, NGX_HTTP_OK, ngx_http_request_t,
    ngx_int_t,
};

use crate::ffi::response;
use crate::ffi::{ERROR, INTERNAL_SERVER_ERROR, Request, catch_panic};
use crate::services::Services;
use crate::upstreams::Upstreams;
use options::TEXT;
use rendering::Wanted;

mod options;
mod service;
mod collect;
mod rendering;
mod send;

pub(crate) use options::LocationOptions;
pub(crate) use service::service;

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
    let format = ask.format;
    if format == Format::Html {
        return page(r);
    }
    if ask.service.as_ref().is_some_and(|service| !is_followed(r.main_conf(), service)) {
        return send::send_error(r, NGX_HTTP_NOT_FOUND, format, "no such service");
    }
    if r.method() == NGX_HTTP_HEAD {
        return response::send(r, NGX_HTTP_OK, format.content_type(), Vec::<&str>::new());
    }
    send::answer(r, Wanted::new(r, ask), format)
}

fn is_followed(upstreams: &Upstreams, service: &str) -> bool {
    Services::at(upstreams, Rc::default()).is_some_and(|services| {
        let mut numbers = services.numbers();
        numbers.any(|number| services.name(number).is_some_and(|name| name == service))
    })
}

fn page(r: Request<'_>) -> ngx_int_t {
    let page = dashboard::page();
    if !page.headers().iter().all(|(name, value)| response::add_header(r, name, value)) {
        return ERROR;
    }
    response::send(r, NGX_HTTP_OK, Format::Html.content_type(), vec![&page.body])
}

/// The `Accept` headers of a request. nginx keeps them by name only if it was built so.
fn accept(r: Request<'_>) -> String {
    r.headers("accept").map(String::from_utf8_lossy).collect::<Vec<_>>().join(",")
}
