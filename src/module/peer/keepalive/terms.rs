//! What a connection must have in common with what a request wants.

use std::ffi::c_void;
use std::ptr;

use nginx_sys::{ngx_http_request_t, ngx_http_upstream_t, ngx_peer_connection_t};

/// Bytes that somebody else keeps: the request's pool or configuration, or the connection's pool.
#[derive(Clone, Copy)]
pub(super) struct Bytes(*const u8, usize);

impl Bytes {
    pub(super) const NONE: Bytes = Bytes(ptr::null(), 0);

    pub(super) fn new<T>(data: *const T, len: usize) -> Bytes {
        if data.is_null() { Bytes::NONE } else { Bytes(data.cast(), len) }
    }

    pub(super) fn len(self) -> usize {
        self.1
    }

    /// # Safety
    ///
    /// Who keeps the bytes is still there.
    #[inline]
    pub(super) unsafe fn is(self, other: Bytes) -> bool {
        if self.1 != other.1 {
            return false;
        }
        // SAFETY: the caller's promise; no length is without its bytes.
        unsafe {
            // An IPv4 address: no call of the C library is as quick as two words.
            if self.1 == size_of::<[u64; 2]>() {
                let words = |bytes: Bytes| bytes.0.cast::<[u64; 2]>().read_unaligned();
                return words(self) == words(other);
            }
            self.1 == 0
                || std::slice::from_raw_parts(self.0, self.1)
                    == std::slice::from_raw_parts(other.0, other.1)
        }
    }

    /// # Safety
    ///
    /// As for [`Bytes::is`]; there is room at `place`.
    pub(super) unsafe fn copied_to(self, place: *mut u8) -> Bytes {
        // SAFETY: the caller's promise.
        unsafe { ptr::copy_nonoverlapping(self.0, place, self.1) };
        Bytes(place, self.1)
    }
}

/// What a connection is, or what a request wants it to be.
#[derive(Clone, Copy)]
pub(in super::super) struct Wanted {
    /// The protocol, by who makes its requests: the peer may serve several.
    protocol: *const c_void,
    /// `None` of most.
    pub(super) terms: Option<Terms>,
}

/// What else matters with TLS or `proxy_bind`.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    /// The address of `proxy_bind`.
    pub(super) local: Bytes,
    tls: Option<Tls>,
    /// The name of the peer that TLS sends or verifies.
    pub(super) name: Bytes,
}

/// What decides about a TLS connection besides the name. All of it is in the configuration.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Tls {
    context: *const c_void,
    certificate: *const c_void,
    key: *const c_void,
    sends_name: bool,
    verifies: bool,
}

impl Wanted {
    /// What a request wants. `None` if its connections can't be told from those of others: a client
    /// certificate may be each request's own.
    ///
    /// # Safety
    ///
    /// `pc` is the connection of the request `r`, whose variables may be evaluated.
    #[inline]
    pub(in super::super) unsafe fn by(
        r: *mut ngx_http_request_t,
        pc: &ngx_peer_connection_t,
    ) -> Option<Wanted> {
        // SAFETY: the caller's promise.
        let u = unsafe { &*(*r).upstream };
        let protocol = u.create_request.map_or(ptr::null(), |create| create as *const c_void);
        if !is_tls(u) && pc.local.is_null() {
            return Some(Wanted { protocol, terms: None });
        }
        // SAFETY: the caller's promise.
        let terms = Some(unsafe { Terms::wanted(r, u, pc) }?);
        Some(Wanted { protocol, terms })
    }

    /// The same, with other terms.
    pub(super) fn on(&self, terms: Option<Terms>) -> Wanted {
        Wanted { terms, ..*self }
    }

    /// # Safety
    ///
    /// Who keeps the bytes of both is still there.
    #[inline]
    pub(super) unsafe fn suits(&self, wanted: &Wanted) -> bool {
        self.protocol == wanted.protocol
            && match (&self.terms, &wanted.terms) {
                (None, None) => true,
                // SAFETY: the caller's promise.
                (Some(terms), Some(wanted)) => unsafe { terms.suit(wanted) },
                _ => false,
            }
    }
}

