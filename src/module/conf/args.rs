//! A directive as its handler gets it, and the values that need nginx to be read.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::ptr::NonNull;

use nginx_consul_core::directives::words::{Words, duplicate, invalid, text};
use nginx_sys::{
    NGX_LOG_EMERG, ngx_conf_full_name, ngx_conf_t, ngx_http_compile_complex_value,
    ngx_http_compile_complex_value_t, ngx_http_complex_value_t, ngx_http_upstream_srv_conf_t,
    ngx_pcalloc, ngx_str_t,
};

use crate::ffi::{self, CONF_ERROR, CONF_OK, OK, bytes, str_over};

pub(super) use nginx_consul_core::directives::words::Parsed;

/// A directive as it stands in the configuration.
pub(super) struct Args<'a> {
    pub(super) cf: *mut ngx_conf_t,
    pub(super) words: Words<'a>,
}

/// Reports what a handler found wrong, with file and line.
pub(super) fn finish(cf: *mut ngx_conf_t, result: Parsed) -> *mut c_char {
    match result {
        Ok(()) => CONF_OK,
        Err(error) => {
            ngx::ngx_conf_log_error!(NGX_LOG_EMERG, cf, "{error}");
            CONF_ERROR
        }
    }
}

/// Reads the directive's only word.
pub(super) fn one<T>(
    parse: impl FnOnce(&str, &[u8]) -> Parsed<T>,
) -> impl FnOnce(&Args<'_>) -> Parsed<T> {
    |args| parse(args.words.name, args.words.first())
}

/// Reads the directive's words.
pub(super) fn all<T>(
    parse: impl FnOnce(&Words<'_>) -> Parsed<T>,
) -> impl FnOnce(&Args<'_>) -> Parsed<T> {
    |args| parse(&args.words)
}

/// Stores the value of a directive that may stand once in its block.
pub(super) fn once<T>(
    args: &Args<'_>,
    field: &mut Option<T>,
    parse: impl FnOnce(&Args<'_>) -> Parsed<T>,
) -> Parsed {
    let value = parse(args)?;
    if field.is_some() {
        return Err(duplicate(args.words.name));
    }
    *field = Some(value);
    Ok(())
}

/// Adds the values of a directive that may stand several times in its block.
pub(super) fn add<T>(
    args: &Args<'_>,
    field: &mut Option<Vec<T>>,
    parse: impl FnOnce(&Args<'_>) -> Parsed<Vec<T>>,
) -> Parsed {
    field.get_or_insert_default().extend(parse(args)?);
    Ok(())
}

/// Where the directive stands that is being read, as `file:line`.
pub(super) fn place(cf: *mut ngx_conf_t) -> String {
    // SAFETY: while a directive handler runs, `conf_file` is the file that is being read; it is
    // null for `-g`, which can't hold what is asked about.
    let Some(file) = (unsafe { (*cf).conf_file.as_ref() }) else { return String::new() };
    // SAFETY: the name of a file that is open.
    format!("{}:{}", String::from_utf8_lossy(unsafe { bytes(&file.file.name) }), file.line)
}

/// The `upstream` that is being read.
///
/// # Safety
///
/// `cf` is that of a directive within `upstream`.
pub(super) unsafe fn upstream_of<'a>(cf: *mut ngx_conf_t) -> &'a mut ngx_http_upstream_srv_conf_t {
    // SAFETY: ngx_http_upstream() has put its configuration into the context of the block.
    unsafe {
        let srv_conf = ffi::http_context(cf).srv_conf;
        &mut *ffi::conf_of(srv_conf, &raw const nginx_sys::ngx_http_upstream_module)
    }
}

/// The absolute path of a file that a directive names, relative to the configuration's directory.
pub(super) fn path(cf: *mut ngx_conf_t, word: &[u8]) -> Parsed<PathBuf> {
    full_path(cf, word, 1)
}

/// The absolute path of a file that nginx writes, relative to its prefix.
pub(super) fn prefix_path(cf: *mut ngx_conf_t, word: &[u8]) -> Parsed<PathBuf> {
    full_path(cf, word, 0)
}

fn full_path(cf: *mut ngx_conf_t, word: &[u8], conf_prefix: usize) -> Parsed<PathBuf> {
    let mut name: ngx_str_t = str_over(word);
    // SAFETY: `cf` is the handler's own.
    let found = unsafe { ngx_conf_full_name((*cf).cycle, &mut name, conf_prefix) };
    if found != OK {
        return Err("ran out of memory".into());
    }
    // SAFETY: the new name is in the pool of `cf`.
    Ok(PathBuf::from(text(unsafe { bytes(&name) })?))
}

/// The content of the file that a directive names.
pub(super) fn file(args: &Args<'_>) -> Parsed<Vec<u8>> {
    let path = path(args.cf, args.words.first())?;
    std::fs::read(&path).map_err(|e| {
        format!("cannot read \"{}\" of the \"{}\" directive ({e})", path.display(), args.words.name)
    })
}

/// A value with variables; nginx has logged what is wrong with it.
pub(super) fn complex_value(
    cf: *mut ngx_conf_t,
    directive: &str,
    word: &[u8],
) -> Parsed<NonNull<ngx_http_complex_value_t>> {
    let size = size_of::<ngx_http_complex_value_t>();
    // SAFETY: `cf` is that of the running handler; its pool lives as long as the configuration.
    let value = unsafe { ngx_pcalloc((*cf).pool, size) }.cast::<ngx_http_complex_value_t>();
    let compiled = NonNull::new(value).ok_or_else(|| "ran out of memory".to_owned())?;
    let mut word_str = str_over(word);
    // SAFETY: all zeros are an empty ngx_http_compile_complex_value_t, as in nginx's own modules.
    let mut compile: ngx_http_compile_complex_value_t =
        unsafe { MaybeUninit::zeroed().assume_init() };
    compile.cf = cf;
    compile.value = &mut word_str;
    compile.complex_value = value;
    // SAFETY: the words of a directive lie in the pool of `cf`, as what is made of them.
    match unsafe { ngx_http_compile_complex_value(&mut compile) } {
        OK => Ok(compiled),
        _ => Err(invalid(directive, word)),
    }
}
