//! A directive as its handler gets it, and the values that need nginx to be read.

use std::ffi::c_char;
use std::path::PathBuf;
use std::ptr::NonNull;

use nginx_consul_core::consul::tls::MAX_PEM;
use nginx_consul_core::directives::words::{Words, duplicate, invalid, text};
use nginx_consul_core::file;
use nginx_sys::{NGX_LOG_EMERG, ngx_http_complex_value_t};

use crate::ffi::{Base, CONF_ERROR, CONF_OK, Cf, NoMemory};

pub(super) use nginx_consul_core::directives::words::Parsed;

/// A directive as it stands in the configuration.
pub(super) struct Args<'a> {
    pub(super) cf: Cf<'a>,
    pub(super) words: Words<'a>,
}

/// Reports what a handler found wrong, with file and line.
pub(super) fn finish(cf: Cf<'_>, result: Parsed) -> *mut c_char {
    match result {
        Ok(()) => CONF_OK,
        Err(error) => {
            ngx::ngx_conf_log_error!(NGX_LOG_EMERG, cf.as_ptr(), "{error}");
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

/// The absolute path of a file that a directive names.
pub(super) fn path(cf: Cf<'_>, word: &[u8], base: Base) -> Parsed<PathBuf> {
    let path = cf.full_path(word, base).map_err(|NoMemory| NoMemory.to_string())?;
    Ok(PathBuf::from(text(path)?))
}

/// The PEM content of the file that a directive names.
pub(super) fn pem(args: &Args<'_>) -> Parsed<Vec<u8>> {
    let path = path(args.cf, args.words.first(), Base::Configuration)?;
    file::read(&path, MAX_PEM).map_err(|e| {
        format!("cannot read \"{}\" of the \"{}\" directive ({e})", path.display(), args.words.name)
    })
}

/// A value with variables; nginx has logged what is wrong with it.
pub(super) fn complex_value(
    args: &Args<'_>,
    word: &[u8],
) -> Parsed<NonNull<ngx_http_complex_value_t>> {
    let value = args.cf.complex_value(word).map_err(|NoMemory| NoMemory.to_string())?;
    value.ok_or_else(|| invalid(args.words.name, word))
}
