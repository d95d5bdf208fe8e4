//! The way from the workers to worker 0.

use std::sync::OnceLock;

use nginx_consul_core::named::Channel;
use nginx_sys::{NGX_LOG_ALERT, ngx_log_t};

/// From the workers to worker 0: the same for all configurations of a master, so that a worker
/// that ends is still heard.
static CHANNEL: OnceLock<Channel> = OnceLock::new();

/// Where a worker asks for services that requests name.
pub(crate) fn get() -> Option<&'static Channel> {
    CHANNEL.get()
}

/// Before the first fork that needs it.
pub(crate) fn open(log: *mut ngx_log_t) {
    if CHANNEL.get().is_none() {
        match Channel::new() {
            Ok(channel) => drop(CHANNEL.set(channel)),
            Err(e) => {
                ngx::ngx_log_error!(
                    NGX_LOG_ALERT,
                    log,
                    "consul: requests can't name services: no socket pair ({e})"
                );
            }
        }
    }
}
