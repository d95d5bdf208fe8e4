//! What nginx calls for an upstream when it has read the configuration.

use nginx_sys::{
    ngx_conf_t, ngx_http_upstream_init_round_robin, ngx_http_upstream_srv_conf_t, ngx_int_t,
};

use super::callbacks::ngx_http_upstream_init_consul_peer;
use super::servers;
use super::slot::Slot;
use crate::ffi::{ERROR, OK, catch_panic, srv_conf};

/// `peer.init_upstream`. nginx's own round robin is made of the `server` lines, for when the service
/// has no instance.
pub(crate) extern "C" fn ngx_http_upstream_init_consul(
    cf: *mut ngx_conf_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    catch_panic(ERROR, || {
        // SAFETY: nginx passes the block that is being read, which nobody else uses now.
        unsafe { servers::drop_placeholder(&mut *us) };
        // SAFETY: nginx passes a configuration and a block that has `server` lines.
        if unsafe { ngx_http_upstream_init_round_robin(cf, us) } != OK {
            return ERROR;
        }
        // SAFETY: as above; an explicit block has the configurations of modules.
        unsafe {
            (*us).peer.init = Some(ngx_http_upstream_init_consul_peer);
            srv_conf::<Slot>(us).servers.set((*us).peer.data.cast());
        }
        OK
    })
}

/// On nginx that keeps connections by itself: has an upstream's connections kept by us alone.
///
/// # Safety
///
/// `us` is a block with `consul_keepalive` of the configuration that is being read.
#[cfg(nginx_keepalive_anywhere)]
pub(crate) unsafe fn replace_keepalive(us: *mut ngx_http_upstream_srv_conf_t) {
    // SAFETY: the caller's promise. What nginx has put around our callback is for requests only.
    unsafe { (*us).peer.init = Some(ngx_http_upstream_init_consul_peer) };
}
