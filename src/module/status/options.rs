//! The directives of a `location` about its status.

use nginx_consul_core::directives::status::Metrics;
use nginx_consul_core::status::ready::Demand;

use crate::ffi::HttpLocConf;

/// `Content-Type` of plain text.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// The module's configuration of a `location`.
#[derive(Default)]
pub(crate) struct LocationOptions {
    /// `consul_status`.
    pub(crate) status: Option<Metrics>,
    /// `consul_status ready`.
    pub(crate) ready: Option<Demand>,
}

// SAFETY: nginx keeps what the module's create_loc_conf makes, which is this.
unsafe impl HttpLocConf for LocationOptions {}
