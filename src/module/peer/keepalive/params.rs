//! What a connection must have in common with what a request needs.

use std::ffi::c_void;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::ptr;
use std::sync::OnceLock;

use nginx_sys::{ngx_http_request_t, ngx_http_upstream_t, ngx_peer_connection_t};

/// The parameters of a connection, or those that a request needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnParams {
    /// The protocol, by the function that makes its requests: the peer may serve several.
    protocol: *const c_void,
    /// With TLS or `proxy_bind`: a hash of their parameters, which only this process can compute.
    others: u64,
}

impl ConnParams {
    /// What a request needs. `None` if its connection is for itself alone: a client certificate from
    /// variables may be each request's own.
    ///
    /// # Safety
    ///
    /// `pc` is the connection of the request `r`. Its variables may be evaluated, so nobody holds a
    /// mutable reference to what they look at.
    #[inline]
    pub(crate) unsafe fn of(
        r: *mut ngx_http_request_t,
        pc: &ngx_peer_connection_t,
    ) -> Option<ConnParams> {
        // SAFETY: the caller's promise.
        let u = unsafe { &*(*r).upstream };
        let protocol = u.create_request.map_or(ptr::null(), |create| create as *const c_void);
        let is_plain = !is_tls(u) && pc.local.is_null();
        // SAFETY: as above.
        let others = if is_plain { 0 } else { unsafe { hash(r, u, pc)? } };
        Some(ConnParams { protocol, others })
    }
}

/// # Safety
///
/// As for [`ConnParams::of`].
#[cold]
unsafe fn hash(
    r: *mut ngx_http_request_t,
    u: &ngx_http_upstream_t,
    pc: &ngx_peer_connection_t,
) -> Option<u64> {
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    let mut hasher = KEYS.get_or_init(RandomState::new).build_hasher();
    // SAFETY: `local` is null or what `proxy_bind` made, with the request's configuration or in its
    // pool; its address is as long as it says.
    let local = unsafe {
        pc.local.as_ref().map(|local| {
            std::slice::from_raw_parts(local.sockaddr.cast::<u8>(), local.socklen as usize)
        })
    };
    local.hash(&mut hasher);
    if is_tls(u) {
        // SAFETY: the caller's promise.
        unsafe { hash_tls(r, u, &mut hasher)? };
    }
    Some(hasher.finish())
}

#[cfg(nginx_ssl)]
#[inline]
pub(super) fn is_tls(u: &ngx_http_upstream_t) -> bool {
    // SAFETY: nginx has made it, for a request of this worker.
    unsafe { crate::ffi::bits::upstream::SSL.get(u) }
}

#[cfg(not(nginx_ssl))]
pub(super) fn is_tls(_: &ngx_http_upstream_t) -> bool {
    false
}

/// What decides about a TLS connection: what the configuration says, and the name that TLS knows the
/// peer by, where it is sent or verified.
///
/// # Safety
///
/// As for [`ConnParams::of`]; the upstream speaks TLS.
#[cfg(nginx_ssl)]
unsafe fn hash_tls(
    r: *mut ngx_http_request_t,
    u: &ngx_http_upstream_t,
    hasher: &mut impl Hasher,
) -> Option<()> {
    // SAFETY: an upstream that has a request has the configuration of its location.
    let conf = unsafe { &*u.conf };
    let has_variables = |value: *mut nginx_sys::ngx_http_complex_value_t| {
        // SAFETY: null, or a compiled value of the configuration.
        unsafe { value.as_ref() }.is_some_and(|value| !value.lengths.is_null())
    };
    if has_variables(conf.ssl_certificate) || has_variables(conf.ssl_certificate_key) {
        return None;
    }
    let (sends_name, verifies) = (conf.ssl_server_name != 0, conf.ssl_verify != 0);
    (conf.ssl, conf.ssl_certificate, conf.ssl_certificate_key).hash(hasher);
    (sends_name, verifies).hash(hasher);
    if sends_name || verifies {
        // As ngx_http_upstream_ssl_name() does.
        let mut name = u.ssl_name;
        // SAFETY: a compiled value of the configuration; the request is valid (the caller's promise).
        let evaluate = |name: &mut _| unsafe {
            nginx_sys::ngx_http_complex_value(r, conf.ssl_name, name) == crate::ffi::OK
        };
        if !conf.ssl_name.is_null() && !evaluate(&mut name) {
            return None;
        }
        // SAFETY: the name lies in the configuration or in the request's pool.
        unsafe { crate::ffi::bytes(&name) }.hash(hasher);
    }
    Some(())
}

/// # Safety
///
/// As of the one with TLS, though it needs nothing.
#[cfg(not(nginx_ssl))]
unsafe fn hash_tls(
    _: *mut ngx_http_request_t,
    _: &ngx_http_upstream_t,
    _: &mut impl Hasher,
) -> Option<()> {
    None
}
