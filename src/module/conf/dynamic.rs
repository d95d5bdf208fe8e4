//! `consul_dynamic`: makes the peers of its `upstream` the instances of a service.

use std::ffi::c_void;

use nginx_consul_core::directives::dynamic::Dynamic;
use nginx_consul_core::directives::words::duplicate;
use nginx_sys::{
    NGX_HTTP_UPSTREAM_BACKUP, NGX_HTTP_UPSTREAM_CREATE, NGX_HTTP_UPSTREAM_DOWN,
    NGX_HTTP_UPSTREAM_FAIL_TIMEOUT, NGX_HTTP_UPSTREAM_MAX_CONNS, NGX_HTTP_UPSTREAM_MAX_FAILS,
    NGX_HTTP_UPSTREAM_WEIGHT, ngx_http_upstream_srv_conf_t,
};

use super::args::{Args, Parsed, complex_value};
use super::observe::file_of;
use super::srv::{DynamicConf, SrvConf};
use crate::ffi::NoMemory;
use crate::peer::{self, NginxMethod, servers};

/// The directive's handler.
pub(super) fn set(args: &Args<'_>, conf: &mut SrvConf) -> Parsed {
    let name = args.words.name;
    if conf.dynamic.is_some() {
        return Err(duplicate(name));
    }
    let says = Dynamic::parse(&args.words)?;
    add(args, conf, says).map_err(|why| format!("\"{name}\" directive {why}"))
}

/// Errors go on from `"consul_dynamic" directive …`.
fn add(args: &Args<'_>, conf: &mut SrvConf, mut says: Dynamic) -> Parsed {
    let Some(mut upstream) = args.cf.upstream() else { return Err("is not allowed here".into()) };
    // SAFETY: the `upstream` that is being read; nothing else refers to its configuration now.
    let upstream = unsafe { upstream.as_mut() };
    let nginx_method = method_before(upstream, conf, says.by_request)?;
    if nginx_method.is_none() {
        upstream.flags = (NGX_HTTP_UPSTREAM_CREATE
            | NGX_HTTP_UPSTREAM_WEIGHT
            | NGX_HTTP_UPSTREAM_MAX_CONNS
            | NGX_HTTP_UPSTREAM_MAX_FAILS
            | NGX_HTTP_UPSTREAM_FAIL_TIMEOUT
            | NGX_HTTP_UPSTREAM_DOWN
            | NGX_HTTP_UPSTREAM_BACKUP) as _;
    }
    let mut by_request = None;
    if says.by_request {
        let value = complex_value(args, args.words.first())
            .map_err(|_| format!("has an invalid service \"{}\"", says.query.service))?;
        by_request = Some(value);
        says.query.service.clear();
    }
    conf.dynamic = Some(DynamicConf {
        says,
        by_request,
        has_fallback: false,
        nginx_method,
        before: conf.directives.count(),
        place: args.cf.place(),
    });
    upstream.peer.init_upstream = Some(peer::ngx_http_upstream_init_consul);
    servers::add_placeholder(args.cf, upstream).map_err(|NoMemory| NoMemory.to_string())
}

/// The method that has set the upstream's `init_upstream` before, if any.
fn method_before(
    upstream: &ngx_http_upstream_srv_conf_t,
    conf: &SrvConf,
    by_request: bool,
) -> Parsed<Option<NginxMethod>> {
    let Some(init) = upstream.peer.init_upstream else { return Ok(None) };
    let file = || file_of(init as *const c_void);
    let name = conf.directives.method_before(by_request, file)?;
    Ok(Some(NginxMethod { init, name }))
}
