//! Values of directives, in nginx's formats and with nginx's wording of errors.

use std::ffi::c_char;
use std::path::PathBuf;
use std::time::Duration;

use nginx_sys::{
    NGX_LOG_EMERG, ngx_conf_full_name, ngx_conf_t, ngx_parse_size, ngx_parse_time, ngx_str_t,
};

use crate::ffi::{CONF_ERROR, CONF_OK, bytes, str_over};

/// What a directive handler answers; the text gets ` in file:line` from nginx.
pub(crate) type Parsed<T = ()> = Result<T, String>;

/// A directive as it stands in the configuration.
pub(crate) struct Args<'a> {
    pub(crate) cf: *mut ngx_conf_t,
    /// Its name.
    pub(crate) name: &'a str,
    /// The words after the name.
    pub(crate) words: &'a [&'a [u8]],
}

/// Reports what a handler found wrong, with file and line.
pub(crate) fn finish(cf: *mut ngx_conf_t, result: Parsed) -> *mut c_char {
    match result {
        Ok(()) => CONF_OK,
        Err(error) => {
            ngx::ngx_conf_log_error!(NGX_LOG_EMERG, cf, "{error}");
            CONF_ERROR
        }
    }
}

/// What reads a directive with one word.
pub(super) fn one<T>(
    parse: impl FnOnce(&str, &[u8]) -> Parsed<T>,
) -> impl FnOnce(&Args<'_>) -> Parsed<T> {
    |args| parse(args.name, args.words[0])
}

/// Stores the value of a directive that may stand once in its block.
pub(super) fn once<T>(
    args: &Args<'_>,
    place: &mut Option<T>,
    parse: impl FnOnce(&Args<'_>) -> Parsed<T>,
) -> Parsed {
    let value = parse(args)?;
    if place.is_some() {
        return Err(duplicate(args.name));
    }
    *place = Some(value);
    Ok(())
}

/// Adds the values of a directive that may stand several times in its block.
pub(super) fn add<T>(
    args: &Args<'_>,
    place: &mut Option<Vec<T>>,
    parse: impl FnOnce(&Args<'_>) -> Parsed<Vec<T>>,
) -> Parsed {
    place.get_or_insert_default().extend(parse(args)?);
    Ok(())
}

/// Where the directive stands that is being read, as `file:line`.
pub(crate) fn place(cf: *mut ngx_conf_t) -> String {
    // SAFETY: while a directive handler runs, `conf_file` is the file that is being read; it is
    // null for `-g`, which can't hold what is asked about.
    unsafe {
        let Some(file) = (*cf).conf_file.as_ref() else { return String::new() };
        format!("{}:{}", String::from_utf8_lossy(bytes(&file.file.name)), file.line)
    }
}

impl Args<'_> {
    /// Has `set` take each `name=value` from the word of this number on; none but tags may stand
    /// twice. It answers what is wrong
    /// with the value, if more can be said than that it is invalid.
    pub(crate) fn parameters(
        &self,
        from: usize,
        mut set: impl FnMut(&str, &str) -> Result<(), Option<&'static str>>,
    ) -> Parsed {
        let mut seen = Vec::new();
        for word in &self.words[from..] {
            let (name, value) =
                text(word)?.split_once('=').ok_or_else(|| invalid(self.name, word))?;
            if name != "tag" && seen.contains(&name) {
                return Err(duplicate(&format!("{} {name}", self.name)));
            }
            seen.push(name);
            set(name, value).map_err(|why| match why {
                Some(what) => must_be(self.name, word, what),
                None => invalid(self.name, word),
            })?;
        }
        Ok(())
    }
}

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
        _ => Err(must_be(directive, word, "\"on\" or \"off\"")),
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

/// The content of the file that a directive names.
pub(super) fn file(args: &Args<'_>) -> Parsed<Vec<u8>> {
    let path = path(args.cf, args.words[0])?;
    std::fs::read(&path).map_err(|e| {
        format!("cannot read \"{}\" of the \"{}\" directive ({e})", path.display(), args.name)
    })
}

pub(crate) fn invalid(directive: &str, word: &[u8]) -> String {
    format!("invalid value \"{}\" in \"{directive}\" directive", String::from_utf8_lossy(word))
}

pub(super) fn must_be(directive: &str, word: &[u8], what: &str) -> String {
    format!("{}, it must be {what}", invalid(directive, word))
}

/// nginx's own words.
pub(crate) fn duplicate(directive: &str) -> String {
    format!("\"{directive}\" directive is duplicate")
}
