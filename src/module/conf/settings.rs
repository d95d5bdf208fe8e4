//! The directives with a value: one row for each.

use std::time::Duration;

use nginx_consul_core::address::IpNet;
use nginx_consul_core::consul::removal::{OnEmpty, Policy};
use nginx_consul_core::consul::server::Server;
use nginx_consul_core::consul::token::{Token, TokenError};
use nginx_consul_core::directives::client::{poll, retry, servers, wait};
use nginx_consul_core::directives::on_demand::{AllowService, UnknownService};
use nginx_consul_core::directives::removal::{max_stale, networks, on_empty, percent};
use nginx_consul_core::directives::words::{self, flag, positive_time, size, text, time};
use nginx_consul_core::directives::{balance, words::Parsed};
use nginx_sys::{
    NGX_CONF_1MORE as MORE, NGX_CONF_TAKE1 as TAKE1, NGX_CONF_TAKE2 as TAKE2,
    NGX_CONF_TAKE3 as TAKE3, NGX_CONF_TAKE12 as TAKE12, NGX_LOG_WARN, ngx_str_t,
};

use super::args::{Args, add, all, complex_value, once, one, path, pem};
use super::row::{HTTP, HTTP_AND_UPSTREAM, Row};
use super::state_file::state_file;
use crate::ffi::{self, Base};
use crate::peer::Balance;
use nginx_consul_core::table_writer::StateFile;

