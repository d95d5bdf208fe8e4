//! Lines for nginx's error log.

use std::marker::PhantomData;
use std::ptr::NonNull;

use nginx_consul_core::model::Level;
use nginx_consul_core::text::{beginning, printable};
use nginx_sys::{NGX_LOG_ERR, NGX_LOG_INFO, NGX_LOG_NOTICE, NGX_LOG_WARN, ngx_log_t};

/// Longest text of a line, in bytes; nginx cuts lines at 2048, in the middle of a character too.
const MAX_LINE: usize = 1900;

/// A line from the watch threads.
pub(crate) use nginx_consul_core::table_writer::Line;

/// A log, for the main thread.
#[derive(Clone, Copy)]
pub(crate) struct Log<'l> {
    log: NonNull<ngx_log_t>,
    life: PhantomData<&'l ngx_log_t>,
}

impl Log<'_> {
    /// # Safety
    ///
    /// `log` is a log of nginx's, and is there as long as the lifetime.
    pub(crate) unsafe fn new(log: *mut ngx_log_t) -> Self {
        // SAFETY: nginx has a log for all that has a pointer to one.
        Log { log: unsafe { NonNull::new_unchecked(log) }, life: PhantomData }
    }

    pub(crate) fn as_ptr(self) -> *mut ngx_log_t {
        self.log.as_ptr()
    }

    /// Writes a line.
    pub(crate) fn write(self, (level, text): &Line) {
        let level = match level {
            Level::Error => NGX_LOG_ERR,
            Level::Warn => NGX_LOG_WARN,
            Level::Notice => NGX_LOG_NOTICE,
            Level::Info => NGX_LOG_INFO,
        };
        // The texts are escaped where they are made; this is the last place to see to it.
        let text = printable(text);
        ngx::ngx_log_error!(level, self.as_ptr(), "consul: {}", beginning(&text, MAX_LINE));
    }
}
