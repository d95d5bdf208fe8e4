//! Checks across the directives of an `upstream`, when all are read.

use std::ffi::c_void;
use std::ptr;

use nginx_consul_core::directives::methods::Directives;
use nginx_sys::{NGX_LOG_WARN, ngx_http_upstream_srv_conf_t};

use super::args::Parsed;
use super::keepalive::KeepaliveConf;
use super::observe::file_of;
use super::settings::Settings;
use super::srv::DynamicConf;
use crate::ffi::Cf;
#[cfg(nginx_keepalive_anywhere)]
use crate::peer;
use crate::peer::Slot;

/// Checks what nginx itself does not.
pub(super) fn check_upstream(
    upstream: &ngx_http_upstream_srv_conf_t,
    (dynamic, slot): (&DynamicConf, &Slot),
    directives: &Directives,
) -> Parsed {
    let error = |why: String| format!("\"consul_dynamic\" directive {why}, in {}", dynamic.place);
    if !upstream.shm_zone.is_null() {
        let why = "can't be used together with \"zone\" in the same \"upstream\", its peers are \
                   shared anyway";
        return Err(error(why.to_owned()));
    }
    let replaced_by = upstream.peer.init_upstream.filter(|_| slot.servers.get().is_null());
    let replaced_by = replaced_by.map(|init| file_of(init as *const c_void));
    directives.check_after(dynamic.before, replaced_by).map_err(error)?;
    if !ptr::eq(upstream.peer.data, slot.servers.get().cast()) {
        let who = directives.wrapper(dynamic.before).unwrap_or("another module");
        return Err(error(format!("is without effect, {who} takes the peers away")));
    }
    Ok(())
}

/// With a load balancing method of nginx, directives of ours are without effect.
pub(super) fn check_method(dynamic: &DynamicConf, settings: &Settings) -> Parsed {
    let Some(method) = &dynamic.nginx_method else { return Ok(()) };
    let balance = settings.balance.is_some().then_some("consul_balance");
    let panic = settings.panic.is_some().then_some("consul_panic");
    match balance.or(panic) {
        None => Ok(()),
        Some(name) => Err(format!(
            "\"{name}\" directive can't be used together with another load balancing method, \
             \"{}\", in the same \"upstream\", in {}",
            method.name, dynamic.place
        )),
    }
}

/// The usual placeholder is `server 0.0.0.1 down;`; without `down` it gets requests.
pub(super) fn warn_of_placeholders(cf: Cf<'_>, directives: &Directives) {
    for (address, place) in directives.placeholders() {
        ngx::ngx_log_error!(
            NGX_LOG_WARN,
            cf.log().as_ptr(),
            "server \"{address}\" without \"down\" gets requests while the service has no \
             instance, and nobody can have its address; \"consul_dynamic\" needs no \"server\" \
             in {place}"
        );
    }
}

/// Lets `consul_keepalive` alone keep the idle connections of an upstream.
pub(super) fn keep_alive(
    upstream: *mut ngx_http_upstream_srv_conf_t,
    (dynamic, directives): (&DynamicConf, &Directives),
    conf: &KeepaliveConf,
) -> Parsed {
    if directives.has_keepalive() {
        return Err(format!(
            "\"consul_keepalive\" directive can't be used together with \"keepalive\" in the same \
             \"upstream\", in {}",
            conf.place
        ));
    }
    #[cfg(nginx_keepalive_anywhere)]
    if let Some(module) = directives.wrapper(dynamic.before) {
        return Err(format!(
            "\"consul_keepalive\" directive can't be used together with {module}, in {}",
            conf.place
        ));
    }
    #[cfg(nginx_keepalive_anywhere)]
    // SAFETY: a block of the configuration that is being read.
    unsafe {
        peer::replace_keepalive(upstream);
    }
    #[cfg(not(nginx_keepalive_anywhere))]
    let _ = (upstream, dynamic);
    Ok(())
}
