//! Addresses and names in nginx's types.

use std::cell::{Cell, UnsafeCell};
use std::mem::MaybeUninit;
use std::net::SocketAddr;

use nginx_consul_core::address::AddressText;
use nginx_sys::ngx_str_t;

use crate::ffi::str_over;

/// What nginx is told of each peer of a set. Made when it is first asked for, since a worker uses
/// few of a long set before the next one; never changed or moved then.
pub(super) struct SockAddrs {
    places: Box<[UnsafeCell<MaybeUninit<SockAddr>>]>,
    /// Whether that was made.
    made: Box<[Cell<bool>]>,
}

/// A socket address, its length and its name.
#[repr(C)]
pub(super) struct SockAddr {
    /// The first, so that its place tells the contact's.
    storage: MaybeUninit<libc::sockaddr_in6>,
    pub(super) len: libc::socklen_t,
    /// Points at `text`.
    pub(super) name: ngx_str_t,
    text: AddressText,
}

impl SockAddrs {
    pub(super) fn new(peers: usize) -> SockAddrs {
        let places = (0..peers).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect();
        let made = vec![Cell::new(false); peers].into();
        SockAddrs { places, made }
    }

    /// The contact of a peer, whose address that is.
    #[inline]
    pub(super) fn get(&self, peer: usize, address: impl FnOnce() -> SocketAddr) -> &SockAddr {
        if !self.made[peer].get() {
            self.make(peer, address);
        }
        // SAFETY: there is a place for each of `made`; it was made, and is not written again.
        unsafe { (*self.places.get_unchecked(peer).get()).assume_init_ref() }
    }

    #[cold]
    #[inline(never)]
    fn make(&self, peer: usize, address: impl FnOnce() -> SocketAddr) {
        // SAFETY: nobody has a reference to what was not made. The text stays where it is.
        unsafe {
            let contact = (*self.places[peer].get()).write(SockAddr::new(address()));
            contact.name = str_over(&contact.text);
        }
        self.made[peer].set(true);
    }

    /// The peer whose contact has its address at this very place.
    pub(super) fn number_at(&self, address: usize) -> Option<usize> {
        let offset = address.checked_sub(self.places.as_ptr().addr())?;
        let number = offset / size_of::<SockAddr>();
        (offset % size_of::<SockAddr>() == 0 && number < self.places.len()).then_some(number)
    }
}

impl SockAddr {
    /// Without the name.
    fn new(address: SocketAddr) -> SockAddr {
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
        SockAddr { storage, len, name: str_over(b""), text }
    }

    pub(super) fn address(&self) -> *mut libc::sockaddr {
        self.storage.as_ptr().cast::<libc::sockaddr>().cast_mut()
    }
}
