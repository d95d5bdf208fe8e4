//! The shared zone: asked for while the configuration is read, laid out when nginx has mapped it.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nginx_consul_core::table::{self, Table};
use nginx_sys::{
    NGX_LOG_EMERG, ngx_conf_t, ngx_core_conf_t, ngx_core_module, ngx_cycle_t, ngx_int_t,
    ngx_pagesize, ngx_shared_memory_add, ngx_shm_zone_t, ngx_slab_calloc, ngx_slab_pool_t,
    ngx_str_t,
};

use crate::ffi::{self, ERROR, OK, catch_panic, str_over};

/// `consul_zone`'s defaults.
const NAME: &[u8] = b"consul";
const SIZE: usize = 10 << 20;

/// Asks nginx for the zone. `targets` is checked here, so that `nginx -t` tells.
pub(crate) fn request(
    cf: *mut ngx_conf_t,
    zone: Option<(ngx_str_t, usize)>,
    targets: usize,
) -> Result<NonNull<ngx_shm_zone_t>, String> {
    let (mut name, size) = zone.unwrap_or((str_over(NAME), SIZE));
    let room = table::entries_in(size);
    if targets > room {
        return Err(format!(
            "zone \"{name}\" is too small for {targets} services, it has room for {room}, \
             increase the size in \"consul_zone\""
        ));
    }
    // SAFETY: `cf` is valid; the tag makes the zone ours, a zone of that name of another module is
    // an error of nginx's own.
    unsafe {
        let tag = ffi::module().cast::<c_void>();
        let mut shm_zone = NonNull::new(ngx_shared_memory_add(cf, &mut name, size, tag))
            .ok_or_else(|| format!("can't have zone \"{name}\" of \"consul_zone\""))?;
        shm_zone.as_mut().init = Some(ngx_http_consul_init_zone);
        // Until then, the cycle that the zone is made for.
        shm_zone.as_mut().data = (*cf).cycle.cast();
        Ok(shm_zone)
    }
}

/// Called in the master with the memory mapped; `data` is what the last configuration's zone of
/// the same name and size had.
extern "C" fn ngx_http_consul_init_zone(zone: *mut ngx_shm_zone_t, data: *mut c_void) -> ngx_int_t {
    catch_panic(ERROR, || {
        // SAFETY: nginx passes a zone with its slab pool laid out at its beginning.
        let shm_zone = unsafe { &mut *zone };
        if !data.is_null() {
            shm_zone.data = data;
            return match table(shm_zone) {
                Some(_) => OK,
                None => refuse(shm_zone, "was made by another version of the module, rename it"),
            };
        }
        let cycle = shm_zone.data.cast::<ngx_cycle_t>();
        // SAFETY: as above; the pool is only ours.
        let region = unsafe { take_all(shm_zone) };
        let Some(words) = region else { return refuse(shm_zone, "can't be laid out") };
        if Table::create(words, table::shards_for(workers(cycle))).is_none() {
            return refuse(shm_zone, "is too small");
        }
        OK
    })
}

fn refuse(zone: &ngx_shm_zone_t, why: &str) -> ngx_int_t {
    let name = zone.shm.name;
    ngx::ngx_log_error!(NGX_LOG_EMERG, zone.shm.log, "zone \"{name}\" of \"consul_zone\" {why}");
    ERROR
}

/// Takes the pool's whole free memory as one stretch, its length in the first word.
///
/// # Safety
///
/// The zone is mapped and its slab pool unused.
unsafe fn take_all(zone: &mut ngx_shm_zone_t) -> Option<&'static [AtomicU64]> {
    // SAFETY: the slab pool lies at the beginning of the zone; pages are aligned far beyond 8.
    unsafe {
        let pool = zone.shm.addr.cast::<ngx_slab_pool_t>();
        let size = (*pool).pfree * ngx_pagesize;
        let start = ngx_slab_calloc(pool, size).cast::<AtomicU64>();
        if start.is_null() {
            return None;
        }
        (*start).store((size / 8 - 1) as u64, Relaxed);
        zone.data = start.cast();
        (*pool).data = start.cast();
        words(start)
    }
}

/// # Safety
///
/// `start` is null or what [`take_all`] took, still mapped.
unsafe fn words(start: *mut AtomicU64) -> Option<&'static [AtomicU64]> {
    // SAFETY: the first word is the number of those that follow. A process keeps the mapping for
    // as long as it runs; only the master unmaps it, on a reload that changes the zone's size, and
    // then uses only the new one (`watcher` closes the sink of the first answers).
    unsafe {
        let len = start.as_ref()?.load(Relaxed) as usize;
        Some(slice::from_raw_parts(start.add(1), len))
    }
}

/// The table in the zone; `None` before nginx has mapped it.
pub(crate) fn table(zone: &ngx_shm_zone_t) -> Option<Table<'static>> {
    // SAFETY: `data` is null or what take_all() took.
    Table::attach(unsafe { words(zone.data.cast()) }?)
}

/// `worker_processes` of the configuration, or of the machine if that is more: a later
/// configuration keeps the zone and may ask for more workers.
fn workers(cycle: *const ngx_cycle_t) -> usize {
    // SAFETY: `cycle` is the one being made; all of its modules' configurations are complete.
    unsafe {
        let core = *(*cycle).conf_ctx.add(ngx_core_module.index);
        let set = core.cast::<ngx_core_conf_t>().as_ref().map_or(1, |c| c.worker_processes);
        let cpus = nginx_sys::ngx_ncpu.max(1);
        usize::try_from(set.max(cpus)).unwrap_or(1)
    }
}
