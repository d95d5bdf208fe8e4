//! An address and its text in nginx's types.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::net::SocketAddr;

use nginx_consul_core::address::AddressText;
use nginx_sys::ngx_str_t;

use crate::ffi::str_over;

/// A socket address, its length and its text. Once [`SockAddr::set_name`] was called it stays where
/// it is.
pub(super) struct SockAddr {
    pub(super) storage: MaybeUninit<libc::sockaddr_in6>,
    pub(super) len: libc::socklen_t,
    /// Points at `text`.
    pub(super) name: Cell<ngx_str_t>,
    text: AddressText,
}

impl SockAddr {
    /// Without the name.
    pub(super) fn new(address: SocketAddr) -> SockAddr {
        let mut storage = MaybeUninit::<libc::sockaddr_in6>::zeroed();
        let len = match address {
            SocketAddr::V4(v4) => {
                let sin = libc::sockaddr_in {
                    sin_family: libc::AF_INET as _,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                const {
                    assert!(size_of::<libc::sockaddr_in>() <= size_of::<libc::sockaddr_in6>());
                    assert!(align_of::<libc::sockaddr_in>() <= align_of::<libc::sockaddr_in6>());
                }
                // SAFETY: a sockaddr_in fits into a sockaddr_in6, as asserted.
                unsafe { storage.as_mut_ptr().cast::<libc::sockaddr_in>().write(sin) };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                storage.write(libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as _,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                });
                size_of::<libc::sockaddr_in6>()
            }
        };
        let (len, text) = (len as libc::socklen_t, AddressText::new(address));
        SockAddr { storage, len, name: Cell::new(str_over(b"")), text }
    }

    /// Sets the name, which points into the value itself.
    pub(super) fn set_name(&self) {
        self.name.set(str_over(&self.text));
    }
}
