//! `consul_dynamic`: makes the peers of its `upstream` the instances of a service.

use std::ptr;

use nginx_consul_core::balance::Rules;
use nginx_consul_core::model::{Query, Selection, Source};
use nginx_sys::{
    NGX_HTTP_UPSTREAM_BACKUP, NGX_HTTP_UPSTREAM_CREATE, NGX_HTTP_UPSTREAM_DOWN,
    NGX_HTTP_UPSTREAM_FAIL_TIMEOUT, NGX_HTTP_UPSTREAM_MAX_CONNS, NGX_HTTP_UPSTREAM_MAX_FAILS,
    NGX_HTTP_UPSTREAM_WEIGHT, ngx_addr_t, ngx_array_push, ngx_conf_t, ngx_http_upstream_server_t,
    ngx_http_upstream_srv_conf_t, ngx_pcalloc, sockaddr, sockaddr_in,
};

use super::args::{self, Args, Parsed, text};
use super::inner::Inner;
use super::named::ByRequest;
use super::settings::complex_value;
use super::{Dynamic, SrvConf};
use crate::ffi::{bytes, str_over};
use crate::peer;

/// Takes the directive.
pub(super) fn set(args: &Args<'_>, conf: &mut SrvConf) -> Parsed {
    add(args, conf).map_err(|e| format!("\"consul_dynamic\" directive {e}"))
}

/// Errors go on from `"consul_dynamic" directive …`.
fn add(args: &Args<'_>, conf: &mut SrvConf) -> Parsed {
    let (cf, service) = (args.cf, args.words[0]);
    if conf.dynamic.is_some() {
        return Err("is duplicate".into());
    }
    // SAFETY: the directive is only allowed within `upstream`, whose configuration this is.
    let upstream = unsafe { upstream_of(cf) };
    let (file, line) = position(cf);
    let inner = Inner::of(upstream, &conf.directives, service.contains(&b'$'))?;
    if inner.is_none() {
        upstream.flags = (NGX_HTTP_UPSTREAM_CREATE
            | NGX_HTTP_UPSTREAM_WEIGHT
            | NGX_HTTP_UPSTREAM_MAX_CONNS
            | NGX_HTTP_UPSTREAM_MAX_FAILS
            | NGX_HTTP_UPSTREAM_FAIL_TIMEOUT
            | NGX_HTTP_UPSTREAM_DOWN
            | NGX_HTTP_UPSTREAM_BACKUP) as _;
    }
    let before = conf.directives.methods.len();
    let mut dynamic = Dynamic { file, line, inner, before, ..parse(args.words)? };
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

fn parse(words: &[&[u8]]) -> Parsed<Dynamic> {
    let service = text(words[0])?;
    if service.is_empty() {
        return Err("has an empty service name".into());
    }
    if service.contains('=') {
        return Err(format!("needs a service name before \"{service}\""));
    }
    let mut dynamic = Dynamic {
        query: Query { service: service.to_owned(), ..Query::default() },
        by_request: None,
        datacenters: Vec::new(),
        selection: Selection::default(),
        rules: Rules::default(),
        has_fallback: false,
        servers: std::ptr::null_mut(),
        inner: None,
        before: 0,
        file: String::new(),
        line: 0,
    };
    let mut seen = Vec::new();
    for word in &words[1..] {
        let parameter = text(word)?;
        let Some((name, value)) = parameter.split_once('=') else {
            return Err(format!("has an unknown parameter \"{parameter}\""));
        };
        if name != "tag" && seen.contains(&name) {
            return Err(format!("has a duplicate parameter \"{name}\""));
        }
        seen.push(name);
        set_parameter(name, value, &mut dynamic)?;
    }
    let source = dynamic.query.source;
    let senseless = senseless_with(source);
    if let Some(name) = seen.iter().find(|name| senseless.contains(name)) {
        return Err(format!("can't have \"{name}\" with \"source={}\"", source.name()));
    }
    if source == Source::Kv {
        let prefix = dynamic.query.service.trim_matches('/');
        if prefix.is_empty() {
            return Err("needs a prefix of keys".into());
        }
        dynamic.query.service = prefix.to_owned();
    }
    Ok(dynamic)
}

fn set_parameter(name: &str, value: &str, dynamic: &mut Dynamic) -> Parsed {
    let Dynamic { query, datacenters, selection, rules, .. } = dynamic;
    if value.is_empty() {
        return Err(format!("has an empty value of \"{name}\""));
    }
    let owned = || Some(value.to_owned());
    let invalid = || format!("has an invalid value \"{value}\" of \"{name}\"");
    let number = || args::number("", value.as_bytes(), 0).map_err(|_| invalid());
    let time = || args::time("", value.as_bytes()).map_err(|_| invalid());
    match name {
        "tag" => selection.tags.push(value.to_owned()),
        "source" => query.source = value.parse().map_err(|_| invalid())?,
        "filter" => query.filter = owned(),
        "dc" => *datacenters = self::datacenters(value).ok_or_else(invalid)?,
        "ns" => query.namespace = owned(),
        "partition" => query.partition = owned(),
        "near" => query.near = owned(),
        "address" => query.address = owned(),
        "status" => selection.admit = value.parse().map_err(|_| invalid())?,
        "consistency" => query.consistency = value.parse().map_err(|_| invalid())?,
        "max_fails" => rules.max_fails = number()?,
        "max_conns" => rules.max_conns = number()?,
        "fail_timeout" => {
            let time = Some(time()?).filter(|time| time.subsec_nanos() == 0).ok_or_else(invalid)?;
            rules.fail_timeout = time.as_secs().try_into().unwrap_or(u32::MAX);
        }
        "slow_start" => {
            rules.slow_start = time()?.as_millis().try_into().unwrap_or(u32::MAX);
        }
        _ => return Err(format!("has an unknown parameter \"{name}={value}\"")),
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

/// File and line of the directive.
pub(crate) fn position(cf: *mut ngx_conf_t) -> (String, usize) {
    // SAFETY: while a directive handler runs, `conf_file` is the file that is being read; it is
    // null for `-g`, which can't hold this directive.
    unsafe {
        let Some(file) = (*cf).conf_file.as_ref() else { return (String::new(), 0) };
        (String::from_utf8_lossy(bytes(&file.file.name)).into_owned(), file.line)
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
        if !list.iter().any(|s| !ours(s) && s.backup() == 0) {
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
