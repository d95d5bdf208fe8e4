//! Directives of services that requests name.

use std::ptr::NonNull;
use std::time::Duration;

use nginx_consul_core::on_demand::{Allowed, Template};
use nginx_consul_core::watch::Target;
use nginx_sys::ngx_http_complex_value_t;

use super::args::{self, Args, Parsed, invalid, text};
use super::{Dynamic, Settings};
use crate::peer;

/// `consul_allow_service pattern … [tag=value]…`.
#[derive(Clone, Default)]
pub(crate) struct AllowService {
    patterns: Vec<String>,
    tags: Vec<String>,
}

impl AllowService {
    pub(super) fn parse(args: &Args<'_>) -> Parsed<AllowService> {
        let mut allow = AllowService::default();
        for word in args.words {
            let parameter = text(word)?;
            match parameter.split_once('=') {
                None if !parameter.is_empty() => allow.patterns.push(parameter.to_owned()),
                Some(("tag", tag)) if !tag.is_empty() => allow.tags.push(tag.to_owned()),
                _ => return Err(invalid(args.name, word)),
            }
        }
        Ok(allow)
    }
}

/// `consul_unknown_service [status=code] [valid=time]`.
#[derive(Clone, Copy)]
pub(crate) struct UnknownService {
    /// What is answered.
    pub(crate) status: i16,
    /// How long nginx remembers that there is no such service.
    valid: Duration,
}

impl Default for UnknownService {
    fn default() -> Self {
        UnknownService { status: 502, valid: Duration::from_secs(1) }
    }
}

impl UnknownService {
    pub(super) fn parse(args: &Args<'_>) -> Parsed<UnknownService> {
        let mut unknown = UnknownService::default();
        args.parameters(0, |name, value| {
            let value = value.as_bytes();
            match name {
                "status" => {
                    let code = args::number(name, value, 400).ok().filter(|n| *n <= 599);
                    let code = code.filter(|n| *n != 499).and_then(|n| i16::try_from(n).ok());
                    unknown.status = code.ok_or(Some("a status from 400 to 599"))?;
                }
                "valid" => {
                    unknown.valid = args::positive_time(name, value).map_err(|_| None)?;
                }
                _ => return Err(None),
            }
            Ok(())
        })?;
        Ok(unknown)
    }
}

/// What the block asks for, whatever the name.
pub(super) fn template(block: &[u8], targets: Vec<Target>, settings: &Settings) -> Template {
    let allow = settings.allow_service.clone().unwrap_or_default();
    let unknown = settings.unknown_service.unwrap_or_default();
    let idle = settings.idle.unwrap_or(Duration::from_secs(600));
    let allowed = Allowed::new(&allow.patterns, allow.tags);
    Template::new(block, targets, allowed, (idle, unknown.valid))
}

/// How the block finds the services that requests name.
pub(super) fn options(
    service: NonNull<ngx_http_complex_value_t>,
    settings: &Settings,
) -> peer::on_demand::Options {
    peer::on_demand::Options {
        service,
        first_wait: settings.first_wait.unwrap_or(Duration::from_secs(1)),
        unknown_status: settings.unknown_service.unwrap_or_default().status,
    }
}

/// What makes sense only where requests name the service.
pub(super) fn check_fixed(settings: &Settings, dynamic: &Dynamic) -> Parsed {
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