/// A row is a field of [`Settings`], its type and its default, if there is one; then each directive
/// that fills it: where it may stand, its name, how many words it takes, whether it may stand
/// `once` in a block or several `add` up, and what reads the words. README.md documents each
/// directive under its name. An `upstream` without the directive takes the value of `http`.
macro_rules! settings {
    ($(
        $(#[$doc:meta])*
        $field:ident: $type:ty $([$default:expr])? =
            $($context:ident $name:literal $count:expr, $store:ident $read:expr),+;
    )+) => {
        /// What the directives of `http` or of one `upstream` set; `None`: not set there.
        #[derive(Clone, Default)]
        pub(crate) struct Settings {
            $($(#[$doc])* pub(super) $field: Option<$type>,)+
        }

        /// The directives that fill [`Settings`].
        pub(super) const DIRECTIVES: &[Row<Settings>] = &[$($(
            Row {
                name: $name,
                kind: $context | $count,
                set: |args, settings| $store(args, &mut settings.$field, $read),
            },
        )+)+];

        impl Settings {
            $($(
                /// The value, or the default.
                pub(super) fn $field(&self) -> $type {
                    self.$field.clone().unwrap_or_else(|| $default)
                }
            )?)+

            fn or_each(self, other: Settings) -> Settings {
                Settings { $($field: self.$field.or(other.$field),)+ }
            }
        }
    };
}

settings! {
    /// Name and size in bytes.
    zone: (ngx_str_t, usize) = HTTP c"consul_zone" TAKE2, once zone;
    init_timeout: Duration [Duration::from_secs(2)] =
        HTTP c"consul_init_timeout" TAKE1, once one(time);
    connections: usize [64] = HTTP c"consul_connections" TAKE1, once one(number);
    max_services: usize [5000] = HTTP c"consul_max_services" TAKE1, once one(number);
    /// `Some(None)`: off.
    state_file: Option<StateFile> [None] = HTTP c"consul_state" TAKE12, once state_file;
    servers: Vec<Server> = HTTP_AND_UPSTREAM c"consul_server" MORE, once all(servers);
    token: Token =
        HTTP_AND_UPSTREAM c"consul_token" TAKE1, once token,
        HTTP_AND_UPSTREAM c"consul_token_file" TAKE1, once token;
    ssl_trusted: Vec<u8> = HTTP_AND_UPSTREAM c"consul_ssl_trusted_certificate" TAKE1, once pem;
    ssl_certificate: Vec<u8> = HTTP_AND_UPSTREAM c"consul_ssl_certificate" TAKE1, once pem;
    ssl_key: Vec<u8> = HTTP_AND_UPSTREAM c"consul_ssl_certificate_key" TAKE1, once pem;
    ssl_verify: bool [true] = HTTP_AND_UPSTREAM c"consul_ssl_verify" TAKE1, once one(flag);
    ssl_name: String =
        HTTP_AND_UPSTREAM c"consul_ssl_name" TAKE1, once one(|_, word| text(word).map(str::to_owned));
    wait: Duration [Duration::from_secs(60)] =
        HTTP_AND_UPSTREAM c"consul_wait" TAKE1, once one(wait);
    connect_timeout: Duration [Duration::from_secs(2)] =
        HTTP_AND_UPSTREAM c"consul_connect_timeout" TAKE1, once one(positive_time);
    retry: (Duration, Duration) [(Duration::from_millis(250), Duration::from_secs(30))] =
        HTTP_AND_UPSTREAM c"consul_retry" TAKE2, once all(retry);
    poll: Duration [Duration::from_secs(5)] =
        HTTP_AND_UPSTREAM c"consul_poll" TAKE1, once one(poll);
    /// A watch blocks for that long, so Consul's limits of `wait` hold.
    resolve: Duration [Duration::from_secs(30)] =
        HTTP_AND_UPSTREAM c"consul_resolve" TAKE1, once one(wait);
    /// An answer of 20,000 instances has about 15 MiB.
    max_body: usize [16 << 20] = HTTP_AND_UPSTREAM c"consul_max_body_size" TAKE1, once one(size);
    /// `Some(None)`: off. A follower that has not heard of its leader for 5 s, Consul's heartbeat
    /// timeout, starts an election: its data is not merely late.
    max_stale: Option<Duration> [Some(Duration::from_secs(5))] =
        HTTP_AND_UPSTREAM c"consul_max_stale" TAKE1, once one(max_stale);
    on_empty: OnEmpty [Policy::default().on_empty] =
        HTTP_AND_UPSTREAM c"consul_empty" TAKE12, once all(on_empty);
    /// Percent; `Some(None)`: off.
    max_removal: Option<u8> [None] =
        HTTP_AND_UPSTREAM c"consul_max_removal" TAKE1, once one(percent);
    allow: Vec<IpNet> [Vec::new()] = HTTP_AND_UPSTREAM c"consul_allow" MORE, add networks_of;
    deny: Vec<IpNet> [Vec::new()] = HTTP_AND_UPSTREAM c"consul_deny" MORE, add networks_of;
    balance: Balance =
        HTTP_AND_UPSTREAM c"consul_balance" TAKE1 | TAKE2 | TAKE3, once balance_of;
    /// Percent; `Some(None)`: off.
    panic: Option<u8> [None] = HTTP_AND_UPSTREAM c"consul_panic" TAKE1, once one(percent);
    allow_service: AllowService [AllowService::default()] =
        HTTP_AND_UPSTREAM c"consul_allow_service" MORE, once all(AllowService::parse);
    first_wait: Duration [Duration::from_secs(1)] =
        HTTP_AND_UPSTREAM c"consul_first_wait" TAKE1, once one(time);
    idle: Duration [Duration::from_secs(600)] =
        HTTP_AND_UPSTREAM c"consul_idle" TAKE1, once one(positive_time);
    unknown_service: UnknownService [UnknownService::default()] =
        HTTP_AND_UPSTREAM c"consul_unknown_service" TAKE12, once all(UnknownService::parse);
}

impl Settings {
    /// These settings; the others where these are not set.
    pub(super) fn or(&self, other: &Settings) -> Settings {
        let mut other = other.clone();
        // A certificate and its key are inherited together.
        if self.ssl_certificate.is_some() || self.ssl_key.is_some() {
            (other.ssl_certificate, other.ssl_key) = (None, None);
        }
        self.clone().or_each(other)
    }
}

/// The error names the file, never the token.
fn token(args: &Args<'_>) -> Parsed<Token> {
    let (name, word) = (args.words.name, args.words.first());
    let token = match name {
        "consul_token_file" => Token::file(&path(args.cf, word, Base::Configuration)?),
        _ => std::str::from_utf8(word).map_err(|_| TokenError::Invalid).and_then(Token::value),
    };
    token.map_err(|e| format!("invalid token in \"{name}\" directive: {e}"))
}

fn networks_of(args: &Args<'_>) -> Parsed<Vec<IpNet>> {
    let warn = |text| {
        ngx::ngx_conf_log_error!(NGX_LOG_WARN, args.cf.as_ptr(), "{text}");
    };
    networks(&args.words, warn)
}

fn balance_of(args: &Args<'_>) -> Parsed<Balance> {
    let (method, key) = balance::balance(&args.words)?;
    let key = key.map(|word| complex_value(args, word)).transpose()?;
    Ok(Balance { method, key })
}

/// Least size of a zone: eight pages hold a handful of instances.
const MIN_ZONE: usize = 128 * 1024;

/// `consul_zone name size`.
fn zone(args: &Args<'_>) -> Parsed<(ngx_str_t, usize)> {
    let (directive, zone) = (args.words.name, args.words.first());
    if zone.is_empty() {
        return Err(format!("empty zone name in \"{directive}\" directive"));
    }
    let size = size(directive, args.words.words.get(1).copied().unwrap_or_default())?;
    if size < MIN_ZONE {
        let zone = text(zone)?;
        return Err(format!(
            "zone \"{zone}\" in \"{directive}\" directive is too small, it must be at least 128k"
        ));
    }
    Ok((ffi::str_over(zone), size))
}

fn number(name: &str, word: &[u8]) -> Parsed<usize> {
    words::number(name, word, 1).map(|n| n as usize)
}
