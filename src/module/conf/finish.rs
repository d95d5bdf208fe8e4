//! Runs when all is read: merges settings, checks, and makes the plan, the zone and the upstreams.

use std::iter;
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;

use nginx_consul_core::on_demand::{Template, Templates};
use nginx_consul_core::watch::{Plan, Target};
use nginx_sys::{
    ngx_http_conf_ctx_t, ngx_http_upstream_main_conf_t, ngx_http_upstream_module,
    ngx_http_upstream_srv_conf_t,
};

use super::args::Parsed;
use super::http::HttpConf;
use super::settings::Settings;
use super::srv::{DynamicConf, SrvConf};
use super::target::TargetMaker;
use super::{check, on_demand};
use crate::ffi::{self, Cf};
use crate::peer::{self, Keepalive, OnDemandUpstream, Snapshots, Upstream, WatchedSet};
use crate::variables::Used;
use crate::zone;

pub(super) fn finish(cf: Cf<'_>, http: &mut HttpConf) -> Parsed {
    let context = cf.context();
    // SAFETY: the upstream module's main configuration holds the list of blocks.
    let upstreams: &[*mut ngx_http_upstream_srv_conf_t] = unsafe {
        let module = &raw const ngx_http_upstream_module;
        let main = ffi::conf_of::<ngx_http_upstream_main_conf_t>(context.main_conf, module);
        ffi::elements(&(*main).upstreams)
    };
    // SAFETY: the SrvConf of `http` itself, which nothing changes any more.
    let defaults = unsafe { &*ffi::conf_of::<SrvConf>(context.srv_conf, ffi::module()) };
    let (defaults, used) = (&defaults.settings, Used::of(cf));
    let live = &mut http.upstreams;
    live.connections = defaults.connections();
    live.init_timeout = defaults.init_timeout();
    live.state_file = defaults.state_file().map(|file| file.of_zone(zone::size(defaults.zone)));
    let gathered = gather(cf, upstreams, defaults, http, &used)?;
    if http.upstreams.is_empty() {
        return Ok(());
    }
    let max = defaults.max_services();
    let templates = Arc::new(Templates::new(gathered.templates, max));
    // Each catalog takes a connection, and one must be free to fetch a new service while another
    // one waits for changes.
    let connections = http.upstreams.connections;
    let for_targets = match templates.catalogs().len() {
        0 => connections,
        catalogs => connections.saturating_sub(catalogs).max(2),
    };
    let (mut plan, target_of) = Plan::new(gathered.targets, for_targets);
    let name = |(upstream, count): &(*mut ngx_http_upstream_srv_conf_t, usize)| {
        // SAFETY: a block of this configuration; its name lives in the configuration's pool.
        let name = unsafe { ffi::bytes(&(**upstream).host) };
        iter::repeat_n(String::from_utf8_lossy(name).into_owned(), *count)
    };
    let names: Vec<String> = gathered.blocks.iter().flat_map(name).collect();
    plan.name_upstreams(&target_of, &names);
    let plan = Arc::new(plan);
    let (mut target_of, mut templates_made) = (target_of.into_iter(), 0);
    for (upstream, count) in gathered.blocks {
        // SAFETY: a block of this configuration, which gather() has found.
        let Some(conf) = (unsafe { block_conf(upstream) }) else { continue };
        let Some(dynamic) = &conf.dynamic else { continue };
        let source = |target: usize| {
            let datacenter = plan.targets.get(target).and_then(|t| t.query.datacenter.clone());
            WatchedSet::new(plan.key(target), target, datacenter)
        };
        let sources = target_of.by_ref().take(count).map(source).collect();
        let settings = conf.settings.or(defaults);
        let block = make_block(upstream, (conf, dynamic, &settings), sources, context);
        block.keep_labels(used.labels);
        match dynamic.by_request {
            Some(service) => {
                let parts = (Arc::clone(&templates), templates_made, Arc::clone(&plan));
                templates_made += 1;
                let options = on_demand::options(service, &settings);
                conf.slot.on_demand = Some(Box::new(OnDemandUpstream::new(block, options, parts)));
            }
            None => conf.slot.upstream = Some(Box::new(block)),
        }
    }
    let live = &mut http.upstreams;
    live.templates = (!live.on_demand.is_empty()).then_some(templates);
    live.shm_zone = Some(zone::request(cf, defaults.zone, plan.targets.len())?);
    live.plan = Some(plan);
    Ok(())
}

