//! Directives of services that requests name.

use std::ptr::NonNull;

use nginx_consul_core::on_demand::{Allowed, Template};
use nginx_consul_core::watch::Target;
use nginx_sys::ngx_http_complex_value_t;

use super::args::Parsed;
use super::settings::Settings;
use super::srv::DynamicConf;
use crate::peer;

/// The template of the upstream of this name: what it asks Consul for, except the service.
pub(super) fn template(name: &[u8], targets: Vec<Target>, settings: &Settings) -> Template {
    let allow = settings.allow_service();
    let allowed = Allowed::new(&allow.patterns, allow.tags);
    let absent = settings.unknown_service().valid;
    Template::new(name, targets, allowed, (settings.idle(), absent, settings.first_wait()))
}

/// How the upstream finds the services that requests name.
pub(super) fn options(
    service: NonNull<ngx_http_complex_value_t>,
    settings: &Settings,
) -> peer::on_demand::Options {
    peer::on_demand::Options {
        service,
        first_wait: settings.first_wait(),
        unknown_status: settings.unknown_service().status,
    }
}

/// Refuses directives that only have an effect in on-demand upstreams.
pub(super) fn check_fixed(settings: &Settings, dynamic: &DynamicConf) -> Parsed {
    let set = [
        ("consul_allow_service", settings.allow_service.is_some()),
        ("consul_first_wait", settings.first_wait.is_some()),
        ("consul_idle", settings.idle.is_some()),
        ("consul_unknown_service", settings.unknown_service.is_some()),
    ];
    match set.iter().find(|(_, is_set)| *is_set) {
        None => Ok(()),
        Some((name, _)) => Err(format!(
            "\"{name}\" directive is without effect, the service of \"consul_dynamic\" has no \
             variable, in {}",
            dynamic.place
        )),
    }
}
