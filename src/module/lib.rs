//! nginx-consul as nginx loads it. All FFI is here; the logic without nginx is in
//! `nginx_consul_core`.
//!
//! | nginx calls | in | which … |
//! |---|---|---|
//! | `preconfiguration`, directive handlers, `init_main_conf`, `postconfiguration` | [`conf`] | reads, checks and merges directives, makes the upstreams |
//! | zone init | [`zone`] | lays out or finds the shared table |
//! | precontent phase | [`on_demand_phase`] | waits for a service that a request names |
//! | `init_module`, `init_process`, `exit_process` | [`lifecycle`] | fetches initial sets, starts and stops the watch threads |
//! | `peer.init`, `peer.get`, `peer.free`, header filter | [`peer`] | picks peers and counts what becomes of requests |
//! | `get_handler` of variables | [`variables`] | tells about the instance that serves a request |
//! | content handlers | [`status`], [`ready`], [`api`] | answer operators, Prometheus and probes |
//!
//! The modules are declared from the ground up: each imports only from those above it in this file.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use nginx_sys::{NGX_HTTP_MODULE, ngx_http_module_t, ngx_module_t};

mod ffi;
mod zone;
mod peer;
mod upstreams;
mod services;
mod variables;
mod status;
mod ready;
mod api;
mod on_demand_phase;
mod lifecycle;
mod conf;

static MODULE_CONTEXT: ngx_http_module_t = ngx_http_module_t {
    preconfiguration: Some(conf::ngx_http_consul_preconfiguration),
    postconfiguration: Some(conf::ngx_http_consul_postconfiguration),
    create_main_conf: Some(conf::ngx_http_consul_create_main_conf),
    init_main_conf: Some(conf::ngx_http_consul_init_main_conf),
    create_srv_conf: Some(conf::create_conf::<conf::SrvConf>),
    merge_srv_conf: None,
    create_loc_conf: Some(conf::create_conf::<status::LocationOptions>),
    merge_loc_conf: Some(conf::ngx_http_consul_merge_loc_conf),
};

/// The module, by the name that nginx looks up after `load_module`.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static mut ngx_http_consul_module: ngx_module_t = ngx_module_t {
    ctx: (&raw const MODULE_CONTEXT).cast_mut().cast(),
    commands: (&raw const conf::COMMANDS).cast_mut().cast(),
    type_: NGX_HTTP_MODULE as _,
    init_module: Some(lifecycle::ngx_http_consul_init_module),
    init_process: Some(lifecycle::ngx_http_consul_init_process),
    exit_process: Some(lifecycle::ngx_http_consul_exit_process),
    ..ngx_module_t::default()
};

/// What the `.so` holds, for `load_module`. The order is empty: the module comes last, so its
/// `init_main_conf` sees what the others made of a block.
#[allow(missing_docs, unreachable_pub)]
mod loaded {
    use super::ngx_http_consul_module;

    ngx::ngx_modules!(ngx_http_consul_module);
}
