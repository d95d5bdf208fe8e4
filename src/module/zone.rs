//! The shared zone: requested while nginx reads the configuration, laid out once nginx has mapped
//! it.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nginx_consul_core::table::{self, Table};
use nginx_sys::{
    NGX_LOG_EMERG, ngx_core_conf_t, ngx_core_module, ngx_cycle_t, ngx_int_t, ngx_pagesize,
    ngx_shared_memory_add, ngx_shm_zone_t, ngx_slab_calloc, ngx_slab_pool_t, ngx_str_t,
};

use crate::ffi::{self, Cf, ERROR, OK, catch_panic, str_over};

/// `consul_zone`'s defaults.
const NAME: &[u8] = b"consul";
const SIZE: usize = 10 << 20;

/// The size of the zone in bytes.
pub(crate) fn size(zone: Option<(ngx_str_t, usize)>) -> usize {
    zone.map_or(SIZE, |(_, size)| size)
}

/// Asks nginx for the zone. Checks that it has room for so many targets, so that `nginx -t` reports
/// it.
pub(crate) fn request(
    cf: Cf<'_>,
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
    let tag = ffi::module().cast::<c_void>();
    // SAFETY: nginx reads the configuration, and keeps name and zone as long as that. The tag makes the
    // zone ours: one of that name of another module is an error of nginx's own.
    let zone = unsafe { ngx_shared_memory_add(cf.as_ptr(), &mut name, size, tag).as_mut() };
    let zone = zone.ok_or_else(|| format!("can't have zone \"{name}\" of \"consul_zone\""))?;
    zone.init = Some(ngx_http_consul_init_zone);
    // Until nginx calls `init`: the cycle that the zone belongs to.
    zone.data = cf.cycle().cast();
    Ok(NonNull::from(zone))
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
        // SAFETY: request() has left the cycle there, which nginx is making.
        let workers = unsafe { workers(shm_zone.data.cast()) };
        // SAFETY: the zone is mapped, and nobody has used its pool.
        let region = unsafe { take_all(shm_zone) };
        let Some(words) = region else { return refuse(shm_zone, "can't be laid out") };
        if Table::create(words, table::shards_for(workers)).is_none() {
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

/// Allocates the pool's whole free memory as one block; its first word is its length.
///
/// # Safety
///
/// The zone is mapped and its slab pool unused.
unsafe fn take_all(zone: &mut ngx_shm_zone_t) -> Option<&'static [AtomicU64]> {
    // SAFETY: nginx lays the slab pool out at the beginning of a zone.
    let pool = unsafe { &mut *zone.shm.addr.cast::<ngx_slab_pool_t>() };
    // SAFETY: a number that nginx sets at its start.
    let size = pool.pfree * unsafe { ngx_pagesize };
    // SAFETY: nobody else uses the pool. What it gives are pages, zeroed, or null.
    let start = unsafe { ngx_slab_calloc(pool, size) }.cast::<AtomicU64>();
    // SAFETY: pages are aligned far beyond 8; zeros are an AtomicU64.
    unsafe { start.as_ref()? }.store((size / 8 - 1) as u64, Relaxed);
    zone.data = start.cast();
    pool.data = start.cast();
    // SAFETY: the first word was just set.
    unsafe { words(start) }
}

/// # Safety
///
/// `start` is null or what [`take_all`] took, still mapped.
unsafe fn words(start: *mut AtomicU64) -> Option<&'static [AtomicU64]> {
    // SAFETY: a process keeps the mapping for as long as it runs; only the master unmaps it, on a
    // reload that changes the zone's size, and then uses only the new one (`lifecycle` closes the
    // sink of the first answers). All of it is accessed as atomic words.
    let len = unsafe { start.as_ref()? }.load(Relaxed) as usize;
    // SAFETY: the first word is the number of those that follow.
    Some(unsafe { slice::from_raw_parts(start.add(1), len) })
}

/// The table in the zone; `None` before nginx has mapped it.
pub(crate) fn table(zone: &ngx_shm_zone_t) -> Option<Table<'static>> {
    // SAFETY: `data` is null or what take_all() took.
    Table::attach(unsafe { words(zone.data.cast()) }?)
}

/// `worker_processes` of the configuration, or of the machine if that is more: a later
/// configuration keeps the zone and may ask for more workers.
///
/// # Safety
///
/// `cycle` is being made, and all of its modules' configurations are complete.
unsafe fn workers(cycle: *const ngx_cycle_t) -> usize {
    // SAFETY: the core module has a configuration in each cycle (the caller's promise).
    let core = unsafe {
        let core = *(*cycle).conf_ctx.add(ngx_core_module.index);
        core.cast::<ngx_core_conf_t>().as_ref()
    };
    // SAFETY: a number that nginx sets at its start.
    let cpus = unsafe { nginx_sys::ngx_ncpu }.max(1);
    let set = core.map_or(1, |core| core.worker_processes);
    usize::try_from(set.max(cpus)).unwrap_or(1)
}
