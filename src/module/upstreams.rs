//! The live registry of a cycle: the upstreams that follow Consul, and what they share.
//!
//! `conf` fills it when the configuration has been read; nothing changes it afterwards. The status,
//! the API, the on-demand phase and the lifecycle read it. nginx keeps it as the first member of
//! the module's main configuration, so that none of them has to know the configuration.

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use nginx_consul_core::on_demand::Templates;
use nginx_consul_core::table::Table;
use nginx_consul_core::table_writer::StateFile;
use nginx_consul_core::watch::Plan;
use nginx_sys::{
    ngx_cycle_t, ngx_http_conf_ctx_t, ngx_http_upstream_srv_conf_t, ngx_module_t, ngx_shm_zone_t,
};

use crate::ffi::{self, HttpMainConf, srv_conf};
use crate::peer::{self, OnDemandUpstream, Slot, Upstream};
use crate::zone;

/// What a cycle's configuration has made.
#[derive(Default)]
pub(crate) struct Upstreams {
    /// What the watch threads do; `None` while no upstream follows Consul.
    pub(crate) plan: Option<Arc<Plan>>,
    /// The zone of the shared table; `None` while no upstream follows Consul.
    pub(crate) shm_zone: Option<NonNull<ngx_shm_zone_t>>,
    /// The number of this configuration in the zone; 0 until the master announces it.
    configuration: Cell<u32>,
    /// The upstreams whose service the configuration names.
    pub(crate) fixed: Vec<*mut ngx_http_upstream_srv_conf_t>,
    /// The upstreams whose service requests name, in the order of their templates.
    pub(crate) on_demand: Vec<*mut ngx_http_upstream_srv_conf_t>,
    /// What the watch threads do for names; `None` if no request can name a service.
    pub(crate) templates: Option<Arc<Templates>>,
    /// The modules that may send requests to on-demand upstreams.
    pub(crate) proxies: Vec<*const ngx_module_t>,
    /// `consul_connections`.
    pub(crate) connections: usize,
    /// `consul_init_timeout`.
    pub(crate) init_timeout: Duration,
    /// `consul_state`; `None` is `off`.
    pub(crate) state_file: Option<StateFile>,
}

// SAFETY: the main configuration that the module makes begins with it.
unsafe impl HttpMainConf for Upstreams {}

impl Upstreams {
    /// Those of a cycle; `None` if it has no `http` block.
    ///
    /// # Safety
    ///
    /// `cycle` is a cycle whose configuration was read, and it lives as long as `'a`.
    pub(crate) unsafe fn of_cycle<'a>(cycle: *mut ngx_cycle_t) -> Option<&'a Upstreams> {
        // SAFETY: conf_ctx has an element for every module's index; that of the http module is null
        // or its context.
        let context = unsafe {
            let context = *(*cycle).conf_ctx.add(nginx_sys::ngx_http_module.index);
            context.cast::<ngx_http_conf_ctx_t>().as_ref()?
        };
        // SAFETY: the main configuration begins with the registry; directive handlers, which alone
        // change it, have ended.
        unsafe { ffi::conf_of::<Upstreams>(context.main_conf, ffi::module()).as_ref() }
    }

    /// Whether no upstream follows Consul.
    pub(crate) fn is_empty(&self) -> bool {
        self.fixed.is_empty() && self.on_demand.is_empty()
    }

    /// The upstreams whose service the configuration names.
    pub(crate) fn fixed(&self) -> impl Iterator<Item = &Upstream> {
        // SAFETY: upstreams of this configuration, which has been read.
        self.fixed
            .iter()
            .filter_map(|&upstream| unsafe { srv_conf::<Slot>(upstream) }.upstream.as_deref())
    }

    /// The upstreams whose service requests name.
    pub(crate) fn on_demand(&self) -> impl Iterator<Item = &OnDemandUpstream> {
        // SAFETY: as in fixed().
        let of = |&upstream: &*mut _| unsafe { srv_conf::<Slot>(upstream) }.on_demand.as_deref();
        self.on_demand.iter().filter_map(of)
    }

    /// Puts our callback around what another module has put around an upstream's `peer.init`.
    ///
    /// # Safety
    ///
    /// The configuration was just read, and no request is served by it yet.
    pub(crate) unsafe fn guard(&self) {
        for &upstream in self.fixed.iter().chain(&self.on_demand) {
            // SAFETY: an upstream of this configuration, and the caller's promise.
            unsafe { peer::guard(upstream) };
        }
    }

    /// The zone of the shared table; `None` while no upstream follows Consul.
    pub(crate) fn shm_zone(&self) -> Option<&ngx_shm_zone_t> {
        // SAFETY: the zone of this configuration, which lives as long.
        self.shm_zone.map(|zone| unsafe { zone.as_ref() })
    }

    /// The shared table; `None` while no upstream follows Consul, and before nginx has mapped the
    /// zone.
    pub(crate) fn table(&self) -> Option<Table<'static>> {
        let table = zone::table(self.shm_zone()?)?;
        Some(table.for_configuration(self.configuration.get()))
    }

    /// In the master: gives this configuration its number, and the table for it.
    pub(crate) fn announce(&self, table: Table<'static>) -> Table<'static> {
        let table = table.announce_configuration();
        self.configuration.set(table.configuration());
        table
    }
}
