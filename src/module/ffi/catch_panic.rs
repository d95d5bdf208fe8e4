//! Panics, which are defects of ours: none unwinds into C, and each is in nginx's error log.

use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nginx_consul_core::text::{beginning, printable};
use nginx_sys::{NGX_LOG_ALERT, ngx_cycle};

/// Longest message, in bytes.
const MAX_MESSAGE: usize = 1000;

/// Runs a callback's body. A panic becomes `failed` instead of unwinding into C, which would abort
/// the worker; the hook of [`log_panics`] has logged it.
pub(crate) fn catch_panic<T>(failed: T, body: impl FnOnce() -> T) -> T {
    panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or(failed)
}

/// From here on each panic of a process's main thread is logged, one a second at most. Those of
/// other threads go to stderr, since nginx's log is for the main thread only.
pub(crate) fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let to_stderr = panic::take_hook();
        panic::set_hook(Box::new(
            move |info| {
                if is_main_thread() { log(info) } else { to_stderr(info) }
            },
        ));
    });
}

/// Also after a fork.
fn is_main_thread() -> bool {
    // SAFETY: these only ask who the caller is.
    unsafe { libc::gettid() == libc::getpid() }
}

fn log(info: &PanicHookInfo<'_>) {
    static SECOND: AtomicU64 = AtomicU64::new(0);
    static UNSAID: AtomicU64 = AtomicU64::new(0);
    // SAFETY: nginx sets both before it loads a module, and its main thread moves them.
    let (now, log) = unsafe { (nginx_sys::ngx_current_msec as u64 / 1000, (*ngx_cycle).log) };
    if SECOND.swap(now, Relaxed) == now {
        UNSAID.fetch_add(1, Relaxed);
        return;
    }
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let text = printable(text.unwrap_or_default());
    let (text, unsaid) = (beginning(&text, MAX_MESSAGE), UNSAID.swap(0, Relaxed));
    ngx::ngx_log_error!(
        NGX_LOG_ALERT,
        log,
        "consul: panicked at {place}: {text} ({unsaid} more since the last such line)"
    );
}
