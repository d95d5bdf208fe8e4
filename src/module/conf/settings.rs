//! The directives that `http` gives as defaults and an `upstream` overrides.

use std::fmt::Display;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::time::Duration;

use nginx_consul_core::balance::Method;
use nginx_consul_core::sync::{Server, ServerError, Token};
use nginx_sys::{
    ngx_conf_t, ngx_http_compile_complex_value, ngx_http_compile_complex_value_t,
    ngx_http_complex_value_t, ngx_pcalloc,
};

use super::args::{self, Parsed, invalid, text};
use super::named::{AllowService, UnknownService};
use super::policy;
use super::{Balance, Settings};
use crate::ffi::{OK, str_over};

/// Stores the value of a directive that may stand once in its block.
pub(super) fn once<T>(directive: &str, place: &mut Option<T>, value: T) -> Parsed {
    if place.is_some() {
        return Err(args::duplicate(directive));
    }
    *place = Some(value);
    Ok(())
}

/// Adds the values of a directive that may stand several times in its block.
fn add<T>(place: &mut Option<Vec<T>>, values: Vec<T>) -> Parsed {
    place.get_or_insert_default().extend(values);
    Ok(())
}

impl Settings {
    /// Takes one directive with its words, the name among them.
    pub(super) fn set(&mut self, cf: *mut ngx_conf_t, words: &[&[u8]]) -> Parsed {
        let name = text(words[0])?;
        let word = words[1];
        match name {
            "consul_server" => once(name, &mut self.servers, servers(&words[1..])?),
            "consul_token" => once(name, &mut self.token, token(name, Token::value(text(word)?))?),
            "consul_token_file" => {
                once(name, &mut self.token, token(name, Token::file(&args::path(cf, word)?))?)
            }
            "consul_ssl_trusted_certificate" => {
                once(name, &mut self.ssl_trusted, args::file(cf, name, word)?)
            }
            "consul_ssl_certificate" => {
                once(name, &mut self.ssl_certificate, args::file(cf, name, word)?)
            }
            "consul_ssl_certificate_key" => {
                once(name, &mut self.ssl_key, args::file(cf, name, word)?)
            }
            "consul_ssl_verify" => once(name, &mut self.ssl_verify, args::flag(name, word)?),
            "consul_ssl_name" => once(name, &mut self.ssl_name, text(word)?.to_owned()),
            "consul_wait" => once(name, &mut self.wait, wait(name, word)?),
            "consul_connect_timeout" => {
                once(name, &mut self.connect_timeout, args::positive_time(name, word)?)
            }
            "consul_retry" => once(name, &mut self.retry, retry(name, words)?),
            "consul_resolve" => once(name, &mut self.resolve, resolve(name, word)?),
            "consul_poll" => once(name, &mut self.poll, poll(name, word)?),
            "consul_max_body_size" => {
                once(name, &mut self.max_body, args::size(name, word)? as u64)
            }
            "consul_max_stale" => once(name, &mut self.max_stale, policy::max_stale(name, word)?),
            "consul_empty" => once(name, &mut self.on_empty, policy::on_empty(name, words)?),
            "consul_max_removal" => once(name, &mut self.max_removal, policy::percent(name, word)?),
            "consul_allow" => add(&mut self.allow, policy::networks(name, &words[1..])?),
            "consul_deny" => add(&mut self.deny, policy::networks(name, &words[1..])?),
            "consul_panic" => once(name, &mut self.panic, policy::percent(name, word)?),
            "consul_balance" => once(name, &mut self.balance, balance(cf, words)?),
            "consul_allow_service" => {
                once(name, &mut self.allow_service, AllowService::parse(&words[1..])?)
            }
            "consul_first_wait" => once(name, &mut self.first_wait, args::time(name, word)?),
            "consul_idle" => once(name, &mut self.idle, args::positive_time(name, word)?),
            "consul_unknown_service" => {
                once(name, &mut self.unknown_service, UnknownService::parse(&words[1..])?)
            }
            _ => Err(format!("unknown directive \"{name}\"")),
        }
    }

    /// These settings, and where they say nothing the others.
    pub(super) fn or(&self, other: &Settings) -> Settings {
        let (a, b) = (self.clone(), other.clone());
        // A certificate goes with its own key.
        let client = if a.ssl_certificate.is_some() || a.ssl_key.is_some() {
            (a.ssl_certificate, a.ssl_key)
        } else {
            (b.ssl_certificate, b.ssl_key)
        };
        Settings {
            servers: a.servers.or(b.servers),
            token: a.token.or(b.token),
            ssl_trusted: a.ssl_trusted.or(b.ssl_trusted),
            ssl_certificate: client.0,
            ssl_key: client.1,
            ssl_verify: a.ssl_verify.or(b.ssl_verify),
            ssl_name: a.ssl_name.or(b.ssl_name),
            wait: a.wait.or(b.wait),
            connect_timeout: a.connect_timeout.or(b.connect_timeout),
            retry: a.retry.or(b.retry),
            resolve: a.resolve.or(b.resolve),
            poll: a.poll.or(b.poll),
            max_body: a.max_body.or(b.max_body),
            max_stale: a.max_stale.or(b.max_stale),
            on_empty: a.on_empty.or(b.on_empty),
            max_removal: a.max_removal.or(b.max_removal),
            allow: a.allow.or(b.allow),
            deny: a.deny.or(b.deny),
            balance: a.balance.or(b.balance),
            panic: a.panic.or(b.panic),
            allow_service: a.allow_service.or(b.allow_service),
            first_wait: a.first_wait.or(b.first_wait),
            idle: a.idle.or(b.idle),
            unknown_service: a.unknown_service.or(b.unknown_service),
        }
    }
}