/// What the upstreams ask Consul for.
#[derive(Default)]
struct Gathered {
    targets: Vec<Target>,
    /// The upstreams, and how many of the targets each has.
    blocks: Vec<(*mut ngx_http_upstream_srv_conf_t, usize)>,
    /// The templates of on-demand upstreams.
    templates: Vec<Template>,
}

fn gather(
    cf: Cf<'_>,
    upstreams: &[*mut ngx_http_upstream_srv_conf_t],
    defaults: &Settings,
    http: &mut HttpConf,
    used: &Used,
) -> Parsed<Gathered> {
    let mut targets_of = TargetMaker::new(used.meta.clone());
    let mut gathered = Gathered::default();
    for &upstream in upstreams {
        // SAFETY: an element of the list is a block of this configuration; one made for a plain
        // `proxy_pass http://host` has no configurations of modules.
        let Some(conf) = (unsafe { block_conf(upstream) }) else { continue };
        let Some(dynamic) = &mut conf.dynamic else {
            match &conf.keepalive {
                None => continue,
                Some(keepalive) => {
                    return Err(format!(
                        "\"consul_keepalive\" directive is without effect, there is no \
                         \"consul_dynamic\" in its \"upstream\", in {}",
                        keepalive.place
                    ));
                }
            }
        };
        // SAFETY: a block of this configuration, which nothing else refers to while it is read.
        let block = unsafe { &mut *upstream };
        check::check_upstream(block, (dynamic, &conf.slot), &conf.directives)?;
        if let Some(keepalive) = &conf.keepalive {
            check::keep_alive(upstream, (dynamic, &conf.directives), keepalive)?;
        }
        conf.slot.wrapped_by = conf.directives.wrapper(dynamic.before).map(str::to_owned);
        check::check_method(dynamic, &conf.settings)?;
        check::warn_of_placeholders(cf, &conf.directives);
        dynamic.has_fallback = peer::servers::has_fallback(block);
        let settings = conf.settings.or(defaults);
        let of_block = targets_of.targets(settings.clone(), dynamic)?;
        if dynamic.by_request.is_some() {
            // SAFETY: the block's name lives in the pool of the configuration.
            let name = unsafe { ffi::bytes(&block.host) };
            gathered.templates.push(on_demand::template(name, of_block, &settings));
            gathered.blocks.push((upstream, 0));
            http.upstreams.on_demand.push(upstream);
        } else {
            on_demand::check_fixed(&conf.settings, dynamic)?;
            gathered.blocks.push((upstream, of_block.len()));
            gathered.targets.extend(of_block);
            http.upstreams.fixed.push(upstream);
        }
    }
    Ok(gathered)
}

fn make_block(
    upstream: *mut ngx_http_upstream_srv_conf_t,
    (conf, dynamic, settings): (&SrvConf, &DynamicConf, &Settings),
    sources: Box<[WatchedSet]>,
    context: &ngx_http_conf_ctx_t,
) -> Upstream {
    // SAFETY: the block's name lives in the pool of the configuration.
    let name = unsafe { ffi::bytes(&(*upstream).host) };
    let nginx_method = dynamic.nginx_method.clone();
    let options = peer::Options {
        // Values of `http` hold for upstreams without a method of nginx.
        balance: settings.balance.filter(|_| nginx_method.is_none()).unwrap_or_default(),
        panic: settings.panic().filter(|_| nginx_method.is_none()),
        rules: dynamic.says.params,
        has_fallback: dynamic.has_fallback,
    };
    let nginx_method = nginx_method.map(|method| {
        // SAFETY: both are of the configuration that is being read.
        unsafe { Snapshots::new(method, upstream, ptr::from_ref(context).cast_mut()) }
    });
    let keepalive = conf.keepalive.as_ref();
    let keepalive = keepalive.map(|conf| Rc::new(Keepalive::new(&conf.options)));
    let service = &dynamic.says.query.service;
    Upstream::new(name, service, sources, options, nginx_method, keepalive)
}

/// # Safety
///
/// `upstream` is a block of the configuration that is being read.
unsafe fn block_conf<'a>(upstream: *mut ngx_http_upstream_srv_conf_t) -> Option<&'a mut SrvConf> {
    // SAFETY: null of a block that nginx has made for an address; otherwise create_srv_conf() has made
    // a SrvConf, which nothing else refers to while the configuration is read.
    unsafe {
        if (*upstream).srv_conf.is_null() {
            return None;
        }
        ffi::conf_of::<SrvConf>((*upstream).srv_conf, ffi::module()).as_mut()
    }
}
