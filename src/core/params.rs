//! nginx's parameters of a `server`, as an instance sets them.
//!
//! An instance can set them in its `Service.Meta`: `nginx_weight`, `nginx_max_fails`, `nginx_fail_timeout`, `nginx_max_conns`, `nginx_slow_start`, `nginx_backup`
//! and `nginx_down`, with the values of nginx's `server` directive
//! (<https://nginx.org/en/docs/http/ngx_http_upstream_module.html#server>); the last two are `true`
//! or `false`.

use std::num::NonZeroU16;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Prefix of the keys in `Service.Meta`.
pub const PREFIX: &str = "nginx_";

/// Parameters of one instance; `None`: those of the upstream apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Params {
    /// In place of `Weights.Passing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<NonZeroU16>,
    /// Failures within `fail_timeout` that take it out; 0 never does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_fails: Option<u32>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_timeout: Option<u32>,
    /// Most requests in flight; 0 is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_conns: Option<u32>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<u32>,
    /// Only used while no other instance of its datacenter can be.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub backup: bool,
    /// Not used at all.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub down: bool,
}

/// Why a parameter is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadParam {
    /// There is no parameter of that name.
    Name,
    /// nginx would not take the value.
    Value,
}

/// The largest number of a parameter; `u32::MAX` stands for "not set" in the table.
const MAX: u32 = u32::MAX - 1;

impl Params {
    /// Whether the instance sets no parameter.
    pub fn is_default(&self) -> bool {
        *self == Params::default()
    }

    /// Names of the parameters.
    pub const NAMES: [&'static str; 7] =
        ["weight", "max_fails", "fail_timeout", "max_conns", "slow_start", "backup", "down"];

    /// Takes one parameter by its name, which is one of [`Params::NAMES`].
    ///
    /// # Errors
    ///
    /// See [`BadParam`]; nothing is changed then.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), BadParam> {
        let invalid = || BadParam::Value;
        let number = || value.parse().ok().filter(|&n| n <= MAX && is_number(value));
        match name {
            "weight" => {
                let weight = number().and_then(|n| NonZeroU16::new(u16::try_from(n).ok()?));
                self.weight = Some(weight.ok_or_else(invalid)?);
            }
            "max_fails" => self.max_fails = Some(number().ok_or_else(invalid)?),
            "max_conns" => self.max_conns = Some(number().ok_or_else(invalid)?),
            "fail_timeout" => {
                let time = time(value).filter(is_whole).ok_or_else(invalid)?.as_secs();
                self.fail_timeout = Some(u32::try_from(time).unwrap_or(MAX).min(MAX));
            }
            "slow_start" => {
                let time = time(value).ok_or_else(invalid)?.as_millis();
                self.slow_start = Some(u32::try_from(time).unwrap_or(MAX).min(MAX));
            }
            "backup" => self.backup = flag(value).ok_or_else(invalid)?,
            "down" => self.down = flag(value).ok_or_else(invalid)?,
            _ => return Err(BadParam::Name),
        }
        Ok(())
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Whether these are whole seconds: nginx counts `fail_timeout` in them.
fn is_whole(time: &Duration) -> bool {
    time.subsec_nanos() == 0
}

fn flag(value: &str) -> Option<bool> {
    match value {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// A time as `ngx_parse_time()` reads it: numbers with units from years down to milliseconds; without
/// a unit, seconds.
pub fn time(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 8] = [
        ("y", 365 * 86_400_000),
        ("M", 30 * 86_400_000),
        ("w", 7 * 86_400_000),
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
        ("ms", 1),
    ];
    let mut rest = text;
    let mut after = 0;
    let mut total = 0u64;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = &rest[digits..digits + unit_end];
        let place = match unit {
            "" => 6,
            unit => UNITS.iter().position(|(name, _)| *name == unit)?,
        };
        if place < after {
            return None;
        }
        after = place + 1;
        total = total.checked_add(number.checked_mul(UNITS[place].1)?)?;
        rest = rest[digits + unit_end..].trim_start_matches(' ');
    }
    (after > 0).then(|| Duration::from_millis(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        let mut params = Params::default();
        for (key, value) in pairs {
            params.set(key, value).unwrap();
        }
        params
    }

    #[test]
    fn an_instance_says_what_nginx_s_server_line_would() {
        let all = params(&[
            ("weight", "5"),
            ("max_fails", "0"),
            ("fail_timeout", "1m30s"),
            ("max_conns", "100"),
            ("slow_start", "1500ms"),
            ("backup", "true"),
            ("down", "false"),
        ]);
        let expected = Params {
            weight: NonZeroU16::new(5),
            max_fails: Some(0),
            fail_timeout: Some(90),
            max_conns: Some(100),
            slow_start: Some(1500),
            backup: true,
            down: false,
        };
        assert_eq!(all, expected);
    }

    #[test]
    fn a_bad_value_changes_nothing() {
        for (key, value) in [
            ("weight", "0"),
            ("weight", "65536"),
            ("weight", "+5"),
            ("max_fails", "-1"),
            ("max_conns", "4294967295"),
            ("fail_timeout", "10 parsecs"),
            ("fail_timeout", "1s500ms"),
            ("slow_start", ""),
            ("backup", "yes"),
        ] {
            let mut params = Params::default();
            assert_eq!(params.set(key, value), Err(BadParam::Value), "{key}={value}");
            assert_eq!(params, Params::default());
        }
        assert_eq!(Params::default().set("wieght", "5"), Err(BadParam::Name));
    }

    #[test]
    fn times_are_nginx_s() {
        for (text, ms) in
            [("10", 10_000), ("10s", 10_000), ("1h 5m", 3_900_000), ("1d", 86_400_000), ("0", 0)]
        {
            assert_eq!(time(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "5s1m", "1s1s", "1.5s", "-1s", "5 5"] {
            assert_eq!(time(text), None, "{text}");
        }
    }
}
