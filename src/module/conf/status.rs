//! `consul_status [metrics=service|peer]` and `consul_status ready [source=…] [max_age=…] [peers=…]`.

use std::ffi::{c_char, c_void};

use nginx_consul_core::status::ready::{Demand, Origin};
use nginx_sys::{ngx_command_t, ngx_conf_t};

use super::args::{self, Parsed, duplicate, finish, text};
use crate::ffi::{self, CONF_ERROR, catch_panic};
use crate::ready::ngx_http_consul_ready_handler;
use crate::status::{LocationOptions, Metrics, ngx_http_consul_status_handler};

/// The directive: makes the status the location's content.
pub(crate) extern "C" fn ngx_http_consul_status(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    catch_panic(CONF_ERROR, || {
        // SAFETY: the directive is only allowed in `location`, whose core configuration `core` is,
        // and `conf` is ours; nothing else refers to them now.
        unsafe {
            let core = ffi::location(cf);
            let conf = &mut *conf.cast::<LocationOptions>();
            let words = ffi::args(cf);
            if conf.status.is_some() || conf.ready.is_some() {
                return finish(cf, Err(duplicate("consul_status")));
            }
            if words.get(1).is_some_and(|word| *word == b"ready") {
                (*core).handler = Some(ngx_http_consul_ready_handler);
                let demand = parse_ready(words.get(2..).unwrap_or_default());
                return finish(cf, demand.map(|demand| conf.ready = Some(demand)));
            }
            (*core).handler = Some(ngx_http_consul_status_handler);
            finish(
                cf,
                parse_metrics(words.get(1..).unwrap_or_default())
                    .map(|metrics| conf.status = Some(metrics)),
            )
        }
    })
}

/// Reads the words of the directive that follow its name.
fn parse_metrics(words: &[&[u8]]) -> Parsed<Metrics> {
    let mut metrics = None;
    for word in words {
        let wrong = |what| {
            let parameter = String::from_utf8_lossy(word);
            format!("{what} parameter \"{parameter}\" in \"consul_status\" directive")
        };
        let found = match *word {
            b"metrics=service" => Metrics::Service,
            b"metrics=peer" => Metrics::Peer,
            _ => return Err(wrong("invalid")),
        };
        if metrics.replace(found).is_some() {
            return Err(wrong("duplicate"));
        }
    }
    Ok(metrics.unwrap_or_default())
}

/// Reads the words of the directive that follow `ready`.
fn parse_ready(words: &[&[u8]]) -> Parsed<Demand> {
    let (mut source, mut max_age, mut peers) = (None, None, None);
    for word in words {
        let parameter = text(word)?;
        let wrong =
            |what| format!("{what} parameter \"{parameter}\" in \"consul_status\" directive");
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let before = match name {
            "source" => Origin::from_name(value).map(|origin| source.replace(origin).is_some()),
            "max_age" => args::positive_time(name, value.as_bytes())
                .ok()
                .map(|age| max_age.replace(age).is_some()),
            "peers" => args::number(name, value.as_bytes(), 0)
                .ok()
                .map(|number| peers.replace(number as usize).is_some()),
            _ => None,
        };
        match before {
            Some(false) => {}
            Some(true) => return Err(wrong("duplicate")),
            None => return Err(wrong("invalid")),
        }
    }
    Ok(Demand { source: source.unwrap_or_default(), max_age, peers: peers.unwrap_or_default() })
}
