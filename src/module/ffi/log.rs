//! Lines for nginx's error log.

use nginx_consul_core::model::Level;
use nginx_consul_core::text::{beginning, printable};
use nginx_sys::{NGX_LOG_ERR, NGX_LOG_INFO, NGX_LOG_NOTICE, NGX_LOG_WARN, ngx_log_t};

/// Longest text of a line, in bytes; nginx cuts lines at 2048, in the middle of a character too.
const MAX_LINE: usize = 1900;

/// A line from the watch threads.
pub(crate) type Line = (Level, String);

/// Writes a line. Only from the process's main thread.
///
/// # Safety
///
/// `log` is a log of the current cycle.
pub(crate) unsafe fn write(log: *mut ngx_log_t, (level, text): &Line) {
    let level = match level {
        Level::Error => NGX_LOG_ERR,
        Level::Warn => NGX_LOG_WARN,
        Level::Notice => NGX_LOG_NOTICE,
        Level::Info => NGX_LOG_INFO,
    };
    // The texts are escaped where they are made; this is the last place to see to it.
    let text = printable(text);
    ngx::ngx_log_error!(level, log, "consul: {}", beginning(&text, MAX_LINE));
}
