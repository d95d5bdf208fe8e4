//! Directives of services that requests name.

use std::ptr::NonNull;
use std::time::Duration;

use nginx_consul_core::named::{Allowed, Template};
use nginx_consul_core::sync::Target;
use nginx_sys::ngx_http_complex_value_t;

use super::args::{self, Parsed, invalid, text};
use super::settings::once;
use super::{Dynamic, Settings};

/// `consul_dynamic $service`.
pub(crate) struct ByRequest {
    /// The name, in the pool of the configuration.
    pub(crate) value: NonNull<ngx_http_complex_value_t>,
}

/// `consul_allow_service pattern … [tag=value]…`.
#[derive(Clone, Default)]
pub(crate) struct AllowService {
    patterns: Vec<String>,
    tags: Vec<String>,
}

impl AllowService {
    pub(super) fn parse(words: &[&[u8]]) -> Parsed<AllowService> {
        let directive = "consul_allow_service";
        let mut allow = AllowService::default();
        for word in words {
            let parameter = text(word)?;
            match parameter.split_once('=') {
                None if !parameter.is_empty() => allow.patterns.push(parameter.to_owned()),
                Some(("tag", tag)) if !tag.is_empty() => allow.tags.push(tag.to_owned()),
                _ => return Err(invalid(directive, word)),
            }
        }
        Ok(allow)
    }
}

/// `consul_unknown_service [status=code] [valid=time]`.
#[derive(Clone, Copy, Default)]
pub(crate) struct UnknownService {
    status: Option<i16>,
    valid: Option<Duration>,
}

impl UnknownService {
    pub(super) fn parse(words: &[&[u8]]) -> Parsed<UnknownService> {
        let directive = "consul_unknown_service";
        let mut unknown = UnknownService::default();
        for word in words {
            match text(word)?.split_once('=') {
                Some(("status", code)) => {
                    let code = args::number(directive, code.as_bytes(), 400).ok();
                    let Some(code) = code.filter(|&code| code <= 599 && code != 499) else {
                        let invalid = invalid(directive, word);
                        return Err(format!("{invalid}, the status must be from 400 to 599"));
                    };
                    once(&format!("{directive} status"), &mut unknown.status, code as i16)?;
                }
                Some(("valid", time)) => {
                    let time = args::positive_time(directive, time.as_bytes())
                        .map_err(|_| invalid(directive, word))?;
                    once(&format!("{directive} valid"), &mut unknown.valid, time)?;
                }
                _ => return Err(invalid(directive, word)),
            }
        }
        Ok(unknown)
    }

    /// What is answered, 502 unless set.
    pub(crate) fn status(&self) -> i16 {
        self.status.unwrap_or(502)
    }
}

/// What the block asks for, whatever the name.
pub(super) fn template(block: &[u8], targets: Vec<Target>, settings: &Settings) -> Template {
    let allow = settings.allow_service.clone().unwrap_or_default();
    let unknown = settings.unknown_service.unwrap_or_default();
    let idle = settings.idle.unwrap_or(Duration::from_secs(600));
    let absent = unknown.valid.unwrap_or(Duration::from_secs(1));
    Template::new(block, targets, Allowed::new(&allow.patterns, allow.tags), (idle, absent))
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
             variable, in {}:{}",
            dynamic.file, dynamic.line
        )),
    }
}
