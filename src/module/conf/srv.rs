//! The module's configuration of an `upstream`, and the defaults for all in `http`.

use std::mem::offset_of;
use std::ptr::NonNull;

use nginx_consul_core::directives::dynamic::Dynamic;
use nginx_consul_core::directives::methods::Directives;
use nginx_sys::ngx_http_complex_value_t;

use super::keepalive::KeepaliveConf;
use super::settings::Settings;
use crate::peer::{NginxMethod, Slot};

/// Of `http`, where only `settings` are filled, or of one `upstream`.
#[derive(Default)]
#[repr(C)]
pub(crate) struct SrvConf {
    /// What requests use; filled when the configuration was read.
    pub(super) slot: Slot,
    pub(super) settings: Settings,
    pub(super) dynamic: Option<DynamicConf>,
    /// `consul_keepalive`.
    pub(super) keepalive: Option<KeepaliveConf>,
    /// Directives of other modules.
    pub(super) directives: Directives,
}

// `peer` reads the slot at the beginning, and knows nothing of the rest.
const _: () = assert!(offset_of!(SrvConf, slot) == 0);

/// `consul_dynamic` of an `upstream`.
pub(super) struct DynamicConf {
    /// What the directive says.
    pub(super) says: Dynamic,
    /// The service's name, if it has variables.
    pub(super) by_request: Option<NonNull<ngx_http_complex_value_t>>,
    /// The upstream has `server` lines to fall back on.
    pub(super) has_fallback: bool,
    /// The load balancing method of nginx that stands before, and picks.
    pub(super) nginx_method: Option<NginxMethod>,
    /// How many [`Directives`] about load balancing stand before.
    pub(super) before: usize,
    /// Where the directive stands, as `file:line`.
    pub(super) place: String,
}
