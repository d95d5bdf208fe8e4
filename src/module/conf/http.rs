//! The module's configuration of `http`.

use std::mem::offset_of;

use nginx_sys::ngx_http_core_loc_conf_t;

use crate::upstreams::Upstreams;

/// The module's main configuration.
#[derive(Default)]
#[repr(C)]
pub(crate) struct HttpConf {
    /// What is made of the directives once all are read.
    pub(super) upstreams: Upstreams,
    /// The locations with `consul_api`.
    pub(super) apis: Vec<ApiLocation>,
}

// Upstreams::of_cycle() takes it for its first member.
const _: () = assert!(offset_of!(HttpConf, upstreams) == 0);

/// A location with `consul_api`.
pub(super) struct ApiLocation {
    pub(super) core: *mut ngx_http_core_loc_conf_t,
    /// Where the directive stands, as `file:line`.
    pub(super) place: String,
}