fn servers(words: &[&[u8]]) -> Parsed<Vec<Server>> {
    const SCHEMES: [&str; 3] = ["http://", "https://", "unix:"];
    let server = |word: &&[u8]| {
        let url = text(word)?;
        let bad = |why: &dyn Display| {
            format!("invalid URL \"{url}\" in \"consul_server\" directive: {why}")
        };
        if !SCHEMES.iter().any(|scheme| url.starts_with(scheme)) {
            return Err(bad(&"it must begin with \"http://\", \"https://\" or \"unix:\""));
        }
        url.parse().map_err(|e: ServerError| bad(&e))
    };
    words.iter().map(server).collect()
}

/// The error names the file, never the token.
fn token<E: Display>(directive: &str, token: Result<Token, E>) -> Parsed<Token> {
    token.map_err(|e| format!("invalid token in \"{directive}\" directive: {e}"))
}

/// Consul's own limits: it caps `wait` at ten minutes.
fn wait(directive: &str, word: &[u8]) -> Parsed<Duration> {
    let wait = args::positive_time(directive, word)?;
    if !(1..=600).contains(&wait.as_secs()) {
        return Err(format!("{}, it must be from 1s to 10m", invalid(directive, word)));
    }
    Ok(wait)
}

/// A watch blocks for that long, so Consul's limits of `wait` hold.
fn resolve(directive: &str, word: &[u8]) -> Parsed<Duration> {
    wait(directive, word)
}

/// Not more often than a watch may ask in vain.
fn poll(directive: &str, word: &[u8]) -> Parsed<Duration> {
    let poll = args::positive_time(directive, word)?;
    if poll < Duration::from_millis(500) {
        return Err(format!("{}, it must be at least 500ms", invalid(directive, word)));
    }
    Ok(poll)
}

fn retry(directive: &str, words: &[&[u8]]) -> Parsed<(Duration, Duration)> {
    let min = args::positive_time(directive, words[1])?;
    let max = args::positive_time(directive, words[2])?;
    if min > max {
        let shown = invalid(directive, words[2]);
        return Err(format!("{shown}, the longest pause is shorter than the shortest"));
    }
    Ok((min, max))
}

/// `consul_balance method` or `consul_balance hash key [consistent]`.
fn balance(cf: *mut ngx_conf_t, words: &[&[u8]]) -> Parsed<Balance> {
    let directive = "consul_balance";
    let consistent = match words[1..] {
        [b"hash"] => return Err(format!("no key of \"hash\" in \"{directive}\" directive")),
        [b"hash", _] => false,
        [b"hash", _, b"consistent"] => true,
        [_, word, ..] if words[1] != b"hash" => return Err(invalid(directive, word)),
        [_, _, word] => return Err(invalid(directive, word)),
        _ => {
            let name = text(words[1])?;
            let method = Method::from_name(name).ok_or_else(|| {
                format!(
                    "unknown method \"{name}\" in \"{directive}\" directive, it must be \
                     \"round_robin\", \"random\", \"least_conn\", \"least_time\" or \"hash\""
                )
            })?;
            return Ok(Balance { method, key: None });
        }
    };
    let key = complex_value(cf, directive, words[2])?;
    Ok(Balance { method: Method::Hash { consistent }, key: Some(key) })
}

/// A value with variables; what is wrong with it nginx has said.
pub(super) fn complex_value(
    cf: *mut ngx_conf_t,
    directive: &str,
    word: &[u8],
) -> Parsed<NonNull<ngx_http_complex_value_t>> {
    let failed = || invalid(directive, word);
    let mut value = str_over(word);
    // SAFETY: `cf` is that of the running handler; the compiled value and the word live in its
    // pool. All zeros are an empty ngx_http_compile_complex_value_t, as in nginx's own modules.
    unsafe {
        let size = size_of::<ngx_http_complex_value_t>();
        let compiled = ngx_pcalloc((*cf).pool, size).cast::<ngx_http_complex_value_t>();
        let mut compile: ngx_http_compile_complex_value_t = MaybeUninit::zeroed().assume_init();
        compile.cf = cf;
        compile.value = &mut value;
        compile.complex_value = compiled;
        let compiled = NonNull::new(compiled).ok_or_else(|| "ran out of memory".to_owned())?;
        if ngx_http_compile_complex_value(&mut compile) != OK {
            return Err(failed());
        }
        Ok(compiled)
    }
}
