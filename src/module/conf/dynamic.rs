//! `consul_dynamic`: makes the peers of its `upstream` the instances of a service.

use std::ptr;

use nginx_consul_core::balance::ServerParams;
use nginx_consul_core::model::{Query, Selection, Source};
use nginx_consul_core::params::Params;
use nginx_sys::{
    NGX_HTTP_UPSTREAM_BACKUP, NGX_HTTP_UPSTREAM_CREATE, NGX_HTTP_UPSTREAM_DOWN,
    NGX_HTTP_UPSTREAM_FAIL_TIMEOUT, NGX_HTTP_UPSTREAM_MAX_CONNS, NGX_HTTP_UPSTREAM_MAX_FAILS,
    NGX_HTTP_UPSTREAM_WEIGHT, ngx_addr_t, ngx_array_push, ngx_conf_t, ngx_http_upstream_server_t,
    ngx_http_upstream_srv_conf_t, ngx_pcalloc, sockaddr, sockaddr_in,
};

use super::args::{self, Args, Parsed, text};
use super::nginx_method::Inner;
use super::on_demand::ByRequest;
use super::settings::complex_value;
use super::{Dynamic, SrvConf};
use crate::ffi::{bits, str_over};
use crate::peer;

/// Takes the directive.
pub(super) fn set(args: &Args<'_>, conf: &mut SrvConf) -> Parsed {
    if conf.dynamic.is_some() {
        return Err(args::duplicate(args.name));
    }
    let (mut dynamic, parameters) = parse(args)?;
    let wrong = |e| format!("\"consul_dynamic\" directive {e}");
    check(&mut dynamic.query, &parameters).map_err(wrong)?;
    add(args, conf, dynamic).map_err(wrong)
}

/// Errors go on from `"consul_dynamic" directive …`.
fn add(args: &Args<'_>, conf: &mut SrvConf, mut dynamic: Dynamic) -> Parsed {
    let (cf, service) = (args.cf, args.words[0]);
    // SAFETY: the directive is only allowed within `upstream`, whose configuration this is.
    let upstream = unsafe { upstream_of(cf) };
    dynamic.inner = Inner::of(upstream, &conf.directives, service.contains(&b'$'))?;
    if dynamic.inner.is_none() {
        upstream.flags = (NGX_HTTP_UPSTREAM_CREATE
            | NGX_HTTP_UPSTREAM_WEIGHT
            | NGX_HTTP_UPSTREAM_MAX_CONNS
            | NGX_HTTP_UPSTREAM_MAX_FAILS
            | NGX_HTTP_UPSTREAM_FAIL_TIMEOUT
            | NGX_HTTP_UPSTREAM_DOWN
            | NGX_HTTP_UPSTREAM_BACKUP) as _;
    }
    dynamic.before = conf.directives.methods.len();
    if service.contains(&b'$') {
        dynamic.by_request = Some(by_request(cf, service, &mut dynamic.query)?);
    }
    conf.dynamic = Some(dynamic);
    upstream.peer.init_upstream = Some(peer::ngx_http_upstream_init_consul);
    add_placeholder(cf, upstream)
}

/// A service that requests name; the query is left without one.
fn by_request(cf: *mut ngx_conf_t, word: &[u8], query: &mut Query) -> Parsed<ByRequest> {
    let source = query.source;
    if !matches!(source, Source::Health | Source::Catalog) {
        return Err(format!(
            "can't have a service from a variable with \"source={}\"",
            source.name()
        ));
    }
    let value = complex_value(cf, "consul_dynamic", word)
        .map_err(|_| format!("has an invalid service \"{}\"", String::from_utf8_lossy(word)))?;
    query.service.clear();
    Ok(ByRequest { value })
}

/// The `upstream` block that is being read.
///
/// # Safety
///
/// `cf` is that of a directive within `upstream`.
pub(super) unsafe fn upstream_of<'a>(cf: *mut ngx_conf_t) -> &'a mut ngx_http_upstream_srv_conf_t {
    // SAFETY: ngx_http_upstream() has put its configuration into the context of the block.
    unsafe {
        let srv_conf = crate::ffi::http_context(cf).srv_conf;
        &mut *crate::ffi::conf_of(srv_conf, &raw const nginx_sys::ngx_http_upstream_module)
    }
}

/// A block needs a `server`; this one is down and never used.
fn add_placeholder(cf: *mut ngx_conf_t, upstream: &mut ngx_http_upstream_srv_conf_t) -> Parsed {
    // SAFETY: `cf.pool` lives as long as the configuration; ngx_pcalloc() zeroes, and all zeros are
    // valid values of these C structs.
    unsafe {
        let pool = (*cf).pool;
        let server = ngx_array_push(upstream.servers).cast::<ngx_http_upstream_server_t>();
        let addr = ngx_pcalloc(pool, size_of::<ngx_addr_t>()).cast::<ngx_addr_t>();
        let sin = ngx_pcalloc(pool, size_of::<sockaddr_in>()).cast::<sockaddr_in>();
        if server.is_null() || addr.is_null() || sin.is_null() {
            return Err("ran out of memory".into());
        }
        (*sin).sin_family = libc::AF_INET as _;
        (*addr).sockaddr = sin.cast::<sockaddr>();
        (*addr).socklen = size_of::<sockaddr_in>() as _;
        (*addr).name = str_over(b"0.0.0.0:0");
        ptr::write_bytes(server, 0, 1);
        (*server).name = str_over(&PLACEHOLDER);
        (*server).addrs = addr;
        (*server).naddrs = 1;
        (*server).weight = 1;
        (*server).max_fails = 1;
        (*server).fail_timeout = 10;
        (*server).down = 1;
    }
    Ok(())
}

