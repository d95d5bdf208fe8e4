//! The directives that `http` gives as defaults and an `upstream` overrides.

use std::fmt::Display;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::time::Duration;

use nginx_consul_core::address::IpNet;
use nginx_consul_core::balance::Method;
use nginx_consul_core::watch::{OnEmpty, Server, ServerError, Token};
use nginx_sys::{
    NGX_CONF_1MORE as MORE, NGX_CONF_TAKE1 as TAKE1, NGX_CONF_TAKE2 as TAKE2,
    NGX_CONF_TAKE3 as TAKE3, NGX_CONF_TAKE12 as TAKE12, ngx_conf_t, ngx_http_compile_complex_value,
    ngx_http_compile_complex_value_t, ngx_http_complex_value_t, ngx_pcalloc,
};

use super::SrvConf;
use super::args::{self, Args, Parsed, add, invalid, must_be, once, one, text};
use super::commands::{Row, http_and_upstream};
use super::on_demand::{AllowService, UnknownService};
use super::policy::{max_stale, networks, on_empty, percent};
use crate::ffi::{OK, str_over};
use crate::peer::Balance;

/// A row is a field of [`Settings`] and its type, then each directive that fills it: its name, how
/// many words it takes, whether it may stand `once` in a block or several `add` up, and what reads
/// the words.
macro_rules! settings {
    ($(
        $(#[$doc:meta])*
        $field:ident: $type:ty = $($name:literal $count:expr, $store:ident $read:expr),+;
    )+) => {
        /// What `http` gives as default and an `upstream` overrides. `None`: not set here.
        #[derive(Clone, Default)]
        pub(crate) struct Settings {
            $($(#[$doc])* pub(crate) $field: Option<$type>,)+
        }

        /// The directives that fill [`Settings`].
        pub(super) const DIRECTIVES: &[Row<SrvConf>] = &[$($(
            http_and_upstream($name, $count, |args, conf| {
                $store(args, &mut conf.settings.$field, $read)
            }),
        )+)+];

        impl Settings {
            fn or_each(self, other: Settings) -> Settings {
                Settings { $($field: self.$field.or(other.$field),)+ }
            }
        }
    };
}

settings! {
    servers: Vec<Server> = c"consul_server" MORE, once servers;
    token: Token = c"consul_token" TAKE1, once token, c"consul_token_file" TAKE1, once token;
    ssl_trusted: Vec<u8> = c"consul_ssl_trusted_certificate" TAKE1, once args::file;
    ssl_certificate: Vec<u8> = c"consul_ssl_certificate" TAKE1, once args::file;
    ssl_key: Vec<u8> = c"consul_ssl_certificate_key" TAKE1, once args::file;
    ssl_verify: bool = c"consul_ssl_verify" TAKE1, once one(args::flag);
    ssl_name: String = c"consul_ssl_name" TAKE1, once one(|_, word| text(word).map(str::to_owned));
    wait: Duration = c"consul_wait" TAKE1, once one(wait);
    connect_timeout: Duration = c"consul_connect_timeout" TAKE1, once one(args::positive_time);
    retry: (Duration, Duration) = c"consul_retry" TAKE2, once retry;
    poll: Duration = c"consul_poll" TAKE1, once one(poll);
    /// A watch blocks for that long, so Consul's limits of `wait` hold.
    resolve: Duration = c"consul_resolve" TAKE1, once one(wait);
    max_body: usize = c"consul_max_body_size" TAKE1, once one(args::size);
    /// `Some(None)`: off.
    max_stale: Option<Duration> = c"consul_max_stale" TAKE1, once one(max_stale);
    on_empty: OnEmpty = c"consul_empty" TAKE12, once on_empty;
    /// Percent; `Some(None)`: off.
    max_removal: Option<u8> = c"consul_max_removal" TAKE1, once one(percent);
    allow: Vec<IpNet> = c"consul_allow" MORE, add networks;
    deny: Vec<IpNet> = c"consul_deny" MORE, add networks;
    balance: Balance = c"consul_balance" TAKE1 | TAKE2 | TAKE3, once balance;
    /// Percent; `Some(None)`: off.
    panic: Option<u8> = c"consul_panic" TAKE1, once one(percent);
    allow_service: AllowService = c"consul_allow_service" MORE, once AllowService::parse;
    first_wait: Duration = c"consul_first_wait" TAKE1, once one(args::time);
    idle: Duration = c"consul_idle" TAKE1, once one(args::positive_time);
    unknown_service: UnknownService =
        c"consul_unknown_service" TAKE12, once UnknownService::parse;
}

impl Settings {
    /// These settings, and where they say nothing the others.
    pub(super) fn or(&self, other: &Settings) -> Settings {
        let mut other = other.clone();
        // A certificate goes with its own key.
        if self.ssl_certificate.is_some() || self.ssl_key.is_some() {
            (other.ssl_certificate, other.ssl_key) = (None, None);
        }
        self.clone().or_each(other)
    }
}

fn servers(args: &Args<'_>) -> Parsed<Vec<Server>> {
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
    args.words.iter().map(server).collect()
}

/// The error names the file, never the token.
fn token(args: &Args<'_>) -> Parsed<Token> {
    let token = match args.name {
        "consul_token_file" => Token::file(&args::path(args.cf, args.words[0])?),
        _ => Token::value(text(args.words[0])?),
    };
    token.map_err(|e| format!("invalid token in \"{}\" directive: {e}", args.name))
}

/// Consul's own limits: it caps `wait` at ten minutes.
fn wait(directive: &str, word: &[u8]) -> Parsed<Duration> {
    let wait = args::positive_time(directive, word)?;
    let fits = (1..=600).contains(&wait.as_secs());
    if fits { Ok(wait) } else { Err(must_be(directive, word, "from 1s to 10m")) }
}

/// Not more often than a watch may ask in vain.
fn poll(directive: &str, word: &[u8]) -> Parsed<Duration> {
    let poll = args::positive_time(directive, word)?;
    let fits = poll >= Duration::from_millis(500);
    if fits { Ok(poll) } else { Err(must_be(directive, word, "at least 500ms")) }
}

fn retry(args: &Args<'_>) -> Parsed<(Duration, Duration)> {
    let time = |word: &[u8]| args::positive_time(args.name, word);
    let (min, max) = (time(args.words[0])?, time(args.words[1])?);
    if min > max {
        let shown = invalid(args.name, args.words[1]);
        return Err(format!("{shown}, the longest pause is shorter than the shortest"));
    }
    Ok((min, max))
}

/// `consul_balance method` or `consul_balance hash key [consistent]`.
fn balance(args: &Args<'_>) -> Parsed<Balance> {
    let (directive, words) = (args.name, args.words);
    let consistent = match *words {
        [b"hash"] => return Err(format!("no key of \"hash\" in \"{directive}\" directive")),
        [b"hash", _] => false,
        [b"hash", _, b"consistent"] => true,
        [_, word, ..] if words[0] != b"hash" => return Err(invalid(directive, word)),
        [_, _, word] => return Err(invalid(directive, word)),
        _ => {
            let name = text(words[0])?;
            let method = Method::from_name(name).ok_or_else(|| {
                format!(
                    "unknown method \"{name}\" in \"{directive}\" directive, it must be \
                     \"round_robin\", \"random\", \"least_conn\", \"least_time\" or \"hash\""
                )
            })?;
            return Ok(Balance { method, key: None });
        }
    };
    let key = complex_value(args.cf, directive, words[1])?;
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
