//! Values of directives, in nginx's formats and with nginx's wording of errors.

use std::path::PathBuf;
use std::time::Duration;

use nginx_sys::{ngx_conf_full_name, ngx_conf_t, ngx_parse_size, ngx_parse_time, ngx_str_t};

use crate::ffi::{bytes, str_over};

/// What a directive handler answers; the text gets ` in file:line` from nginx.
pub(crate) type Parsed<T = ()> = Result<T, String>;

/// A word as text.
pub(crate) fn text(word: &[u8]) -> Parsed<&str> {
    std::str::from_utf8(word)
        .map_err(|_| format!("invalid UTF-8 in \"{}\"", String::from_utf8_lossy(word)))
}

/// A time as `ngx_conf_set_msec_slot()` reads it.
pub(crate) fn time(directive: &str, word: &[u8]) -> Parsed<Duration> {
    // SAFETY: ngx_parse_time() only reads the string.
    let ms = unsafe { ngx_parse_time(&mut str_over(word), 0) };
    u64::try_from(ms).map(Duration::from_millis).map_err(|_| invalid(directive, word))
}

/// A time that is not zero.
pub(crate) fn positive_time(directive: &str, word: &[u8]) -> Parsed<Duration> {
    time(directive, word)
        .and_then(|t| if t.is_zero() { Err(invalid(directive, word)) } else { Ok(t) })
}

/// A size as `ngx_conf_set_size_slot()` reads it.
pub(crate) fn size(directive: &str, word: &[u8]) -> Parsed<usize> {
    // SAFETY: ngx_parse_size() only reads the string.
    let size = unsafe { ngx_parse_size(&mut str_over(word)) };
    usize::try_from(size).ok().filter(|&s| s > 0).ok_or_else(|| invalid(directive, word))
}

/// A whole number from `min` on.
pub(crate) fn number(directive: &str, word: &[u8], min: u32) -> Parsed<u32> {
    let digits = word.iter().all(u8::is_ascii_digit);
    let value = text(word)?.parse().ok().filter(|&n| digits && n >= min);
    value.ok_or_else(|| invalid(directive, word))
}

/// `on` or `off`.
pub(crate) fn flag(directive: &str, word: &[u8]) -> Parsed<bool> {
    match word {
        b"on" => Ok(true),
        b"off" => Ok(false),
        _ => Err(format!(
            "invalid value \"{}\" in \"{directive}\" directive, it must be \"on\" or \"off\"",
            String::from_utf8_lossy(word)
        )),
    }
}

/// The absolute path of a file that a directive names, relative to the configuration's folder.
pub(crate) fn path(cf: *mut ngx_conf_t, word: &[u8]) -> Parsed<PathBuf> {
    full_path(cf, word, 1)
}

/// The absolute path of a file that nginx writes, relative to its prefix.
pub(crate) fn prefix_path(cf: *mut ngx_conf_t, word: &[u8]) -> Parsed<PathBuf> {
    full_path(cf, word, 0)
}

fn full_path(cf: *mut ngx_conf_t, word: &[u8], conf_prefix: usize) -> Parsed<PathBuf> {
    let mut name: ngx_str_t = str_over(word);
    // SAFETY: `cf` is the handler's own; the new name is in its pool.
    let full = unsafe {
        if ngx_conf_full_name((*cf).cycle, &mut name, conf_prefix) != nginx_sys::NGX_OK as isize {
            return Err("no memory".into());
        }
        bytes(&name)
    };
    Ok(PathBuf::from(text(full)?))
}

/// The content of a file that a directive names.
pub(crate) fn file(cf: *mut ngx_conf_t, directive: &str, word: &[u8]) -> Parsed<Vec<u8>> {
    let path = path(cf, word)?;
    std::fs::read(&path).map_err(|e| {
        format!("cannot read \"{}\" of the \"{directive}\" directive ({e})", path.display())
    })
}

pub(crate) fn invalid(directive: &str, word: &[u8]) -> String {
    format!("invalid value \"{}\" in \"{directive}\" directive", String::from_utf8_lossy(word))
}

/// nginx's own words.
pub(crate) fn duplicate(directive: &str) -> String {
    format!("\"{directive}\" directive is duplicate")
}