/// Name of the `server` that stands for the service.
static PLACEHOLDER: [u8; 6] = *b"consul";

/// The directive as it stands, and the names of its parameters.
fn parse(args: &Args<'_>) -> Parsed<(Dynamic, Vec<String>)> {
    let service = text(args.words[0])?.to_owned();
    let mut dynamic = Dynamic {
        query: Query { service, ..Query::default() },
        by_request: None,
        datacenters: Vec::new(),
        selection: Selection::default(),
        rules: ServerParams::default(),
        has_fallback: false,
        servers: ptr::null_mut(),
        inner: None,
        before: 0,
        place: args::place(args.cf),
    };
    let (mut params, mut seen) = (Params::default(), Vec::new());
    let Dynamic { query, selection, datacenters, .. } = &mut dynamic;
    args.parameters(1, |name, value| {
        seen.push(name.to_owned());
        if value.is_empty() {
            return Err(None);
        }
        let owned = || Some(value.to_owned());
        match name {
            "tag" => selection.tags.push(value.to_owned()),
            "source" => query.source = value.parse().map_err(|_| None)?,
            "filter" => query.filter = owned(),
            "dc" => *datacenters = self::datacenters(value).ok_or(None)?,
            "ns" => query.namespace = owned(),
            "partition" => query.partition = owned(),
            "near" => query.near = owned(),
            "address" => query.address = owned(),
            "status" => selection.admit = value.parse().map_err(|_| None)?,
            "consistency" => query.consistency = value.parse().map_err(|_| None)?,
            "max_fails" | "max_conns" | "fail_timeout" | "slow_start" => {
                params.set(name, value).map_err(|_| None)?;
            }
            _ => return Err(None),
        }
        Ok(())
    })?;
    dynamic.rules = dynamic.rules.of(&params);
    Ok((dynamic, seen))
}

/// What the service and the parameters mean to each other.
fn check(query: &mut Query, parameters: &[String]) -> Parsed {
    let (source, service) = (query.source, &query.service);
    if service.is_empty() {
        return Err("has an empty service name".into());
    }
    if service.contains('=') {
        return Err(format!("needs a service name before \"{service}\""));
    }
    let senseless = senseless_with(source);
    if let Some(name) = parameters.iter().find(|name| senseless.contains(&name.as_str())) {
        return Err(format!("can't have \"{name}\" with \"source={}\"", source.name()));
    }
    if source == Source::Kv {
        query.service = query.service.trim_matches('/').to_owned();
        if query.service.is_empty() {
            return Err("needs a prefix of keys".into());
        }
    }
    Ok(())
}

/// Names separated by commas, none twice.
fn datacenters(value: &str) -> Option<Vec<String>> {
    let names: Vec<String> = value.split(',').map(str::to_owned).collect();
    let is_new = |(at, name): (usize, &String)| !name.is_empty() && !names[..at].contains(name);
    names.iter().enumerate().all(is_new).then_some(names)
}

/// Parameters that mean nothing to a source.
fn senseless_with(source: Source) -> &'static [&'static str] {
    match source {
        Source::Health => &[],
        Source::Catalog => &["status"],
        Source::Kv => &["tag", "status", "filter", "near", "address"],
        Source::Query => &["filter"],
    }
}

/// Takes the placeholder out again if the block has a `server` of the user's: a single one is
/// treated otherwise by nginx than one of two.
pub(crate) fn drop_placeholder(upstream: &mut ngx_http_upstream_srv_conf_t) {
    // SAFETY: `servers` is the block's array of servers, which nobody else uses now.
    unsafe {
        let servers = &mut *upstream.servers;
        let list = servers.as_slice_mut::<ngx_http_upstream_server_t>();
        let ours = |s: &ngx_http_upstream_server_t| s.name.data == PLACEHOLDER.as_ptr().cast_mut();
        if !list.iter().any(|s| !ours(s) && !bits::upstream_server::BACKUP.get(s)) {
            return;
        }
        if let Some(at) = list.iter().position(ours) {
            list[at..].rotate_left(1);
            servers.nelts -= 1;
        }
    }
}

/// Whether the block has a `server` of the user's that can be used.
pub(crate) fn has_fallback(upstream: &ngx_http_upstream_srv_conf_t) -> bool {
    // SAFETY: `servers` is the block's array of servers.
    let servers = unsafe { crate::ffi::elements::<ngx_http_upstream_server_t>(upstream.servers) };
    servers.iter().any(|s| s.down == 0)
}
