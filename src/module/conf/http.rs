//! What holds for the whole of `http`.

use std::mem::offset_of;
use std::time::Duration;

use nginx_sys::ngx_str_t;

use super::api::ApiLocation;
use crate::upstreams::{StateFile, Upstreams};

/// The module's main configuration.
#[derive(Default)]
#[repr(C)]
pub(crate) struct HttpConf {
    /// What is made of it once all is read.
    pub(crate) upstreams: Upstreams,
    /// `consul_zone`: name and size in bytes.
    pub(crate) zone: Option<(ngx_str_t, usize)>,
    /// `consul_init_timeout`.
    pub(crate) init_timeout: Option<Duration>,
    /// `consul_connections`.
    pub(crate) connections: Option<usize>,
    /// `consul_max_services`.
    pub(crate) max_services: Option<usize>,
    /// `consul_state`; `Some(None)` is `off`.
    pub(crate) state: Option<Option<StateFile>>,
    /// The locations with `consul_api`.
    pub(super) apis: Vec<ApiLocation>,
}

// Upstreams::of_cycle() takes it for its first member.
const _: () = assert!(offset_of!(HttpConf, upstreams) == 0);
