//! Lines for nginx's error log.

use nginx_consul_core::sync::Level;
use nginx_sys::{NGX_LOG_ERR, NGX_LOG_INFO, NGX_LOG_NOTICE, NGX_LOG_WARN, ngx_log_t};

/// A line from the watch threads.
pub(crate) struct Line {
    pub(crate) level: Level,
    pub(crate) text: String,
}

impl Line {
    /// Writes it. Only from the process's main thread.
    ///
    /// # Safety
    ///
    /// `log` is the log of the current cycle.
    pub(crate) unsafe fn write(&self, log: *mut ngx_log_t) {
        let level = match self.level {
            Level::Error => NGX_LOG_ERR,
            Level::Warn => NGX_LOG_WARN,
            Level::Notice => NGX_LOG_NOTICE,
            Level::Info => NGX_LOG_INFO,
        };
        // The macro's buffer is as long as nginx's own; longer lines are cut as nginx's are.
        ngx::ngx_log_error!(level, log, "consul: {}", self.text);
    }
}
