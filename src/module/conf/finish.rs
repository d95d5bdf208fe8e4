//! When all is read: inheritance, the checks that need the whole, the plan and the zone.

use std::sync::Arc;
use std::time::Duration;

use nginx_consul_core::sync::{Endpoint, Plan, Server, Target, Timing, Tls, TlsOptions, Token};
use nginx_sys::{
    ngx_conf_t, ngx_http_upstream_main_conf_t, ngx_http_upstream_module,
    ngx_http_upstream_srv_conf_t,
};

use super::args::Parsed;
use super::{HttpConf, Settings, SrvConf, dynamic};
use crate::ffi;
use crate::peer::Block;
use crate::zone;

/// An answer of 20,000 instances has about 15 MiB.
const MAX_BODY: u64 = 16 << 20;

pub(super) fn finish(cf: *mut ngx_conf_t, http: &mut HttpConf) -> Parsed {
    // SAFETY: `cf` is that of init_main_conf(), whose context is that of `http`.
    let context = unsafe { ffi::http_context(cf) };
    // SAFETY: the upstream module's main configuration holds the list of blocks.
    let upstreams = unsafe {
        let main: *mut ngx_http_upstream_main_conf_t =
            ffi::conf_of(context.main_conf, &raw const ngx_http_upstream_module);
        ffi::elements::<*mut ngx_http_upstream_srv_conf_t>(&raw mut (*main).upstreams)
    };
    // SAFETY: the SrvConf of `http` itself.
    let defaults = unsafe {
        let conf =
            ffi::conf_of::<SrvConf>(context.srv_conf, &raw const crate::ngx_http_consul_module);
        with_environment((*conf).settings.clone())?
    };
    let mut targets = Vec::new();
    for &upstream in upstreams {
        // SAFETY: an element of the list is a block of this configuration; one made for a plain
        // `proxy_pass http://host` has no configurations of modules.
        let Some(conf) = (unsafe { block_conf(upstream) }) else { continue };
        let Some(dynamic) = &mut conf.dynamic else { continue };
        // SAFETY: as above.
        let block = unsafe { &mut *upstream };
        check_block(block, dynamic)?;
        dynamic.has_fallback = dynamic::has_fallback(block);
        targets.push(target(conf, &defaults)?);
        http.blocks.push(upstream);
    }
    if http.blocks.is_empty() {
        return Ok(());
    }
    let (plan, target_of) = Plan::new(targets, http.connections.unwrap_or(64));
    let plan = Arc::new(plan);
    for (&upstream, target) in http.blocks.iter().zip(target_of) {
        // SAFETY: as above.
        if let Some(conf) = unsafe { block_conf(upstream) } {
            let method = conf.settings.or(&defaults).balance.unwrap_or_default();
            conf.block = conf.dynamic.as_ref().map(|dynamic| {
                // SAFETY: the block's name lives in the pool of the configuration.
                let name = unsafe { ffi::bytes(&(*upstream).host) };
                Box::new(Block::new(name, dynamic, plan.key(target), target, method))
            });
        }
    }
    http.shm_zone = zone::request(cf, http.zone, plan.targets.len())?;
    http.plan = Some(plan);
    Ok(())
}

/// # Safety
///
/// `upstream` is a block of the configuration that is being read.
unsafe fn block_conf<'a>(upstream: *mut ngx_http_upstream_srv_conf_t) -> Option<&'a mut SrvConf> {
    // SAFETY: the caller's promise; srv_conf is null for implicit blocks.
    unsafe {
        if (*upstream).srv_conf.is_null() {
            return None;
        }
        ffi::conf_of::<SrvConf>((*upstream).srv_conf, &raw const crate::ngx_http_consul_module)
            .as_mut()
    }
}

/// What nginx itself doesn't see.
fn check_block(upstream: &ngx_http_upstream_srv_conf_t, dynamic: &super::Dynamic) -> Parsed {
    let place = format!("in {}:{}", dynamic.file, dynamic.line);
    if !upstream.shm_zone.is_null() {
        return Err(format!(
            "\"consul_dynamic\" directive can't be used together with \"zone\" in the same \
             \"upstream\", its peers are shared anyway, {place}"
        ));
    }
    if !dynamic.initialized {
        return Err(format!(
            "\"consul_dynamic\" directive is without effect, another load balancing method \
             takes the block away, {place}"
        ));
    }
    Ok(())
}

fn target(conf: &SrvConf, defaults: &Settings) -> Parsed<Target> {
    let Some(dynamic) = &conf.dynamic else { return Err("no service".into()) };
    let at = |e: String| format!("{e} for \"consul_dynamic\" in {}:{}", dynamic.file, dynamic.line);
    let s = conf.settings.or(defaults);
    let client = match (s.ssl_certificate, s.ssl_key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return Err(at("no \"consul_ssl_certificate_key\" is defined".into())),
        (None, Some(_)) => return Err(at("no \"consul_ssl_certificate\" is defined".into())),
    };
    let options = TlsOptions {
        trusted: s.ssl_trusted,
        client,
        verify: s.ssl_verify.unwrap_or(true),
        name: s.ssl_name,
    };
    let tls = if options == TlsOptions::default() {
        Tls::default()
    } else {
        Tls::new(options).map_err(|e| at(format!("\"consul_ssl_*\" directives: {e}")))?
    };
    let (retry_min, retry_max) =
        s.retry.unwrap_or((Duration::from_millis(250), Duration::from_secs(30)));
    Ok(Target {
        query: dynamic.query.clone(),
        selection: dynamic.selection.clone(),
        endpoint: Arc::new(Endpoint {
            servers: s.servers.unwrap_or_default(),
            token: s.token,
            tls,
            connect_timeout: s.connect_timeout.unwrap_or(Duration::from_secs(2)),
            max_body: s.max_body.unwrap_or(MAX_BODY),
        }),
        timing: Timing { wait: s.wait.unwrap_or(Duration::from_secs(60)), retry_min, retry_max },
    })
}

/// What `http` does not say, Consul's own environment variables do
/// (<https://developer.hashicorp.com/consul/commands#environment-variables>). Read here because
/// workers lose their environment.
fn with_environment(mut settings: Settings) -> Parsed<Settings> {
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    if settings.servers.is_none() {
        let url = variable("CONSUL_HTTP_ADDR").unwrap_or_else(|| "http://127.0.0.1:8500".into());
        let server: Server =
            url.parse().map_err(|e| format!("invalid URL \"{url}\" in CONSUL_HTTP_ADDR: {e}"))?;
        settings.servers = Some(vec![server]);
    }
    if settings.token.is_none() {
        let from =
            |source: &str, e: &dyn std::fmt::Display| format!("invalid token in {source}: {e}");
        settings.token = if let Some(path) = variable("CONSUL_HTTP_TOKEN_FILE") {
            let token = Token::file(path.as_ref());
            Some(token.map_err(|e| from("CONSUL_HTTP_TOKEN_FILE", &e))?)
        } else if let Some(value) = variable("CONSUL_HTTP_TOKEN") {
            Some(Token::value(&value).map_err(|e| from("CONSUL_HTTP_TOKEN", &e))?)
        } else {
            None
        };
    }
    Ok(settings)
}