impl Terms {
    /// # Safety
    ///
    /// As for [`Wanted::by`].
    #[cold]
    unsafe fn wanted(
        r: *mut ngx_http_request_t,
        u: &ngx_http_upstream_t,
        pc: &ngx_peer_connection_t,
    ) -> Option<Terms> {
        // SAFETY: `local` is null or what `proxy_bind` made, with the request's configuration or
        // in its pool.
        let local = unsafe { pc.local.as_ref() }
            .map_or(Bytes::NONE, |local| Bytes::new(local.sockaddr, local.socklen as usize));
        let mut terms = Terms { local, tls: None, name: Bytes::NONE };
        if is_tls(u) {
            // SAFETY: the caller's promise.
            unsafe {
                let (tls, is_named) = tls(u)?;
                terms.tls = Some(tls);
                if is_named {
                    terms.name = name(r)?;
                }
            }
        }
        Some(terms)
    }

    /// The same, with these bytes.
    pub(super) fn keeping(&self, local: Bytes, name: Bytes) -> Terms {
        Terms { local, name, ..*self }
    }

    /// # Safety
    ///
    /// As for [`Wanted::suits`].
    unsafe fn suit(&self, wanted: &Terms) -> bool {
        // SAFETY: the caller's promise.
        self.tls == wanted.tls
            && unsafe { self.local.is(wanted.local) && self.name.is(wanted.name) }
    }
}

#[cfg(nginx_ssl)]
#[inline]
pub(super) fn is_tls(u: &ngx_http_upstream_t) -> bool {
    u.ssl() != 0
}

#[cfg(not(nginx_ssl))]
pub(super) fn is_tls(_: &ngx_http_upstream_t) -> bool {
    false
}

/// And whether the name of the peer matters.
///
/// # Safety
///
/// `u` is that of a request.
#[cfg(nginx_ssl)]
unsafe fn tls(u: &ngx_http_upstream_t) -> Option<(Tls, bool)> {
    // SAFETY: the location's configuration; its values are null or compiled ones.
    unsafe {
        let conf = &*u.conf;
        let has_variables = |value: *mut nginx_sys::ngx_http_complex_value_t| {
            value.as_ref().is_some_and(|value| !value.lengths.is_null())
        };
        if has_variables(conf.ssl_certificate) || has_variables(conf.ssl_certificate_key) {
            return None;
        }
        let tls = Tls {
            context: conf.ssl.cast(),
            certificate: conf.ssl_certificate.cast(),
            key: conf.ssl_certificate_key.cast(),
            sends_name: conf.ssl_server_name != 0,
            verifies: conf.ssl_verify != 0,
        };
        Some((tls, tls.sends_name || tls.verifies))
    }
}

/// # Safety
///
/// As of the one with TLS, though it needs nothing.
#[cfg(not(nginx_ssl))]
unsafe fn tls(_: &ngx_http_upstream_t) -> Option<(Tls, bool)> {
    None
}

/// The name that TLS knows the request's peer by, in the request's pool or its configuration.
///
/// # Safety
///
/// `r` is a request with an upstream that speaks TLS.
#[cfg(nginx_ssl)]
unsafe fn name(r: *mut ngx_http_request_t) -> Option<Bytes> {
    // SAFETY: the caller's promise; as ngx_http_upstream_ssl_name() finds it.
    unsafe {
        let u = &*(*r).upstream;
        let value = (*u.conf).ssl_name;
        let mut name = u.ssl_name;
        if !value.is_null()
            && nginx_sys::ngx_http_complex_value(r, value, &mut name) != crate::ffi::OK
        {
            return None;
        }
        Some(Bytes::new(name.data, name.len))
    }
}

/// # Safety
///
/// As of the one with TLS, though it needs nothing.
#[cfg(not(nginx_ssl))]
unsafe fn name(_: *mut ngx_http_request_t) -> Option<Bytes> {
    None
}
