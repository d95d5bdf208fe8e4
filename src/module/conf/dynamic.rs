//! `consul_dynamic`: makes the peers of its `upstream` the instances of a service.

use std::ptr::NonNull;

use nginx_consul_core::balance::ServerParams;
use nginx_consul_core::model::{Query, Selection, Source};
use nginx_consul_core::params::Params;
use nginx_sys::{
    NGX_HTTP_UPSTREAM_BACKUP, NGX_HTTP_UPSTREAM_CREATE, NGX_HTTP_UPSTREAM_DOWN,
    NGX_HTTP_UPSTREAM_FAIL_TIMEOUT, NGX_HTTP_UPSTREAM_MAX_CONNS, NGX_HTTP_UPSTREAM_MAX_FAILS,
    NGX_HTTP_UPSTREAM_WEIGHT, ngx_conf_t, ngx_http_complex_value_t, ngx_http_upstream_srv_conf_t,
};

use super::args::{self, Args, Parsed, text};
use super::nginx_method::method_before;
use super::settings::complex_value;
use super::{Dynamic, SrvConf};
use crate::peer::{self, servers};

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
    dynamic.nginx_method = method_before(upstream, &conf.directives, service.contains(&b'$'))?;
    if dynamic.nginx_method.is_none() {
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
    // SAFETY: as above.
    let added = unsafe { servers::add_placeholder(cf, upstream) };
    added.ok_or_else(|| "ran out of memory".into())
}

/// A service that requests name; the query is left without one.
fn by_request(
    cf: *mut ngx_conf_t,
    word: &[u8],
    query: &mut Query,
) -> Parsed<NonNull<ngx_http_complex_value_t>> {
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
    Ok(value)
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
        nginx_method: None,
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
