//! A row of the table of directives.

use std::ffi::CStr;

use nginx_sys::{NGX_HTTP_MAIN_CONF, NGX_HTTP_UPS_CONF};

use super::args::{Args, Parsed};

/// Where a directive may stand.
pub(super) const HTTP: u32 = NGX_HTTP_MAIN_CONF;
pub(super) const UPSTREAM: u32 = NGX_HTTP_UPS_CONF;
pub(super) const HTTP_AND_UPSTREAM: u32 = HTTP | UPSTREAM;

/// A directive, and the function that reads its words into a `C`.
pub(super) struct Row<C> {
    pub(super) name: &'static CStr,
    /// Where it may stand, and with how many words.
    pub(super) kind: u32,
    pub(super) set: fn(&Args<'_>, &mut C) -> Parsed,
}
